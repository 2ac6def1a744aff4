"""A run as one page to look at: curves, restarts, scores, neighbours, a map of the embeddings.

    python -m toolkit.report RUN [--output DIR]

Writes RUN/report/index.html, which holds all it shows, and every picture as a PNG beside it. Needs
matplotlib (pip install matplotlib). `door`: the command line. `page`: the page. `html`: pieces of
pages. `comparison`: two encoders query by query. `domain`: what an adapted encoder was made of.
`pictures`: what matplotlib draws.
"""

from toolkit.report.door import main

__all__ = ["main"]
