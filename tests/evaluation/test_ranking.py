"""Measures of a ranking: trec_eval's own code is the oracle, over every order of equal scores."""

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
import pytrec_eval
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from toolkit.evaluation.classes import PairTask
from toolkit.evaluation.ranking import Ranking, best_rows, equal_rows, ranking_of
from toolkit.evaluation.retrieval import Judged, RerankingTask, RetrievalTask
from toolkit.evaluation.task import Task

MEASURES = {"ndcg_cut_10", "ndcg_cut_3", "recall_3", "map", "recip_rank"}


def ours(scores: Sequence[float], grades: Sequence[int], *, missing: int = 0) -> Ranking:
    wanted = [grade for grade in grades if grade > 0] + [1] * missing
    return ranking_of(np.array(scores), grade_N=np.array(grades), wanted=wanted)


def found(ranking: Ranking) -> dict[str, float]:
    return {
        "ndcg_cut_10": ranking.ndcg(10),
        "ndcg_cut_3": ranking.ndcg(3),
        "recall_3": ranking.recall(3),
        "map": ranking.average_precision(),
        "recip_rank": ranking.reciprocal_rank(1000),
    }


def of_trec_eval(order: Sequence[int], grades: Sequence[int], *, missing: int) -> dict[str, float]:
    """The measures of documents in this order, best first."""
    run = {str(number): float(len(order) - place) for place, number in enumerate(order)}
    judged = {str(number): grade for number, grade in enumerate(grades)}
    judged |= {f"missing {number}": 1 for number in range(missing)}
    told: dict[str, float] = pytrec_eval.RelevanceEvaluator({"q": judged}, MEASURES).evaluate(
        {"q": run}
    )["q"]
    return told


ROWS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), min_size=1, max_size=6)


@settings(max_examples=60, deadline=None)
@given(rows=ROWS, missing=st.integers(0, 2))
def test_a_measure_is_its_mean_over_all_orders_of_equal_scores(
    rows: list[tuple[int, int]], missing: int
) -> None:
    scores, grades = zip(*rows, strict=True)
    if not any(grades) and not missing:
        return
    orders = [
        order
        for order in itertools.permutations(range(len(rows)))
        if all(scores[one] >= scores[two] for one, two in itertools.pairwise(order))
    ]
    told = [of_trec_eval(order, grades, missing=missing) for order in orders]
    for name, value in found(ours(scores, grades, missing=missing)).items():
        assert value == pytest.approx(np.mean([one[name] for one in told]), abs=1e-6), name


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_without_equal_scores_it_is_trec_evals(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores, grades = rng.permutation(300) / 7, rng.integers(-20, 4, size=300).clip(0)
    grades[0] = 1
    told = of_trec_eval([*np.argsort(-scores)], grades.tolist(), missing=1)
    for name, value in found(ours([*scores], [*grades], missing=1)).items():
        assert value == pytest.approx(told[name], abs=1e-6), name


def test_equal_rows_are_found() -> None:
    vectors = np.array([[1, 2], [3, 4], [1, 2], [0, 0], [3, 4]], dtype=np.float32)
    first, number = equal_rows(vectors)
    assert (first.tolist(), number.tolist()) == ([0, 1, 3], [0, 1, 0, 2, 1])


def test_the_best_rows_are_whole_groups() -> None:
    score_N = np.array([1, 3, 2, 2, 2, 0], dtype=np.float32)
    assert best_rows(score_N, depth=2).tolist() == [1, 2, 3, 4]
    assert best_rows(score_N, depth=1).tolist() == [1]
    assert best_rows(score_N, depth=9).tolist() == [0, 1, 2, 3, 4, 5]


class Constant:
    """An encoder that gives all queries one vector, and all documents another."""

    name, revision = "constant", ""

    def __init__(self, width: int) -> None:
        self.width = width

    def __call__(self, texts: Sequence[str], *, instructed: bool = True) -> NDArray[np.float32]:
        vector_D = np.random.default_rng([self.width, instructed]).normal(size=self.width)
        return np.tile(vector_D.astype(np.float32), (len(texts), 1))


def tasks(order: Sequence[int]) -> dict[str, Task]:
    """Five documents of 30 are right; files list them in this order, by names that tell it."""
    names = [f"{place:02d}" for place in range(30)]
    texts = [f"text {number}" for number in order]
    right = {names[place]: 1 for place, number in enumerate(order) if number < 5}
    good, bad = ([t for t in texts if (int(t[5:]) < 5) == kind] for kind in (True, False))
    matches = np.array([int(number < 5) for number in order])
    return {
        "retrieval": RetrievalTask(Judged({"1": "q"}, {"1": right}), names, texts),
        "reranking": RerankingTask(["q"], [good], [bad]),
        "pairs": PairTask(texts, texts, matches),
    }


@pytest.mark.parametrize("width", [3, 64, 255, 256, 4096])
def test_who_tells_nothing_apart_gets_what_chance_gets(width: int) -> None:
    """Whatever stands first in the files: of 30 documents 5 are right."""
    orders = [[*range(30)], [*range(29, -1, -1)], [*range(10, 30), *range(10)]]
    scores = [
        {
            f"{name} {key}": value
            for name, task in tasks(order).items()
            for key, value in task.scores(Constant(width)).items()
        }
        for order in orders
    ]
    assert scores[0] == pytest.approx(scores[1])
    assert scores[0] == pytest.approx(scores[2])
    assert scores[0]["retrieval recall@3"] == pytest.approx(3 / 30)
    assert scores[0]["pairs AP"] == pytest.approx(5 / 30)
    rng = np.random.default_rng(0)
    drawn = [
        found(ours(rng.permutation(30).tolist(), [1] * 5 + [0] * 25))["map"] for _ in range(4000)
    ]
    assert scores[0]["reranking MAP"] == pytest.approx(np.mean(drawn), abs=0.01)
