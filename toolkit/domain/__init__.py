"""Questions that a decoder writes about the documents of a domain, for training and evaluation.

`program` composes. `documents`: which ones, and what identifies an output. `prompts`: what the
decoder reads. `decoder`: the model, which continues prompts. `writing`: the questions of a unit.
`output`: units on disk. `filters`: which questions are kept. `finishing`: pairs, queries,
judgements, and an account of all questions. Before anything runs: `forecast`.
"""
