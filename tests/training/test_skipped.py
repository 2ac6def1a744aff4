"""A step whose loss or gradient is not finite is skipped by all ranks, counted, and named."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import run, torchrun
from tests.light import LIGHT
from tests.training.skipping import Spoiled
from toolkit import train
from toolkit.training.checkpoint import load_newest
from toolkit.training.loop import Step, Trainer

Door = Callable[..., str]
CASES = ["mntp-few:1:gradient", "simcse-cached-few:2:loss", "mntp-few:3:loss"]
CASES += ["mntp-few:3_offload:gradient", "simcse-cached-few:0:gradient"]
CASES += ["mntp-full:3:gradient", "mntp-full:0:loss"]


def test_a_skipped_step_leaves_no_trace_on_any_rank(shards: Path, tiny_model: Path) -> None:
    script = ["tests/training/skipping.py", str(tiny_model), str(shards)]
    run([*torchrun(2), *script, *CASES])


@pytest.mark.parametrize(
    ("skipped", "stage"), [(1, 3), *((0, stage) for stage in range(4)), (0, "3_offload")]
)
def test_a_run_with_a_skipped_step_goes_on_as_if_it_had_not_stopped(
    skipped: int,
    stage: int | str,
    shards: Path,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """AdamW's own count of steps is one less than the run's: its bias correction shows it. Before
    the first step that was taken it has no state at all."""
    do_step = Trainer.do_step

    def spoil(self: Trainer, step: int, **rest: Any) -> Step:
        if step == skipped:
            spoiled: Any = Spoiled(self.objective, how="gradient", rank=0)
            self = dataclasses.replace(self, objective=spoiled)
        return do_step(self, step, **rest)

    monkeypatch.setattr(Trainer, "do_step", spoil)
    arguments = ["tiny_mntp", f"data.train={shards}", f"model.base={tiny_model}", *LIGHT]
    arguments.append(f"deepspeed.config=zero{stage}")
    for name, pieces in (("whole", [4]), ("pieces", [skipped + 1, 3, 4])):
        for steps in pieces:
            assert (
                train.main([*arguments, f"run_dir={tmp_path / name}", f"train.steps={steps}"]) == 0
            )
    whole, pieces_ = load_newest(tmp_path / "whole"), load_newest(tmp_path / "pieces")
    assert whole and pieces_ and whole.skipped_steps == pieces_.skipped_steps == 1
    for name, value in whole.weights.items():
        assert torch.equal(value, pieces_.weights[name]), name


def test_a_run_that_diverges_ends_with_its_reason_and_the_samples(
    door: Door, shards: Path, tiny_model: Path, tmp_path: Path
) -> None:
    """A rate of 1e30 makes the weights infinite in the first step: all after it are skipped."""
    arguments = ["tiny_mntp", f"data.train={shards}", f"model.base={tiny_model}"]
    arguments += [f"run_dir={tmp_path}", "train.lr=1e30", "train.warmup_steps=0"]
    arguments += ["train.max_skipped_steps=2", "train.save_every_steps=1", "train.steps=9"]
    printed = door("train", *arguments, code=1)
    assert "error: " in printed and "3 steps had a loss or gradient that is NaN" in printed
    assert "Traceback" not in printed
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").open()]
    assert [row["skipped_steps"] for row in rows] == [0, 1, 2, 3]
    assert np.isfinite(rows[0]["loss"]) and rows[1]["loss"] is None
    skipped = [json.loads(line) for line in (tmp_path / "skipped.jsonl").open()]
    assert [row["step"] for row in skipped] == [2, 3, 4]
    assert all(len(row["samples"]) == 8 for row in skipped)
    assert skipped[0]["samples"][0].startswith("shard-00000.parquet, rows ")
    newest = load_newest(tmp_path)
    assert newest and (newest.step, newest.skipped_steps) == (3, 2)
    # What it has saved is of no use, and says so.
    printed = door("train", *arguments[:-3], code=2)
    assert "output is NaN or infinite" in printed
