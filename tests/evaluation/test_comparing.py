"""Paired differences and their intervals, beside scipy's bootstrap."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import bootstrap

from toolkit.base.errors import BadInput
from toolkit.evaluation.comparing import agreements, compare, paired_difference


def test_the_interval_is_that_of_scipys_paired_bootstrap() -> None:
    rng = np.random.default_rng(0)
    before = rng.random(150)
    after = np.clip(before + rng.normal(0.05, 0.2, size=150), 0, 1)
    found = paired_difference(before, after)
    theirs = bootstrap(
        (after - before,), np.mean, n_resamples=9999, method="percentile", rng=rng
    ).confidence_interval
    assert found.mean == pytest.approx(float((after - before).mean()))
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=0.004)
    assert paired_difference(before, before).high == 0.0


def part(folder: Path, encoder: str, scores: dict[str, float]) -> None:
    path = folder / "parts" / encoder / "law.json"
    path.parent.mkdir(parents=True)
    queries = {
        name: {"query": name, "score": score, "first": [], "relevant": []}
        for name, score in scores.items()
    }
    path.write_text(json.dumps({"scores": {}, "facts": {}, "queries": queries}))


def test_only_queries_that_both_have_are_compared(tmp_path: Path) -> None:
    part(tmp_path, "a", {"q1": 0.5, "q2": 1.0, "old": 0.0})
    part(tmp_path, "b", {"q2": 0.5, "q1": 0.75, "new": 1.0})
    (found,) = compare(tmp_path, before="a", after="b")
    assert [change.after["query"] for change in found.changes] == ["q2", "q1"]
    assert found.difference.mean == pytest.approx(-0.125)
    assert compare(tmp_path, before="a", after="c") == []


def test_a_damaged_part_is_named(tmp_path: Path) -> None:
    part(tmp_path, "a", {"q1": 0.5})
    part(tmp_path, "b", {"q1": 0.5})
    path = tmp_path / "parts" / "b" / "law.json"
    path.write_text(path.read_text().replace('"score": 0.5', '"score": "much"'))
    with pytest.raises(BadInput, match=r"law\.json: is damaged or not ours"):
        compare(tmp_path, before="a", after="b")


def scored(folder: Path, ranker: str, *, corpus: str = "c", **main: float) -> None:
    for task, score in main.items():
        path = folder / "parts" / ranker / f"{task}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        facts = {"main": "nDCG@10"}
        content = {"scores": {"nDCG@10": score, "R@100": 0.5}, "facts": facts, "corpus": corpus}
        path.write_text(json.dumps(content))


def test_two_sets_of_queries_agree_or_name_what_they_order_otherwise(tmp_path: Path) -> None:
    scored(tmp_path, "BM25", people=0.4, questions=0.5)
    scored(tmp_path, "before", people=0.2, questions=0.3)
    scored(tmp_path, "after", people=0.6, questions=0.4)
    scored(tmp_path, "after + BM25", people=0.7, questions=0.5)
    scored(tmp_path, "other", corpus="d", people=0.0, questions=0.9)
    names = ["BM25", "before", "after", "after + BM25", "other", "absent"]
    (found,) = agreements(tmp_path, rankers=names)
    assert found.tasks == ("people", "questions")
    assert found.rankers == tuple(names[:4])
    # Of six pairs the questions see no difference in one; of five, both agree on four.
    assert found.reversed == (("after", "BM25"),)
    assert found.num_pairs == 6
    assert found.tau == pytest.approx((4 - 1) / (6 * 5) ** 0.5)


def test_two_rankers_or_two_corpora_say_nothing(tmp_path: Path) -> None:
    for name in ("a", "b"):
        scored(tmp_path, name, questions=0.5, people=0.4)
    assert agreements(tmp_path, rankers=["a", "b"]) == []
    names = ["a", "b", "c"]
    scored(tmp_path, "c", questions=0.5)
    for name in names:
        scored(tmp_path, name, corpus="d", people=0.4)
    assert agreements(tmp_path, rankers=names) == []
    for name in names:
        scored(tmp_path, name, people=0.4)
    assert len(agreements(tmp_path, rankers=names)) == 1
    path = tmp_path / "parts" / "c" / "people.json"
    path.write_text(json.dumps({"scores": {}, "facts": {}}))  # of an older version
    assert agreements(tmp_path, rankers=names) == []
