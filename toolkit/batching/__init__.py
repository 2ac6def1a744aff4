"""What joins `text` and `model`, shared by training and encoding. No ranks.

`tokenizer`: the tokenizer of a model, wrapped for `text`. `batch`: rows of tokens become the
arguments of a model, and its output becomes vectors.
"""
