"""The study's own arithmetic: its bootstrap, its digests, the items that it keeps."""

import base64
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from tests.benchmarks.bench_real import Run, amounts, grid, states
from tests.benchmarks.real.inputs import natural
from tests.benchmarks.real.report import (
    other_table,
    paired_bootstrap,
    read_results,
    state_table,
)
from tests.benchmarks.real.scoring import BITS


def test_the_interval_of_a_mean_is_that_of_its_standard_error() -> None:
    random = np.random.default_rng(1)
    first = random.normal(0.3, 0.1, 4000)
    second = first + random.normal(0.02, 0.2, 4000)
    mean, low, high = paired_bootstrap([(first, second)])
    error = float((second - first).std() / 4000**0.5)
    assert mean == pytest.approx(float((second - first).mean()))
    assert (low, high) == (
        pytest.approx(mean - 1.96 * error, abs=error / 4),
        pytest.approx(mean + 1.96 * error, abs=error / 4),
    )


def test_with_grades_the_difference_is_that_of_rank_correlations() -> None:
    random = np.random.default_rng(2)
    grades = random.integers(0, 6, 500).astype(float)
    first, second = (grades + random.normal(0, noise, 500) for noise in (8.0, 2.0))
    mean, low, high = paired_bootstrap([(first, second)], grades_P=grades)
    wanted = spearmanr(second, grades).statistic - spearmanr(first, grades).statistic
    assert mean == pytest.approx(wanted)
    assert low < mean < high
    assert low > 0


def test_each_run_has_a_digest_of_its_own_that_all_settings_and_those_before_it_decide() -> None:
    every = [*states([1, 2, 3]), *grid(1), *amounts(1)]
    inputs = {"mntp": "text", "simcse": "text", "supervised": "pairs", "taught": "pairs, table"}
    inputs["taught twice"] = "pairs, glosses, table"
    digests = {run.digest(inputs) for run in every}
    assert len(digests) == len(every)
    (last,) = [run for run in states([1]) if run.state == "MNTP + SimCSE + supervised"]
    assert last.after
    assert last.after.after
    earlier = dataclasses.replace(last.after.after, settings=(("train.lr", "1"),))
    changed = dataclasses.replace(last, after=dataclasses.replace(last.after, after=earlier))
    other = {**inputs, "supervised": "other pairs"}
    assert changed.digest(inputs) != last.digest(inputs) != last.digest(other)
    assert every[0].digest(inputs) == every[0].digest(other), "it reads no pairs"
    (twice,) = [run for run in states([1]) if run.state.endswith("taught twice")]
    assert twice.teacher
    tables = {**inputs, "taught": "pairs, other table"}
    assert twice.digest(inputs) != twice.digest(tables), "its teacher has learnt otherwise"
    assert dataclasses.replace(twice, teacher=None).digest(inputs) not in digests


def test_tables_are_made_from_committed_scores_alone(tmp_path: Path) -> None:
    bits = base64.b64encode(np.packbits(np.array([True, False, True]))).decode()
    for seed, value in ((1, 0.5), (2, 0.7)):
        tasks = {
            "STS-B": {"scores": {"Spearman": value}, "items": {"cosine": "0.1 0.25"}},
            "EWT": {
                "scores": {"accuracy": 0.25, "accuracy, shifted": 0.5},
                "items": {"accuracy": f"{BITS}{bits}"},
            },
        }
        row = {"state": "MNTP", "seed": seed, "tasks": tasks}
        (tmp_path / f"{seed}.json").write_text(json.dumps(row))
    results = read_results(tmp_path)
    assert "| MNTP | 2 | 0.600 ± 0.141 |" in state_table(results)
    assert other_table(results) == ""
    assert results[0].items("EWT", "accuracy")[:3].tolist() == [1, 0, 1]
    assert results[0].items("STS-B", "Spearman").tolist() == [0.1, 0.25]
    assert not Run("causal", "causal").trains


def test_text_whose_tokens_stand_apart_is_read_as_people_write_it() -> None:
    told = "he did n't like '' Poltergeist '' ( 1982 ) , a well - known film of 1 @,@ 000 scenes ."
    assert (
        natural(told) == 'he didn\'t like "Poltergeist" (1982), a well-known film of 1,000 scenes.'
    )
