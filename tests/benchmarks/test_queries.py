"""BM25 beside its formula in plain Python, and queries that are made of passages."""

import math
import random

import pytest

from tests.benchmarks.real.bm25 import BM25, words
from tests.benchmarks.real.queries import MOST_CHARS, Passage, of_passages

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


def passages() -> list[Passage]:
    """Three articles of six passages, each on words of its own and some that it shares."""
    draw = random.Random(0)
    shared = [f"common{number}" for number in range(30)]
    made = []
    for article in range(3):
        for number in range(6):
            own = [f"rare{article}x{number}x{place}" for place in range(9)]
            sentences = [
                " ".join([*draw.sample(own, 3), *draw.sample(shared, 9)]).capitalize() + "."
                for _ in range(9)
            ]
            made.append(Passage(" ".join(sentences), article))
    return made


def test_a_query_comes_with_its_passage_and_one_of_another_article() -> None:
    known = {passage.text[:MOST_CHARS]: passage.article for passage in passages()}
    made = of_passages(passages())
    assert made == of_passages(passages()), "drawn by a seed"
    assert made != of_passages(passages(), seed=2)
    for row in made["keywords"]:
        assert set(row["query"].split()) <= set(words(row["positive"]))
        assert known[row["negative"]] != known[row["positive"]]
    for row in made["paragraphs"]:
        (source,) = [text for text in known if row["query"] in text]
        assert row["positive"].split() == source.replace(row["query"], "").split()
        assert known[row["negative"]] != known[source]
    assert {name: len(rows) for name, rows in made.items()} == {"paragraphs": 18, "keywords": 18}


def test_too_short_a_passage_gives_no_query() -> None:
    short = [Passage("A short one.", 9)]
    assert of_passages([*passages(), *short]) == of_passages(passages())
