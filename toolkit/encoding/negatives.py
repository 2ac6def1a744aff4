"""Hard negatives: the rows nearest to a query that do not answer it.

Knows vectors, scores and text hashes. Refuses to know where pairs are stored.

Shapes: Q queries, K nearest rows.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from toolkit.base.console import at_work
from toolkit.encoding.encoder import Encoder
from toolkit.encoding.formats import Vectors
from toolkit.encoding.search import cosines, nearest_rows
from toolkit.encoding.store import VectorStore
from toolkit.text.pairs import Pair, PairTask, text_hash

Ints = NDArray[np.int64]

ANSWER, TOO_NEAR, REPEATED = "answers the query", "nearer than the limit", "same text twice"


@dataclasses.dataclass(frozen=True)
class MiningRules:
    """Which of the `depth` nearest rows are negatives: not the first `skip`, and none whose cosine
    is above `max_ratio` times that of the positive. Such a row may be an answer that nobody marked
    (NV-Retriever, de Souza P. Moreira et al. 2024, "TopK-PercPos")."""

    num_negatives: int
    depth: int
    skip: int
    max_ratio: float


class Miner:
    """Finds negatives in an encoded corpus. `text_of` gives the text of a row, and `left_out`
    counts rows by the reason why they were no negatives."""

    def __init__(
        self,
        store: VectorStore,
        *,
        encoder: Encoder,
        text_of: Callable[[int], str],
        rules: MiningRules,
    ) -> None:
        self._store, self._encoder, self._text_of, self._rules = store, encoder, text_of, rules
        self.left_out: Counter[str] = Counter()

    def mine(
        self, pairs: Sequence[Pair], *, task: PairTask, batch: int
    ) -> Iterator[tuple[Pair, tuple[str, ...]]]:
        """Each pair of a data set with its negatives, the hardest first. The corpus is read once
        per `batch` pairs."""
        answers = answers_of(pairs)
        for start in range(0, len(pairs), batch):
            some = pairs[start : start + batch]
            of_query, of_document = map(
                self._encoder.before_text, (task.query_instruction, task.document_instruction)
            )
            with at_work("mine: embeds the next pairs and searches for their queries"):
                queries_QD = self._encoder.vectors_of(
                    [pair.query for pair in some], instruction=of_query
                )
                positives_QD = self._encoder.vectors_of(
                    [pair.positive for pair in some], instruction=of_document
                )
                scores_QK, rows_QK = nearest_rows(
                    self._store, queries_QD=queries_QD, top=self._rules.depth
                )
            cosine_Q = cosines(queries_QD, positives_QD)
            nearest = zip(some, scores_QK, rows_QK, cosine_Q * self._rules.max_ratio, strict=True)
            for pair, scores_K, rows_K, limit in nearest:
                # The corpus may also hold the query itself, as with questions in a forum.
                known = {pair.query_hash, *answers[pair.query_hash]}
                yield pair, self._choose(rows_K, scores_K, known=known, limit=float(limit))

    def _choose(
        self, rows_K: Ints, scores_K: Vectors, *, known: set[int], limit: float
    ) -> tuple[str, ...]:
        chosen: dict[int, str] = {}
        skip = self._rules.skip
        for row, score in zip(rows_K[skip:].tolist(), scores_K[skip:].tolist(), strict=True):
            if len(chosen) == self._rules.num_negatives:
                break
            if score > limit:
                self.left_out[TOO_NEAR] += 1
                continue
            text = self._text_of(row)
            digest = text_hash(text)
            # By text, not by row: the corpus may hold the same text several times.
            if digest in known or digest in chosen:
                self.left_out[ANSWER if digest in known else REPEATED] += 1
            else:
                chosen[digest] = text
        return tuple(chosen.values())


def answers_of(pairs: Sequence[Pair]) -> dict[int, frozenset[int]]:
    """The hashes of all positives of each query, by the query's hash."""
    answers: dict[int, set[int]] = {}
    for pair in pairs:
        answers.setdefault(pair.query_hash, set()).add(pair.positive_hash)
    return {query: frozenset(positives) for query, positives in answers.items()}
