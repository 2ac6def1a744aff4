"""Measures of a ranking, as trec_eval defines them, but with no order among equal scores.

Knows scores and grades. A measure is the mean over all orders of equal scores (McSherry and Najork
2008). So it depends neither on names nor on the order of files, and an encoder that tells no two
texts apart gets the score of chance.

Shapes: N documents, G groups of equal scores (best first), K places of a group.
"""

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]


@dataclasses.dataclass(frozen=True)
class Group:
    """The `size` documents with one score, of which `relevant` are relevant. `before` documents,
    of which `relevant_before` are relevant, rank above them; `mean_grade` is that of the group."""

    before: int
    size: int
    relevant_before: int
    relevant: int
    mean_grade: float

    def places(self, depth: int) -> NDArray[np.int64]:
        """The places (K,) of the group in the ranking, counted from 1, down to `depth`."""
        return np.arange(self.before + 1, min(self.before + self.size, depth) + 1)


@dataclasses.dataclass(frozen=True)
class Ranking:
    """The groups of a query's ranking, best first, down to the depth of the measures; and the
    grades above 0 of all its judged documents, ranked or not (at least one)."""

    groups: Sequence[Group]
    wanted: Sequence[int]

    def ndcg(self, depth: int) -> float:
        """The discounted gain of the first `depth` places over that of the best order."""
        gain = sum(g.mean_grade * _discounts(g.places(depth)).sum() for g in self.groups)
        best = np.sort(self.wanted)[::-1][:depth]
        return float(gain / (best * _discounts(np.arange(1, len(best) + 1))).sum())

    def recall(self, depth: int) -> float:
        """The fraction of relevant documents that are in the first `depth` places."""
        retrieved = sum(g.relevant * len(g.places(depth)) / g.size for g in self.groups)
        return float(retrieved / len(self.wanted))

    def average_precision(self) -> float:
        """The precision at each relevant document, averaged over all relevant documents."""
        total = 0.0
        for group in self.groups:
            place_K = group.places(group.before + group.size)
            # If place k holds a relevant document, the others spread evenly over the group.
            others_K = (place_K - group.before - 1) * (group.relevant - 1) / max(group.size - 1, 1)
            right_K = (group.relevant_before + 1 + others_K) / place_K
            total += group.relevant / group.size * float(right_K.sum())
        return total / len(self.wanted)

    def reciprocal_rank(self, depth: int) -> float:
        """One over the place of the first relevant document, or 0 if that is beyond `depth`."""
        group = next((group for group in self.groups if group.relevant), None)
        if group is None:
            return 0.0
        place_K = group.places(depth)
        left_K = group.before + group.size + 1 - place_K  # in the group, with this place
        # The chance that a place holds the first relevant document: a hit there, misses before.
        hit_K = np.minimum(group.relevant / left_K, 1.0)
        missed_K = np.concatenate([[1.0], np.cumprod(1 - hit_K)])[: len(place_K)]
        return float((missed_K * hit_K / place_K).sum())


def ranking_of(score_N: Floats, *, grade_N: NDArray[np.int64], wanted: Sequence[int]) -> Ranking:
    """The ranking of documents by their scores, in fp32 as trec_eval reads them. `grade_N` is 0 for
    documents that are not relevant."""
    _, group_N = np.unique(-score_N.astype(np.float32), return_inverse=True)
    sizes, relevant = np.bincount(group_N), np.bincount(group_N, weights=grade_N > 0)
    grades = np.bincount(group_N, weights=grade_N)
    return Ranking(list(_groups(sizes, relevant.astype(int), grades)), wanted)


def best_rows(score_N: Floats, *, depth: int) -> NDArray[np.int64]:
    """The rows of the `depth` highest scores, and of all scores equal to the last of them."""
    if len(score_N) <= depth:
        return np.arange(len(score_N))
    last = np.partition(score_N, -depth)[-depth]
    return np.flatnonzero(score_N >= last)


def equal_rows(vectors_ND: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The first row of each different vector, and for every row (N,) the number of its vector.

    A matrix product may round equal vectors differently, depending on their places. Their scores
    are surely equal only when each different vector is multiplied once.
    """
    number: dict[bytes, int] = {}
    number_N = np.empty(len(vectors_ND), dtype=np.int64)
    first: list[int] = []
    for row, vector_D in enumerate(np.ascontiguousarray(vectors_ND)):
        key = hashlib.blake2b(vector_D, digest_size=16).digest()
        number_N[row] = number.setdefault(key, len(number))
        if len(first) < len(number):
            first.append(row)
    return np.array(first, dtype=np.int64), number_N


def _groups(sizes: NDArray[Any], relevant: NDArray[Any], grades: NDArray[Any]) -> Iterator[Group]:
    before = relevant_before = 0
    for size, num_relevant, grade in zip(sizes, relevant, grades, strict=True):
        yield Group(before, int(size), relevant_before, int(num_relevant), float(grade / size))
        before, relevant_before = before + int(size), relevant_before + int(num_relevant)


def _discounts(place_K: NDArray[Any]) -> Floats:
    discount_K: Floats = 1 / np.log2(place_K + 1)
    return discount_K
