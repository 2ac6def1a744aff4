"""Pairs that a teacher finds: a sentence, one of its nearest, and one that is less near.

Neither is known to be right; the teacher's similarities say how near each is, and distillation
teaches that.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from toolkit.encoding.formats import unit_length
from toolkit.text.shards import open_shards

NUM_QUERIES = 3200
LEAST_CHARS, MOST_CHARS = 40, 250
MOST_COSINE = 0.95  # above it nearly the same words
NEAREST, LESS_NEAR = range(2), range(8, 40)  # of which one is drawn
AT_ONCE = 400  # queries


def neighbours(
    shards: Path, *, embed: Callable[[Sequence[str]], NDArray[np.float32]]
) -> Iterator[dict[str, str]]:
    """Pairs with one negative, drawn from all sentences of the shards."""
    sentences = sorted(set(_sentences(shards)))
    vectors_ND = unit_length(embed(sentences))
    draw = random.Random(0)
    queries = draw.sample(range(len(sentences)), NUM_QUERIES)
    for start in range(0, len(queries), AT_ONCE):
        some = queries[start : start + AT_ONCE]
        for query, cosine_N in zip(some, vectors_ND[some] @ vectors_ND.T, strict=True):
            cosine_N[query] = -1
            nearest = np.argsort(-cosine_N, kind="stable")[: 2 * LESS_NEAR.stop]
            nearest = nearest[cosine_N[nearest] < MOST_COSINE]
            yield {
                "query": sentences[query],
                "positive": sentences[nearest[draw.choice(NEAREST)]],
                "negative": sentences[nearest[draw.choice(LESS_NEAR)]],
            }


def _sentences(shards: Path) -> Iterator[str]:
    opened = open_shards(shards)
    for row in range(opened.num_rows):
        for number in range(int(opened.num_sentences[row])):
            text = opened.sentence(row, number)
            if LEAST_CHARS <= len(text) <= MOST_CHARS:
                yield text
