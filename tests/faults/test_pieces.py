"""A run in pieces equals the run in one: at every step, on the same ranks; and on others."""

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from tests.conftest import ROOT, free_port
from tests.forking.start import forked_python
from tests.slurm.test_jobs import CLOCKS
from toolkit.runs.records import read_metrics
from toolkit.training.checkpoint import Checkpoint, load_newest

STEPS = 5
SCRIPT = str(Path(__file__).with_name("many.py"))
KINDS = {
    "mntp": ["tiny_mntp"],
    "mntp full": ["tiny_mntp", "model.lora=null", "model.attention_dropout=0.1"],
    "simcse": ["tiny_simcse"],
    "simcse full": ["tiny_simcse", "model.lora=null"],
}


def train_all(
    runs: Sequence[tuple[int, list[str]]], *, folder: Path, shards: Path, model: Path
) -> None:
    """Each run on its number of ranks, one after another; a failure shows what was printed."""
    common = [f"data.train={shards}", f"model.base={model}", "train.save_every_steps=1000"]
    plan = [
        {"ranks": ranks, "port": free_port(), "arguments": [*arguments, *common]}
        for ranks, arguments in runs
    ]
    (folder / "plan.json").write_text(json.dumps(plan))
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    crew = [
        subprocess.Popen(
            [forked_python(), SCRIPT, str(rank), str(folder / "plan.json")],
            cwd=ROOT,
            env=environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(max(ranks for ranks, _ in runs))
    ]
    printed = [process.communicate(timeout=1500)[0] for process in crew]
    assert [process.returncode for process in crew] == [0] * len(crew), "\n".join(printed)[-6000:]


def last(run_dir: Path) -> Checkpoint:
    found = load_newest(run_dir)
    assert found
    return found


def timeless(run_dir: Path) -> list[dict[str, float]]:
    return [{k: v for k, v in row.items() if k not in CLOCKS} for row in read_metrics(run_dir)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_two_pieces_equal_one_wherever_they_part(
    kind: str, shards: Path, tiny_model: Path, tmp_path: Path
) -> None:
    """ZeRO-3 on two ranks, dropout on: every figure, weight and moment, tolerance 0."""
    runs = [(2, [*KINDS[kind], f"run_dir={tmp_path / 'whole'}", f"train.steps={STEPS}"])]
    for part in range(1, STEPS):
        given = [*KINDS[kind], f"run_dir={tmp_path / str(part)}"]
        runs += [(2, [*given, f"train.steps={steps}"]) for steps in (part, STEPS)]
    train_all(runs, folder=tmp_path, shards=shards, model=tiny_model)
    whole = last(tmp_path / "whole")
    for part in range(1, STEPS):
        pieces = last(tmp_path / str(part))
        assert timeless(tmp_path / str(part)) == timeless(tmp_path / "whole")
        for left, right in (
            (whole.weights, pieces.weights),
            *((whole.moments[name], pieces.moments[name]) for name in whole.moments),
        ):
            assert left.keys() == right.keys()
            assert all(torch.equal(left[name], right[name]) for name in left), part


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_number_of_ranks_and_the_stage_may_change(
    kind: str, shards: Path, tiny_model: Path, tmp_path: Path
) -> None:
    """1, 2, 4, 3 ranks under ZeRO-1, 2, 3, 0, without dropout, whose masks depend on the rank."""
    given = [*KINDS[kind], "train.global_batch_rows=12", "model.attention_dropout=0.0"]
    if "full" not in kind:
        given.append("model.lora.dropout=0.0")
    legs = [(1, 1, "zero1"), (2, 3, "zero2"), (4, 4, "zero3"), (3, 6, "zero0")]
    runs = [(1, [*given, f"run_dir={tmp_path / 'whole'}", "train.steps=6"])]
    runs += [
        (
            ranks,
            [
                *(*given, f"run_dir={tmp_path / 'changing'}"),
                *(f"train.steps={steps}", f"deepspeed.config={layout}"),
            ],
        )
        for ranks, steps, layout in legs
    ]
    for one in runs:  # each in new processes: DeepSpeed counts modules as long as a process lives
        train_all([one], folder=tmp_path, shards=shards, model=tiny_model)
    whole, changing = timeless(tmp_path / "whole"), timeless(tmp_path / "changing")
    assert [row["tokens"] for row in changing] == [row["tokens"] for row in whole]
    assert [row["loss"] for row in changing] == pytest.approx(
        [row["loss"] for row in whole], rel=1e-6
    )
    # Counts of the same masked tokens, or rows: other samples or masks would show.
    assert [row["accuracy"] for row in changing] == pytest.approx(
        [row["accuracy"] for row in whole], abs=1e-9
    )
