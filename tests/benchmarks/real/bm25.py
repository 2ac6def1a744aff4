"""Robertson's BM25 over lower-case words, with the constants of Anserini.

Shapes: N texts, W words.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csc_array
from sklearn.feature_extraction.text import CountVectorizer

K1, B = 0.9, 0.4


def words(text: str) -> list[str]:
    """The runs of letters and digits, in lower case."""
    return "".join(one if one.isalnum() else " " for one in text.lower()).split()


class BM25:
    """The scores of texts for a query."""

    def __init__(self, texts: Sequence[str]) -> None:
        vectorizer = CountVectorizer(analyzer=words)
        counts_NW = vectorizer.fit_transform(texts).tocoo()
        self._word_numbers: dict[str, int] = vectorizer.vocabulary_
        num_texts = counts_NW.shape[0]
        length_N = np.asarray(counts_NW.sum(axis=1)).ravel()
        relative_N = length_N / length_N.mean()
        holding_W = np.bincount(counts_NW.col, minlength=counts_NW.shape[1])
        rarity_W = np.log(1 + (num_texts - holding_W + 0.5) / (holding_W + 0.5))
        saturated = counts_NW.data + K1 * (1 - B + B * relative_N[counts_NW.row])
        weights = rarity_W[counts_NW.col] * counts_NW.data / saturated
        place = (counts_NW.row, counts_NW.col)
        self._weight_NW = csc_array((weights, place), shape=counts_NW.shape)

    def scores(self, query: str) -> NDArray[np.float64]:
        """The score (N,) of each text; a word that the query repeats counts each time."""
        score_N = np.zeros(self._weight_NW.shape[0])
        for word, times in Counter(words(query)).items():
            if (number := self._word_numbers.get(word)) is not None:
                one = slice(*self._weight_NW.indptr[number : number + 2])
                score_N[self._weight_NW.indices[one]] += times * self._weight_NW.data[one]
        return score_N
