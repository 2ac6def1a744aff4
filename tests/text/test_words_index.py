"""BM25 beside its formula in plain Python, and what counts as a word."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest

from toolkit.text import bm25
from toolkit.text.bm25 import NO_ROW, Bm25, words

SPLIT = {
    "a": ["the", "cat", "sat", "the", "cat", "slept"],
    "b": ["the", "dog", "sat"],
    "c": ["a", "long", "text", "on", "the", "dog", "s", "owner", "and", "a", "dog"],
    "empty": [],
}
TEXTS = [
    "The cat sat; the CAT slept.",
    "The dog sat.",
    "A long text on the dog's owner and a dog!",
    " ... ",
]


def naive(query: list[str], *, k1: float, b: float) -> list[float]:
    """Robertson and Zaragoza 2009, equation 3.15, with the rarity that Lucene gives to words."""
    mean_length = sum(map(len, SPLIT.values())) / len(SPLIT)
    scores = []
    for text in SPLIT.values():
        total = 0.0
        for word in query:
            num_holding = sum(word in other for other in SPLIT.values())
            rarity = math.log(1 + (len(SPLIT) - num_holding + 0.5) / (num_holding + 0.5))
            times = text.count(word)
            total += rarity * times / (times + k1 * (1 - b + b * len(text) / mean_length))
        scores.append(total)
    return scores


@pytest.mark.parametrize("query", ["cat", "the dog", "dog dog owner", "a zebra", "zebra", ""])
@pytest.mark.parametrize("constants", [(1.2, 0.75), (0.9, 0.4)])
def test_the_scores_are_those_of_the_formula(query: str, constants: tuple[float, float]) -> None:
    k1, b = constants
    found = Bm25(TEXTS, k1=k1, b=b).scores(query)
    assert found.tolist() == pytest.approx(naive(query.split(), k1=k1, b=b), rel=1e-6)


def test_the_usual_constants_are_those_of_lucene() -> None:
    expected = naive(["dog"], k1=1.2, b=0.75)
    assert Bm25(TEXTS).scores("dog").tolist() == pytest.approx(expected, rel=1e-6)


def test_the_best_rows_come_first_and_equal_scores_in_the_order_of_rows() -> None:
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(["one", "two", "three"], size=4)) for _ in range(200)]
    found = Bm25(texts)
    for top in (1, 7, 200, 500):
        rows_QK, scores_QK = found.search(["one two", "three"], top=top)
        for query, rows, scores in zip(["one two", "three"], rows_QK, scores_QK, strict=True):
            every = found.scores(query)
            expected = [r for r in sorted(range(200), key=lambda r: (-every[r], r)) if every[r]]
            assert [row for row in rows if row != NO_ROW] == expected[:top]
            assert scores.tolist() == [every[row] if row != NO_ROW else 0 for row in rows]


def test_a_text_without_any_word_of_the_query_is_not_found() -> None:
    rows_QK, scores_QK = Bm25(TEXTS).search(["slept", "zebra", ""], top=3)
    assert rows_QK.tolist() == [[0, -1, -1], [-1, -1, -1], [-1, -1, -1]]
    assert (scores_QK > 0).tolist() == [[True, False, False], [False] * 3, [False] * 3]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("texts", [[], ["", "?!"]])
def test_texts_without_words_are_an_index_that_finds_nothing(texts: list[str]) -> None:
    rows_QK, scores_QK = Bm25(texts).search(["cat", ""], top=5)
    assert rows_QK.shape == scores_QK.shape == (2, len(texts))
    assert (rows_QK == NO_ROW).all() and not scores_QK.any()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The x86-64's snake_case", ["the", "x86", "64", "s", "snake", "case"]),
        ("E\u0301cole ÉCOLE", ["école", "école"]),  # composed or not
        ("ＦＵＬＬ ﬁn", ["full", "fin"]),  # of full width; a ligature
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),  # the vowels are marks, not letters
        ("漢字の検索", ["漢字", "字の", "の検", "検索"]),
        ("コーヒー", ["コー", "ーヒ", "ヒー"]),
        ("検 x検x", ["検", "x", "検", "x"]),
        ("ไทย 한국어", ["ไท", "ทย", "한국", "국어"]),
        ("", []),
    ],
)
def test_words_of_any_script(text: str, expected: list[str]) -> None:
    assert words(text) == expected


def test_jax_is_not_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU it would take most of the memory of the encoder that is scored beside BM25."""
    for name in ("jax", "numba"):
        (tmp_path / f"{name}.py").write_text("raise AssertionError(__name__)\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [one for one in sys.modules if one.split(".")[0] in ("bm25s", "jax", "numba")]:
        monkeypatch.delitem(sys.modules, name)
    bm25._library.cache_clear()
    assert bm25._library() is sys.modules["bm25s"]
    assert not {"jax", "numba"} & set(sys.modules)
    assert Bm25(["a cat"]).search(["cat"], top=1)[0].tolist() == [[0]]
    bm25._library.cache_clear()
