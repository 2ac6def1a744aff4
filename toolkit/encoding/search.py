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
from toolkit.files import BadInput

Found = tuple[NDArray[np.float32], NDArray[np.int64]]
Find = Callable[[Vectors, int], Found]


@dataclasses.dataclass(frozen=True)
class Hit:
    """A found row; `row` is its number in the corpus, and `snippet` the beginning of its text, if
    the corpus is at hand. Of a chunk also its number, and its characters from `begin` to `end`."""

    id: str
    title: str
    score: float
    row: int
    chunk: int | None = None
    begin: int | None = None
    end: int | None = None
    snippet: str | None = None

    def as_json(self) -> dict[str, Any]:
        """What is known of it."""
        return {key: value for key, value in dataclasses.asdict(self).items() if value is not None}


def nearest(
    store: VectorStore,
    *,
    queries_QD: Vectors,
    top: int,
    find: Find | None = None,
    every_chunk: bool = False,
) -> list[list[Hit]]:
    """The `top` documents of highest cosine for each query, best first; ties by corpus order. Of a
    document's chunks the best counts, unless `every_chunk` is asked for. `find` is what finds rows,
    else the exact search."""
    find = find or exact(store)
    depth, grouped = top, store.has_chunks and not every_chunk
    while True:
        scores_QK, rows_QK = find(queries_QD, depth)
        records = _records(store, rows=rows_QK)
        found = []
        for rows, scores in zip(rows_QK.tolist(), scores_QK.tolist(), strict=True):
            hits = [
                _hit(records[row], row=row, score=score)
                for row, score in zip(rows, scores, strict=True)
                if row >= 0
            ]
            best = {hit.row: hit for hit in reversed(hits)} if grouped else {}
            found.append([hit for hit in hits if best.get(hit.row, hit) is hit][:top])
        # An index that has no more to give says so by a row -1.
        short = [
            len(hits) < top and rows_K.min(initial=0) >= 0
            for hits, rows_K in zip(found, rows_QK, strict=True)
        ]
        if not any(short) or depth >= store.num_rows:
            return found
        depth = min(4 * depth, store.num_rows)


def _hit(record: dict[str, Any], *, row: int, score: float) -> Hit:
    names = ("chunk", "begin", "end")
    return Hit(
        record["id"],
        record["title"],
        score=score,
        row=record.get("row", row),
        **{name: record.get(name) for name in names},
    )


def exact(store: VectorStore) -> Find:
    """`nearest_rows` of a store."""
    return lambda queries_QD, top: nearest_rows(store, queries_QD=queries_QD, top=top)


def check_queries(queries_QD: Vectors, *, width: int, top: int) -> Vectors:
    """The queries (Q, D) at unit length. `BadInput` if nothing is asked for, or a query has another
    width, or a number that is not finite."""
    if isinstance(top, bool) or not isinstance(top, int | np.integer) or top < 1:
        raise BadInput(f"top={top!r}: ask for at least one hit")
    if queries_QD.ndim != 2 or (queries_QD.shape[1] != width and width):
        raise BadInput(f"queries of {queries_QD.shape}: give some of {width} numbers each, (Q, D)")
    if (broken := np.flatnonzero(~np.isfinite(queries_QD).all(axis=1))).size:
        raise BadInput(f"query {broken[0]}: its vector is not finite")
    return unit_length(queries_QD)


def nearest_rows(store: VectorStore, *, queries_QD: Vectors, top: int) -> Found:
    """The cosines (Q, K) and the rows (Q, K) of the corpus that `nearest` describes. `BadInput` for
    what `check_queries` refuses."""
    query = check_queries(queries_QD, width=store.width, top=top)
    best: list[Found] = [
        (np.zeros(0, dtype=np.float32), np.zeros(0, dtype=np.int64)) for _ in query
    ]
    floor_Q = np.full(len(query), -np.inf, dtype=np.float32)
    for unit, vectors_RD in store.blocks():
        score_QR = query @ vectors_RD.T
        score_QR *= 1 / np.maximum(np.sqrt(np.vecdot(vectors_RD, vectors_RD)), 1e-12)
        # Of equal cosines the first row stays, so only what is above the worst comes in: after a
        # few units that is next to nothing, and the time goes into the product alone.
        for q in np.flatnonzero(score_QR.max(axis=1) > floor_Q):
            places = np.flatnonzero(score_QR[q] > floor_Q[q])
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
