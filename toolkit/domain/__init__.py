"""The stages that adapt an encoder to a domain, beside those that train, embed and score.

`collection`: a folder of documents as a corpus, split into parts. Questions that a decoder writes:
`program` composes; `documents` (which ones, and what identifies an output), `prompts` (what the
decoder reads), `decoder` (the model, which continues prompts), `writing` (the questions of a unit),
`output` (units on disk), `filters` (which questions are kept), `own_words` (pairs of titles and
sentences, which nobody need write), `finishing` (pairs, queries, judgements, and an account of all
questions). Before anything is written: `forecast`. `mining`: hard negatives.
"""
