"""Finding texts by their words: BM25 (Robertson and Zaragoza 2009), in the form of Lucene.

Knows what a word is and which texts hold it. No vectors and no models, and nothing of stop words or
word stems: those belong to one language, and this reads any.

A word is a run of letters and digits, in lower case and with its accents, after Unicode's
normalisation NFKC. A run of a script that is written without spaces (Chinese, Japanese, Thai, Lao,
Khmer, Burmese), or whose words carry their particles (Korean), becomes its pairs of neighbouring
characters (`unspaced`): the run as a whole would stand in hardly any other text.

Shapes: Q queries, K rows for each, N texts.
"""

import functools
import logging
import sys
from array import array
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from unicodedata import normalize

import numpy as np
import regex
from numpy.typing import NDArray

from toolkit.text.unspaced import UNSPACED, pairs

# How fast a repeated word stops counting, and how much a long text pays for its length: the
# defaults of Lucene, and so of most search engines. On BoolQ they are better than those of Anserini
# (0.9, 0.4), which most papers have: nDCG@10 0.796 and 0.787.
K1, B = 1.2, 0.75
# In digests: words by another rule would be other words.
WORDS = "runs of letters and digits, or pairs/1"
# What stands in place of a row where no further text has a word of the query.
NO_ROW = -1

_PARTS = {"data": np.float32, "indices": np.int32, "indptr": np.int64}
_RUNS = regex.compile(
    rf"([{UNSPACED}]+)|[\p{{L}}\p{{N}}--[{UNSPACED}]][\p{{L}}\p{{N}}\p{{M}}--[{UNSPACED}]]*",
    regex.V1,
)


def words(text: str) -> list[str]:
    """The words of a text, in their order."""
    found: list[str] = []
    for run in _RUNS.finditer(normalize("NFKC", text).lower()):
        found += [run[0]] if run[1] is None else pairs(run[1])
    return found


class Bm25:
    """An index of the words of texts."""

    def __init__(self, texts: Iterable[str], *, k1: float = K1, b: float = B) -> None:
        self._word_numbers: dict[str, int] = {}
        numbers = self._word_numbers
        # Four bytes a word: a list of Python's numbers would take twice as much.
        texts_words = [
            array("i", [numbers.setdefault(word, len(numbers)) for word in words(text)])
            for text in texts
        ]
        self.num_texts = len(texts_words)
        # The library divides by the mean length, which is 0 without any word.
        self._index: Any = None
        if numbers:
            self._index = _library().BM25(k1=k1, b=b, method="lucene")
            known = (texts_words, dict(numbers))
            self._index.index(known, create_empty_token=False, show_progress=False)

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> "Bm25":
        """The index that gave these `arrays`. Raises `LookupError` or `ValueError` for others."""
        made = cls([])
        made.num_texts = int(arrays["num_texts"][0])
        known = arrays["words"].tobytes().decode().split("\n")
        made._word_numbers = {word: number for number, word in enumerate(known) if word}
        parts = {name: arrays[name] for name in _PARTS}
        num_words, last = len(made._word_numbers), len(parts["data"])
        ends = parts["indptr"]
        if len(parts["indices"]) != last or (len(ends), ends[-1:].sum()) != (num_words + 1, last):
            raise ValueError(f"{num_words} words, and scores of others")
        if num_words:
            made._index = _library().BM25(method="lucene")
            made._index.scores = {**parts, "num_docs": made.num_texts}
            made._index.nonoccurrence_array = None
        return made

    def arrays(self) -> dict[str, NDArray[Any]]:
        """All that the index consists of, to be kept in a file: its words, in UTF-8 and one per
        line, and their scores in texts by columns (CSC)."""
        known = "\n".join(self._word_numbers).encode()
        empty = {name: np.zeros(int(name == "indptr"), kind) for name, kind in _PARTS.items()}
        found = self._index.scores if self._index else empty
        parts = {name: np.ascontiguousarray(found[name], kind) for name, kind in _PARTS.items()}
        return {
            "words": np.frombuffer(known, np.uint8),
            "num_texts": np.array([self.num_texts], np.int64),
            **parts,
        }

    def scores(self, query: str) -> NDArray[np.float32]:
        """The score (N,) of each text; a word that the query repeats counts each time."""
        known = [self._word_numbers[word] for word in words(query) if word in self._word_numbers]
        if self._index is None or not known:
            return np.zeros(self.num_texts, np.float32)
        scores_N: NDArray[np.float32] = self._index.get_scores_from_ids(known)
        return scores_N

    def search(
        self, queries: Sequence[str], *, top: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The best rows (Q, K) of texts and their scores, best first, K = min(top, N).

        Equal scores come in the order of rows. A text without any word of the query is not found:
        where fewer than K are, the rest has NO_ROW (-1) and the score 0.
        """
        kept = min(top, self.num_texts)
        rows_QK = np.full((len(queries), kept), NO_ROW, np.int64)
        scores_QK = np.zeros((len(queries), kept), np.float32)
        for number, query in enumerate(queries):
            best, scores = _best(self.scores(query), kept)
            rows_QK[number, : len(best)] = best
            scores_QK[number, : len(best)] = scores
        return rows_QK, scores_QK


def _best(scores_N: NDArray[np.float32], top: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The `top` rows with the highest scores above 0; the library's own choice among equal ones is
    any.
    """
    found = np.flatnonzero(scores_N > 0)
    if 0 < top < len(found):
        least = np.partition(scores_N[found], len(found) - top)[len(found) - top]
        found = found[scores_N[found] >= least]
    order = np.argsort(-scores_N[found], kind="stable")[:top]
    rows = found[order].astype(np.int64)
    return rows, scores_N[rows]


@functools.cache
def _library() -> Any:
    """bm25s. When it is imported it looks for jax, and has it compute something: on a GPU jax then
    takes most of the memory. It looks for numba, too, which takes a second. It needs neither."""
    hidden = [name for name in ("jax", "numba") if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None: is not there
    try:
        import bm25s
    finally:
        for name in hidden:
            del sys.modules[name]
    logging.getLogger("bm25s").setLevel(logging.WARNING)  # of itself DEBUG, whatever others say
    return bm25s
