"""Exact nearest neighbours by cosine, one unit of mapped vectors at a time.

Rows come from the exact search here or from an approximate `index`; `nearest` makes hits of them.

Shapes: Q queries, R rows of a unit, D width, K hits.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.base.errors import BadInput
from toolkit.encoding.formats import Vectors, unit_length
from toolkit.encoding.store import VectorStore

Found = tuple[NDArray[np.float32], NDArray[np.int64]]
Find = Callable[[Vectors, int], Found]
# A product may put a better row below the worst hit by so much. In fp32 a product of unit vectors
# is off by some 1e-6.
MARGIN = 1e-5
FEW = 256  # candidates, among which looking for equal vectors does not pay
NUMBERS_AT_ONCE = 2**20  # in fp64
LEAST_LENGTH, MOST_LENGTH = 1e-12, 1e15  # of vectors that fp32 multiplies well


@dataclasses.dataclass(frozen=True)
class Hit:
    """A row that was found. `row` is its number in the corpus, and `snippet` the beginning of its
    text, if the corpus is at hand. A chunk also has its number in the text and the characters from
    `begin` to `end` that it covers."""

    id: str
    title: str
    score: float
    row: int
    chunk: int | None = None
    begin: int | None = None
    end: int | None = None
    snippet: str | None = None

    def as_json(self) -> dict[str, Any]:
        """The fields that are known, for JSON."""
        return {key: value for key, value in dataclasses.asdict(self).items() if value is not None}


def nearest(
    store: VectorStore,
    *,
    queries_QD: Vectors,
    top: int,
    find: Find | None = None,
    every_chunk: bool = False,
) -> list[list[Hit]]:
    """The `top` documents of highest cosine for each query, best first; ties in corpus order. A
    document counts once, by its best chunk, unless `every_chunk` is set. `find` finds rows in the
    place of the exact search."""
    find = find or exact(store)
    depth, grouped = top, store.has_chunks and not every_chunk
    while True:
        scores_QK, rows_QK = find(queries_QD, depth)
        records = _records(store, rows=rows_QK)
        results = []
        for rows, scores in zip(rows_QK.tolist(), scores_QK.tolist(), strict=True):
            hits = [
                _hit(records[row], row=row, score=score)
                for row, score in zip(rows, scores, strict=True)
                if row >= 0
            ]
            best = {hit.row: hit for hit in reversed(hits)} if grouped else {}
            results.append([hit for hit in hits if best.get(hit.row, hit) is hit][:top])
        # Chunks of one document may fill the hits: ask for more rows, unless a row of -1 says that
        # an index has no more.
        short = [
            len(hits) < top and rows_K.min(initial=0) >= 0
            for hits, rows_K in zip(results, rows_QK, strict=True)
        ]
        if not any(short) or depth >= store.num_rows:
            return results
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
    """The exact search of a store (`nearest_rows`) as a `Find`."""
    return lambda queries_QD, top: nearest_rows(store, queries_QD=queries_QD, top=top)


def check_queries(queries_QD: Vectors, *, width: int, top: int) -> Vectors:
    """The queries (Q, D) at unit length. `BadInput` if `top` is below 1, or a query has another
    width than the store or a number that is not finite."""
    if isinstance(top, bool) or not isinstance(top, int | np.integer) or top < 1:
        raise BadInput(f"top={top!r}: ask for at least one hit")
    if queries_QD.ndim != 2 or (queries_QD.shape[1] != width and width):
        raise BadInput(f"queries of {queries_QD.shape}: give some of {width} numbers each, (Q, D)")
    if (broken := np.flatnonzero(~np.isfinite(queries_QD).all(axis=1))).size:
        raise BadInput(f"query {broken[0]}: its vector is not finite")
    return unit_length(queries_QD)


def nearest_rows(store: VectorStore, *, queries_QD: Vectors, top: int, start: int = 0) -> Found:
    """The cosines (Q, K) and rows (Q, K) of the nearest rows of each query, best first, among the
    units from the one that holds row `start` on. `BadInput` for what `check_queries` refuses.

    How a matrix product rounds a score depends on the place of the row and on what else is
    multiplied. So it only proposes rows, which `cosines` then ranks: equal vectors get equal
    scores, and a query scores the same alone and in a batch.
    """
    query = check_queries(queries_QD, width=store.width, top=top)
    best: list[Found] = [
        (np.zeros(0, dtype=np.float32), np.zeros(0, dtype=np.int64)) for _ in query
    ]
    floor_Q = np.full(len(query), -np.inf, dtype=np.float32)
    for unit, vectors_RD in store.blocks(start=start):
        score_QR = _products(query, vectors_RD)
        scored = _Unit(vectors_RD)
        # Of equal cosines the first row stays, so that only rows above the worst hit come in. After
        # a few units there are hardly any, and nearly all time goes into the product.
        for q in np.flatnonzero(score_QR.max(axis=1) > floor_Q - MARGIN):
            places = _candidates(score_QR[q], top=top, floor=float(floor_Q[q]))
            exact_K = scored.cosines(query[q], places=places)
            above = exact_K > floor_Q[q]
            scores = np.concatenate([best[q][0], exact_K[above]])
            rows = np.concatenate([best[q][1], places[above] + unit.start])
            best[q] = _best(scores, rows, top=top)
            if len(best[q][0]) == top:
                floor_Q[q] = best[q][0][-1]
    none: Found = (np.zeros((0, 0), dtype=np.float32), np.zeros((0, 0), dtype=np.int64))
    return (np.stack([s for s, _ in best]), np.stack([r for _, r in best])) if best else none


def cosines(left_KD: Vectors, right_KD: Vectors) -> Vectors:
    """The cosine (K,) of each row of `right_KD` with the same row of `left_KD`, or with one vector
    (D,); 0 where a vector is zero. Each is summed by itself in fp64, which holds all squares of
    fp32, so that it depends on its two vectors alone."""
    cosine_K = np.zeros(len(right_KD), dtype=np.float32)
    at_once = max(1, NUMBERS_AT_ONCE // max(1, right_KD.shape[1]))
    for start in range(0, len(right_KD), at_once):
        part = slice(start, start + at_once)
        left = (left_KD[part] if left_KD.ndim == 2 else left_KD).astype(np.float64)
        right = right_KD[part].astype(np.float64)
        # numpy adds along the last axis row by row; a product of BLAS does not.
        product_K = (left * right).sum(axis=-1)
        length_K = np.sqrt((left * left).sum(axis=-1)) * np.sqrt((right * right).sum(axis=-1))
        np.divide(product_K, length_K, out=product_K, where=length_K > 0)
        cosine_K[part] = product_K
    return cosine_K


class _Unit:
    """The vectors (R, D) of a unit. Among many candidates, equal vectors are multiplied once."""

    def __init__(self, vectors_RD: Vectors) -> None:
        self._vectors = vectors_RD

    def cosines(self, query_D: Vectors, *, places: NDArray[np.int64]) -> Vectors:
        """`cosines` of the vectors at these places (K,)."""
        if len(places) <= FEW:
            return cosines(query_D, self._vectors[places])
        first_K, number_K = np.unique(self._first_equal[places], return_inverse=True)
        return cosines(query_D, self._vectors[first_K])[number_K]

    @functools.cached_property
    def _first_equal(self) -> NDArray[np.int64]:
        """For each row (R,) the first row with the same vector."""
        first: dict[bytes, int] = {}
        return np.array(
            [
                first.setdefault(hashlib.blake2b(vector_D.tobytes()).digest(), row)
                for row, vector_D in enumerate(self._vectors)
            ],
            dtype=np.int64,
        )


def _products(query_QD: Vectors, vectors_RD: Vectors) -> Vectors:
    """Approximate cosines (Q, R), by a matrix product in fp32."""
    with np.errstate(over="ignore"):
        length_R = np.sqrt(np.vecdot(vectors_RD, vectors_RD))
    low_R = length_R < LEAST_LENGTH
    if not length_R.max(initial=0) < MOST_LENGTH or vectors_RD[low_R].any():
        # fp32 does not hold their squares.
        return query_QD @ unit_length(vectors_RD).T
    score_QR = query_QD @ vectors_RD.T
    score_QR *= 1 / np.maximum(length_R, LEAST_LENGTH)
    return score_QR


def _candidates(score_R: Vectors, *, top: int, floor: float) -> NDArray[np.int64]:
    """The places of all rows that may be among the `top` best and above `floor`, given scores that
    are off by at most half of the margin."""
    if len(score_R) > top and floor == -np.inf:
        floor = float(np.partition(score_R, -top)[-top])
    places = np.flatnonzero(score_R > floor - MARGIN)
    if len(places) > FEW + top:
        floor = max(floor, float(np.partition(score_R[places], -top)[-top]))
        places = places[score_R[places] > floor - MARGIN]
    return places


def _best(scores: NDArray[np.float32], rows: NDArray[np.int64], *, top: int) -> Found:
    if len(scores) > top:
        # All rows that equal the last one too, so that the order of rows decides ties.
        enough = np.flatnonzero(scores >= np.partition(scores, -top)[-top])
        scores, rows = scores[enough], rows[enough]
    order = np.argsort(-scores, kind="stable")[:top]
    return scores[order], rows[order]


def _records(store: VectorStore, *, rows: NDArray[np.int64]) -> dict[int, dict[str, Any]]:
    wanted = np.unique(rows[rows >= 0])
    return dict(zip(wanted.tolist(), store.facts(wanted).to_pylist(), strict=True))
