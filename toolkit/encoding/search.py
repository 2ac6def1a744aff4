"""Exact nearest neighbours by cosine, one unit of vectors in memory at a time.

Shapes: Q queries, R rows of a unit, D width, K hits.
"""

import dataclasses

import numpy as np
from numpy.typing import NDArray

from toolkit.encoding.formats import Vectors, unit_length
from toolkit.encoding.store import VectorStore


@dataclasses.dataclass(frozen=True)
class Hit:
    """A found row."""

    id: str
    title: str
    score: float


def nearest(store: VectorStore, *, queries_QD: Vectors, top: int) -> list[list[Hit]]:
    """The `top` rows of highest cosine for each query, best first; ties by corpus order."""
    scores_QK, rows_QK = nearest_rows(store, queries_QD=queries_QD, top=top)
    found = _records(store, rows=rows_QK)
    return [
        [Hit(*found[int(row)], score=float(score)) for row, score in zip(rows, scores, strict=True)]
        for rows, scores in zip(rows_QK, scores_QK, strict=True)
    ]


def nearest_rows(
    store: VectorStore, *, queries_QD: Vectors, top: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The cosines (Q, K) and the rows (Q, K) of the corpus that `nearest` describes."""
    num_queries = len(queries_QD)
    scores_QK = np.full((num_queries, 0), -np.inf, dtype=np.float32)
    rows_QK = np.zeros((num_queries, 0), dtype=np.int64)
    query = unit_length(queries_QD)
    for unit, vectors_RD in store.blocks():
        score_QR = query @ unit_length(vectors_RD).T
        row_QR = np.broadcast_to(np.arange(unit.start, unit.stop), score_QR.shape)
        scores = np.concatenate([scores_QK, score_QR], axis=1)
        rows = np.concatenate([rows_QK, row_QR], axis=1)
        best = np.argsort(-scores, axis=1, kind="stable")[:, :top]
        scores_QK = np.take_along_axis(scores, best, axis=1)
        rows_QK = np.take_along_axis(rows, best, axis=1)
    return scores_QK, rows_QK


def _records(store: VectorStore, *, rows: NDArray[np.int64]) -> dict[int, tuple[str, str]]:
    wanted = set(rows.ravel().tolist())
    found: dict[int, tuple[str, str]] = {}
    for unit in store.units:
        inside = [row for row in range(unit.start, unit.stop) if row in wanted]
        if inside:
            records = store.records(unit)
            for row in inside:
                record = records[row - unit.start]
                found[row] = (record["id"], record["title"])
    return found
