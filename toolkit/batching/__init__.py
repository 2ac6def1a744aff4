"""Where `text` and `model` meet; training and encoding share it. No ranks.

`tokenizer`: the tokenizer of a model, as `text` uses it. `batch`: rows of tokens as the arguments
of a model, and its output as vectors.
"""
