"""One ranking from several: reciprocal rank fusion (Cormack, Clarke and Büttcher, SIGIR 2009).

Knows rows and the order that scores give them. Refuses to know what a score means: cosines and
scores of BM25 have no scale in common, and their ranks have.

Shapes: K rows of a ranking, F different rows of all rankings.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

CONSTANT = 60  # of the paper: how much more the first ranks count than those after them
DEPTH = 1000  # of each ranking, as in the paper

Ranked = tuple[NDArray[np.int64], NDArray[np.floating[Any]]]


def fused(rankings: Sequence[Ranked]) -> Ranked:
    """The rows (F,) of some rankings and their fused scores (F,), best first; of equal scores the
    lower row comes first.

    A ranking is rows (K,) and their scores (K,), in any order; a row below 0 is none. Each ranking
    gives a row 1 / (60 + its rank), counted from 1. Rows of equal score share the mean of their
    ranks, so that no order of files decides between them.
    """
    found = [(rows_K[rows_K >= 0], scores_K[rows_K >= 0]) for rows_K, scores_K in rankings]
    every = np.concatenate([np.zeros(0, np.int64), *(rows_K for rows_K, _ in found)])
    shares = [1 / (CONSTANT + _mean_ranks(scores_K)) for _, scores_K in found]
    rows_F, place = np.unique(every, return_inverse=True)
    sum_F = np.zeros(len(rows_F))
    np.add.at(sum_F, place, np.concatenate([[], *shares]))
    order = np.argsort(-sum_F, kind="stable")
    return rows_F[order].astype(np.int64), sum_F[order]


def _mean_ranks(scores_K: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    _, group_K, sizes = np.unique(-scores_K, return_inverse=True, return_counts=True)
    ranks_K: NDArray[np.float64] = (np.cumsum(sizes) - (sizes - 1) / 2)[group_K]
    return ranks_K
