"""The study of a real model: what it is trained on, how it is scored, what came out."""
