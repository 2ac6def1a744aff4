"""Measures of a ranking, as trec_eval defines them, where equal scores stand in no order.

Knows scores and grades. A measure is its mean over all orders of equal scores (McSherry and Najork
2008), so it depends neither on names nor on the order of files, and an encoder that tells nothing
apart gets what chance gets.

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
    """Documents of one score: how many stand before them, how many they are, how many of both are
    relevant, and the mean of their grades."""

    before: int
    size: int
    relevant_before: int
    relevant: int
    mean_grade: float

    def places(self, depth: int) -> NDArray[np.int64]:
        """Their places (K,) in the ranking down to `depth`, from 1."""
        return np.arange(self.before + 1, min(self.before + self.size, depth) + 1)


@dataclasses.dataclass(frozen=True)
class Ranking:
    """The groups of a query's ranking, best first, as far down as is looked at; and the grades
    above 0 of all its judged documents, ranked or not, of which there is one at least."""

    groups: Sequence[Group]
    wanted: Sequence[int]

    def ndcg(self, depth: int) -> float:
        """Discounted gain of the first `depth` over that of the best order."""
        gain = sum(g.mean_grade * _discounts(g.places(depth)).sum() for g in self.groups)
        best = np.sort(self.wanted)[::-1][:depth]
        return float(gain / (best * _discounts(np.arange(1, len(best) + 1))).sum())

    def recall(self, depth: int) -> float:
        """The share of relevant documents that are among the first `depth`."""
        retrieved = sum(g.relevant * len(g.places(depth)) / g.size for g in self.groups)
        return float(retrieved / len(self.wanted))

    def average_precision(self) -> float:
        """Precision at each relevant document, averaged over all relevant ones."""
        total = 0.0
        for group in self.groups:
            place_K = group.places(group.before + group.size)
            others_K = (place_K - group.before - 1) * (group.relevant - 1) / max(group.size - 1, 1)
            right_K = (group.relevant_before + 1 + others_K) / place_K
            total += group.relevant / group.size * float(right_K.sum())
        return total / len(self.wanted)

    def reciprocal_rank(self, depth: int) -> float:
        """One over the place of the first relevant document, 0 beyond `depth`."""
        group = next((group for group in self.groups if group.relevant), None)
        if group is None:
            return 0.0
        place_K = group.places(depth)
        left_K = group.before + group.size + 1 - place_K  # of the group, this one included
        hit_K = np.minimum(group.relevant / left_K, 1.0)
        missed_K = np.concatenate([[1.0], np.cumprod(1 - hit_K)])[: len(place_K)]
        return float((missed_K * hit_K / place_K).sum())


def ranking_of(score_N: Floats, *, grade_N: NDArray[np.int64], wanted: Sequence[int]) -> Ranking:
    """The ranking of documents by their scores, in fp32 as trec_eval reads them. `grade_N` is 0 for
    what is not relevant."""
    _, group_N = np.unique(-score_N.astype(np.float32), return_inverse=True)
    sizes, relevant = np.bincount(group_N), np.bincount(group_N, weights=grade_N > 0)
    grades = np.bincount(group_N, weights=grade_N)
    return Ranking(list(_groups(sizes, relevant.astype(int), grades)), wanted)


def best_rows(score_N: Floats, *, depth: int) -> NDArray[np.int64]:
    """The rows of the `depth` highest scores and of all that equal the last of these."""
    if len(score_N) <= depth:
        return np.arange(len(score_N))
    last = np.partition(score_N, -depth)[-depth]
    return np.flatnonzero(score_N >= last)


def equal_rows(vectors_ND: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The first row of each vector, and for every row (N,) which of these it equals.

    A matrix product rounds equal vectors differently, by where they stand: scores are equal only
    when each vector is multiplied once.
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
