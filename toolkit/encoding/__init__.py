"""Embedding a corpus: work units, the encoder, the vectors on disk."""
