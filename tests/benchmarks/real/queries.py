"""Queries that are made of passages alone, each with the passage that answers it and one that only
looks as if it did.

A sentence, and its paragraph without it (the inverse cloze task of Lee et al., ACL 2019). The words
that distinguish a passage, and the passage. The negative is one of the best passages of other
articles by BM25 (as of Karpukhin et al., EMNLP 2020).

Shapes: N passages, W words.
"""

import random
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer

from tests.benchmarks.real.bm25 import BM25
from toolkit.text.sentences import split_sentences

LEAST_CHARS, MOST_CHARS = 250, 700  # of a passage
LEAST_REST, LEAST_SENTENCE = 200, 20  # characters of a passage without its sentence, and of that
LEAST_WORDS, MOST_WORDS = 3, 7  # of a query of words
NUM_BEST = 5  # a negative is drawn from so many
NUM_QUERIES = 1300  # of each kind
WORD = r"(?u)\b[^\W\d][\w-]{2,}\b"


class Passage(NamedTuple):
    """A text, and the number of its article."""

    text: str
    article: int


Row = dict[str, str]


def of_passages(passages: Iterable[Passage], *, seed: int = 1) -> dict[str, list[Row]]:
    """`NUM_QUERIES` rows of each kind, drawn from all passages that are long enough."""
    kept = [
        Passage(passage.text[:MOST_CHARS], passage.article)
        for passage in passages
        if len(passage.text) >= LEAST_CHARS
    ]
    draw = random.Random(seed)
    kinds = {"paragraphs": list(_sentences(kept, draw)), "keywords": list(_keywords(kept, draw))}
    miner = _Miner(kept, draw)
    return {
        name: [
            {"query": query, "positive": positive, "negative": miner.negative(query, article)}
            for query, (positive, article) in draw.sample(rows, min(NUM_QUERIES, len(rows)))
        ]
        for name, rows in kinds.items()
    }


def _sentences(passages: Iterable[Passage], draw: random.Random) -> Iterator[tuple[str, Passage]]:
    for text, article in passages:
        sentences = split_sentences(text)
        number = draw.randrange(max(1, len(sentences)))
        rest = " ".join(sentences[:number] + sentences[number + 1 :])
        if len(rest) >= LEAST_REST and len(sentences[number]) >= LEAST_SENTENCE:
            yield sentences[number], Passage(rest, article)


def _keywords(passages: list[Passage], draw: random.Random) -> Iterator[tuple[str, Passage]]:
    """The words of the largest TF-IDF, in the order of the passage."""
    vectorizer = TfidfVectorizer(stop_words="english", token_pattern=WORD)
    weight_NW = vectorizer.fit_transform([passage.text for passage in passages]).tocsr()
    words = vectorizer.get_feature_names_out()
    for number, passage in enumerate(passages):
        row = slice(*weight_NW.indptr[number : number + 2])
        largest = np.argsort(-weight_NW.data[row])[: draw.randint(LEAST_WORDS, MOST_WORDS)]
        best = [words[column] for column in weight_NW.indices[row][largest]]
        yield " ".join(sorted(best, key=passage.text.lower().find)), passage


class _Miner:
    def __init__(self, passages: list[Passage], draw: random.Random) -> None:
        self._passages, self._draw = passages, draw
        self._article_N = np.array([passage.article for passage in passages])
        self._scored = BM25([passage.text for passage in passages])

    def negative(self, query: str, article: int) -> str:
        score_N = self._scored.scores(query)
        score_N[self._article_N == article] = -1.0
        best = np.argsort(-score_N, kind="stable")[:NUM_BEST]
        return self._passages[int(best[self._draw.randrange(NUM_BEST)])].text
