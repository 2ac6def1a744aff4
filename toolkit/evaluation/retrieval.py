"""Retrieval: do the right documents come first? Shapes: Q queries, N documents."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from toolkit.files import BadInput


@dataclasses.dataclass(frozen=True)
class Judged:
    """Queries with the titles of their right documents."""

    queries: list[str]
    relevant: list[set[str]]


def read_queries(path: Path) -> Judged:
    """Read JSON lines {"query": text, "relevant": [title, ...]}; `BadInput` names a bad line."""
    queries, relevant = [], []
    try:
        with path.open(encoding="utf-8") as handle:  # not splitlines: a text may hold U+2028
            lines = list(handle)
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: cannot be read ({error})") from error
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            query, titles = row["query"], row["relevant"]
        except (ValueError, KeyError, TypeError):
            query, titles = None, None
        # A text for a list would be a set of letters, and no title at all a division by zero.
        if not isinstance(query, str) or not isinstance(titles, list) or not titles:
            hint = '{"query": "...", "relevant": ["title"]}'
            raise BadInput(f"{path}, line {number}: is not like {hint}")
        queries.append(query)
        relevant.append({str(title) for title in titles})
    if not queries:
        raise BadInput(f"{path}: no queries")
    return Judged(queries, relevant)


def recall_at(
    scores_QN: NDArray[np.float32], *, titles: Sequence[str], judged: Judged, top: int
) -> float:
    """The mean share of each query's right documents among its `top` first ones.

    Raises `BadInput` when a judgement names no document: it would count as a miss in silence.
    """
    known = set(titles)
    if strange := [t for relevant in judged.relevant for t in relevant if t not in known]:
        raise BadInput(f"judged title {strange[0]!r} is not in the corpus ({len(strange)} such)")
    order_QN = np.argsort(-scores_QN, axis=1, kind="stable")[:, :top]
    shares = [
        len({titles[int(n)] for n in row} & relevant) / len(relevant)
        for row, relevant in zip(order_QN, judged.relevant, strict=True)
    ]
    return float(np.mean(shares))
