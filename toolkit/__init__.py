"""Turns decoder-only LLMs into text encoders (LLM2Vec), and embeds corpora with them."""

__version__ = "0.1.0"
