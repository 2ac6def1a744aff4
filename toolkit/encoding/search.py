"""Nearest neighbours by cosine: the exact ones, a unit of mapped vectors at a time.

Whatever finds rows (this, or an approximate `index`), `nearest` makes hits of them.

Shapes: Q queries, R rows of a unit, D width, K hits.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.encoding.formats import Vectors, unit_length
from toolkit.encoding.store import VectorStore

Found = tuple[NDArray[np.float32], NDArray[np.int64]]
Find = Callable[[Vectors, int], Found]


@dataclasses.dataclass(frozen=True)
class Hit:
    """A found row; `row` is its number in the corpus, and `snippet` the beginning of its text, if
    the corpus is at hand."""

    id: str
    title: str
    score: float
    row: int
    snippet: str | None = None

    def as_json(self) -> dict[str, Any]:
        """What is known of it."""
        return {key: value for key, value in dataclasses.asdict(self).items() if value is not None}


def nearest(
    store: VectorStore, *, queries_QD: Vectors, top: int, find: Find | None = None
) -> list[list[Hit]]:
    """The `top` rows of highest cosine for each query, best first; ties by corpus order. `find` is
    what finds them, else the exact search."""
    find = find or exact(store)
    scores_QK, rows_QK = find(queries_QD, top)
    records = _records(store, rows=rows_QK)
    return [
        [
            Hit(records[row]["id"], records[row]["title"], score=score, row=row)
            for row, score in zip(rows, scores, strict=True)
            if row >= 0
        ]
        for rows, scores in zip(rows_QK.tolist(), scores_QK.tolist(), strict=True)
    ]


def exact(store: VectorStore) -> Find:
    """`nearest_rows` of a store."""
    return lambda queries_QD, top: nearest_rows(store, queries_QD=queries_QD, top=top)


def nearest_rows(store: VectorStore, *, queries_QD: Vectors, top: int) -> Found:
    """The cosines (Q, K) and the rows (Q, K) of the corpus that `nearest` describes."""
    query = unit_length(queries_QD)
    best: list[Found] = [
        (np.zeros(0, dtype=np.float32), np.zeros(0, dtype=np.int64)) for _ in query
    ]
    floor_Q = np.full(len(query), -np.inf, dtype=np.float32)
    for unit, vectors_RD in store.blocks(verify=False):
        score_QR = query @ vectors_RD.T
        score_QR /= np.maximum(np.sqrt(np.einsum("rd,rd->r", vectors_RD, vectors_RD)), 1e-12)
        # Of equal cosines the first row stays, so only what is above the worst comes in: after a
        # few units that is next to nothing, and the time goes into the product alone.
        above_QR = score_QR > floor_Q[:, None]
        for q in np.flatnonzero(above_QR.any(axis=1)):
            places = np.flatnonzero(above_QR[q])
            scores = np.concatenate([best[q][0], score_QR[q, places]])
            rows = np.concatenate([best[q][1], places + unit.start])
            best[q] = _best(scores, rows, top=top)
            if len(best[q][0]) == top:
                floor_Q[q] = best[q][0][-1]
    none: Found = (np.zeros((0, 0), dtype=np.float32), np.zeros((0, 0), dtype=np.int64))
    return (np.stack([s for s, _ in best]), np.stack([r for _, r in best])) if best else none


def _best(scores: NDArray[np.float32], rows: NDArray[np.int64], *, top: int) -> Found:
    if len(scores) > top:
        # All that are as good as the last one, so that ties can be told by their order.
        enough = np.flatnonzero(scores >= np.partition(scores, -top)[-top])
        scores, rows = scores[enough], rows[enough]
    order = np.argsort(-scores, kind="stable")[:top]
    return scores[order], rows[order]


def _records(store: VectorStore, *, rows: NDArray[np.int64]) -> dict[int, dict[str, Any]]:
    wanted = np.unique(rows[rows >= 0])
    return dict(zip(wanted.tolist(), store.facts(wanted).to_pylist(), strict=True))
