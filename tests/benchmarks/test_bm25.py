"""BM25 beside its formula in plain Python."""

import math

import pytest

from tests.benchmarks.real.bm25 import BM25, words

TEXTS = ["A cat sat; the cat slept.", "The dog sat.", "A long text on the dog's owner and a dog."]


def naive(query: str, text: str) -> float:
    """Robertson and Zaragoza 2009, equation 3.15, with k1 = 0.9 and b = 0.4."""
    lengths = [len(words(one)) for one in TEXTS]
    total = 0.0
    for word in words(query):
        holding = sum(word in words(one) for one in TEXTS)
        rarity = math.log(1 + (len(TEXTS) - holding + 0.5) / (holding + 0.5))
        times = words(text).count(word)
        norm = 1 - 0.4 + 0.4 * len(words(text)) / (sum(lengths) / len(lengths))
        total += rarity * times / (times + 0.9 * norm)
    return total


@pytest.mark.parametrize("query", ["cat", "The dog", "dog dog owner", "A zebra", ""])
def test_bm25_is_its_formula(query: str) -> None:
    found = BM25(TEXTS).scores(query)
    assert found.tolist() == pytest.approx([naive(query, text) for text in TEXTS])
