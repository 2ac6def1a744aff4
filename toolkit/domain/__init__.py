"""The stages that adapt an encoder to a domain, beside those that train, embed and score.

`collection` collects a folder of documents and splits it into parts; `mining` finds hard negatives.
"""
