"""The next step's batch is made while a step computes: in order, one ahead, and the same."""

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import contents
from tests.slurm.test_jobs import timeless
from toolkit import train
from toolkit.runs.records import read_metrics
from toolkit.text.stream import Stream
from toolkit.training import loop
from toolkit.training.ahead import Ahead, Phases
from toolkit.training.loop import Trainer

LIGHT = ["train.global_batch_rows=4", "train.micro_batch_rows=2", "train.log_every_steps=1"]


def test_the_next_one_is_begun_when_one_is_taken() -> None:
    begun = [threading.Event() for _ in range(4)]
    may_end = threading.Event()

    def make(step: int) -> int:
        begun[step].set()
        assert step == 0 or may_end.wait(60)
        return 10 * step

    ahead = Ahead(make, steps=3)
    assert ahead.take(0) == 0
    # Here step 0 computes: what is read for step 1 is not waited for.
    assert begun[1].wait(60) and not begun[2].is_set()
    may_end.set()
    ahead.settle()
    assert not begun[2].is_set()  # one ahead, never more
    assert ahead.take(1) == 10 and ahead.take(2) == 20
    ahead.settle()
    assert not begun[3].is_set()  # there is no step 3


def test_any_step_may_be_the_first_one_and_none_is_made_twice() -> None:
    made: list[int] = []
    ahead = Ahead(lambda step: made.append(step) or step, steps=9)
    assert [ahead.take(step) for step in (5, 6, 7, 8)] == [5, 6, 7, 8]
    assert made == [5, 6, 7, 8]


def test_an_error_is_raised_where_its_step_begins() -> None:
    def make(step: int) -> int:
        if step == 1:
            raise OSError("the shard is gone")
        return step

    ahead = Ahead(make, steps=3)
    assert ahead.take(0) == 0
    ahead.settle()
    with pytest.raises(OSError, match="the shard is gone"):
        ahead.take(1)


class AtOnce(Ahead[Any]):
    """The same without a thread."""

    def _begin(self, step: int) -> None:
        pass


@pytest.mark.parametrize("kind", ["mntp", "simcse"])
def test_what_is_trained_is_what_would_be_trained_without(
    kind: str, shards: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = [f"tiny_{kind}", f"data.train={shards}", f"model.base={tiny_model}", *LIGHT]
    given += ["train.steps=4", "train.save_every_steps=3"]
    seen: list[str] = []
    batch = Stream.batch

    def spied(self: Stream[Any], step: int, **rest: Any) -> Any:
        seen.append(threading.current_thread().name)
        return batch(self, step, **rest)

    monkeypatch.setattr(Stream, "batch", spied)
    assert train.main([*given, f"run_dir={tmp_path / 'ahead'}"]) == 0
    assert seen[0] == "MainThread"
    assert seen[1:] == ["step 1", "step 2", "step 3"]
    monkeypatch.setattr(loop, "Ahead", AtOnce)
    assert train.main([*given, f"run_dir={tmp_path / 'alone'}"]) == 0
    assert seen[4:] == ["MainThread"] * 4
    one, other = (tmp_path / name / "checkpoints" / "step-00000004" for name in ("ahead", "alone"))
    tensors = [name for name in contents(one) if name.endswith(".safetensors")]
    assert len(tensors) > 1
    assert all(contents(one)[name] == contents(other)[name] for name in tensors)
    assert timeless(tmp_path / "ahead") == timeless(tmp_path / "alone")


def test_a_reader_that_fails_ends_the_run_at_its_step(
    shards: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = Trainer._encoded

    def failing(self: Trainer, step: int) -> Any:
        if step == 2:
            raise OSError("stale file handle")
        return encoded(self, step)

    monkeypatch.setattr(Trainer, "_encoded", failing)
    given = ["tiny_mntp", f"data.train={shards}", f"model.base={tiny_model}", *LIGHT]
    with pytest.raises(OSError, match="stale file handle"):
        train.main([*given, f"run_dir={tmp_path / 'run'}", "train.steps=4"])
    assert [row["step"] for row in read_metrics(tmp_path / "run") if "loss" in row] == [1, 2]


def test_the_phases_of_a_step_are_its_time(shards: Path, tiny_model: Path, tmp_path: Path) -> None:
    given = ["tiny_mntp", f"data.train={shards}", f"model.base={tiny_model}", *LIGHT]
    given += [f"run_dir={tmp_path}", "train.steps=3", "train.save_every_steps=1"]
    assert train.main(given) == 0
    rows = [row for row in read_metrics(tmp_path) if "loss" in row]
    parts = ("data_s", "ranks_s", "forward_s", "backward_s", "step_s")
    for row in rows:
        assert sum(row[part] for part in parts) == pytest.approx(row["seconds"])
        assert min(row["forward_s"], row["backward_s"], row["step_s"]) > 0
    assert rows[0]["save_s"] == 0 and min(row["save_s"] for row in rows[1:]) > 0


def test_a_slow_reader_is_counted_as_such(
    shards: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time for which a step waits for the next one's batch is a part of its own."""
    encoded = Trainer._encoded

    def slow(self: Trainer, step: int) -> Any:
        time.sleep(0.5)
        return encoded(self, step)

    monkeypatch.setattr(Trainer, "_encoded", slow)
    given = ["tiny_mntp", f"data.train={shards}", f"model.base={tiny_model}", *LIGHT]
    assert train.main([*given, f"run_dir={tmp_path}", "train.steps=3"]) == 0
    rows = [row for row in read_metrics(tmp_path) if "loss" in row]
    # Three batches of half a second each, and the steps' own time to read two of them in.
    waited, own = (sum(sum(row[key] for key in keys) for row in rows) for keys in PARTS)
    assert waited + own >= 1.5
    assert waited >= 0.5


PARTS = (("data_s",), ("ranks_s", "forward_s", "backward_s", "step_s"))


def test_phases_add_up() -> None:
    phases = Phases()
    for name in ("forward", "backward", "forward", "backward"):
        phases.ends(name)
    row = phases.row()
    assert list(row) == ["forward_s", "backward_s"]
    assert phases.total == pytest.approx(sum(row.values())) and phases.total > 0
