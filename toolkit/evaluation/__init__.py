"""Scores of encoders, and tables of them."""
