"""Writing checkpoints: shares of ranks, failures that cost a checkpoint only, in the background."""

import errno
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.light import LIGHT
from toolkit import train
from toolkit.base.files import read_json
from toolkit.model.tensor_file import StoredTensors, TensorWriter
from toolkit.training import saver
from toolkit.training.checkpoint import load, load_newest
from toolkit.training.loop import Step, Trainer
from toolkit.training.steps import newest, newest_step

Door = Callable[..., str]


def test_a_file_is_what_safetensors_reads(tmp_path: Path) -> None:
    values = {"b": torch.randn(3, 5), "a": torch.randn(7), "none": torch.zeros(0, 4)}
    writer = TensorWriter(tmp_path / "x", shapes={n: tuple(v.shape) for n, v in values.items()})
    for name, value in values.items():
        writer.put(name, value.t().contiguous().t())  # not contiguous: written as it is meant
    writer.close()
    for found in (load_file(tmp_path / "x"), StoredTensors([tmp_path / "x"])):
        assert set(found) == set(values)
        assert all(torch.equal(found[name], value) for name, value in values.items())


def test_a_tensor_out_of_turn_is_refused(tmp_path: Path) -> None:
    writer = TensorWriter(tmp_path / "x", shapes={"a": (1,), "b": (1,)})
    with pytest.raises(AssertionError, match="b instead of a"):
        writer.put("b", torch.zeros(1))


@pytest.mark.parametrize("stage", ["zero1", "zero3"])
def test_ranks_write_shares_that_make_the_whole(
    stage: str, door: Door, shards: Path, tiny_model: Path, tmp_path: Path
) -> None:
    """All weights trained, on 3 ranks, saved in the background; against one rank and PEFT's way."""
    common = ["tiny_mntp", f"data.train={shards}", f"model.base={tiny_model}", "model.lora=null"]
    common += ["train.global_batch_rows=6", "train.steps=2", "train.save_every_steps=1"]
    common += [f"deepspeed.config={stage}", "train.keep_checkpoints=9"]
    door("train", *common, f"run_dir={tmp_path / '1'}")
    door("train", *common, f"run_dir={tmp_path / '3'}", "train.background_save=true", ranks=3)
    for name, folder in (("1", "step-00000001"), ("3", "step-00000001"), ("3", "step-00000002")):
        found = tmp_path / name / "checkpoints" / folder
        files = sorted(str(path.relative_to(found)) for path in found.rglob("*.safetensors"))
        assert len(files) == 3 * int(name)
        assert files == sorted(read_json(found / "state.json")["sha256"])
    one, three = load_newest(tmp_path / "1"), load_newest(tmp_path / "3")
    assert one and three and one.weights.keys() == three.weights.keys()
    sizes = [
        sum(value.numel() for value in load_file(path).values())
        for path in sorted((three_folder(tmp_path) / "weights").iterdir())
    ]
    assert sum(sizes) == sum(value.numel() for value in one.weights.values())
    assert max(sizes) < 0.75 * sum(sizes)  # no rank has it all; the embedding is a half
    for left, right in (
        (one.weights, three.weights),
        *((one.moments[m], three.moments[m]) for m in one.moments),
    ):
        for name, value in left.items():
            difference = float((right[name] - value).norm() / value.norm().clamp(1e-12))
            assert difference < 1e-2, name


def three_folder(tmp_path: Path) -> Path:
    folder = newest(tmp_path / "3")
    assert folder
    return folder


@pytest.mark.parametrize("background", ["true", "false"])
def test_a_save_that_fails_costs_that_checkpoint_only(
    background: str,
    shards: Path,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    failing = FullDisk(2)
    monkeypatch.setattr(saver, "TensorWriter", failing)
    arguments = ["tiny_mntp", f"data.train={shards}", f"model.base={tiny_model}", *LIGHT]
    arguments += [f"run_dir={tmp_path}", "train.steps=4", "train.save_every_steps=1"]
    arguments += [f"train.background_save={background}", "train.keep_checkpoints=9"]
    assert train.main(arguments) == 0
    said = capsys.readouterr().err
    assert said.count("warning: step 2 could not be saved (rank 0: [Errno 28]") == 1
    assert "the newest is step 1" in said
    kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert kept == [f"step-0000000{number}" for number in (1, 3, 4)]


def test_what_is_written_in_the_background_is_the_state_of_its_step(
    shards: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under stage 0 what is saved is what is trained: without a copy the next step would change
    it. The writer waits here until that step is done."""
    arguments = ["tiny_mntp", f"data.train={shards}", f"model.base={tiny_model}", *LIGHT]
    arguments += ["deepspeed.config=zero0", "train.steps=2", "train.save_every_steps=1"]
    assert train.main([*arguments, f"run_dir={tmp_path / 'plain'}"]) == 0
    write_all, do_step, done = saver._write_all, Trainer.do_step, threading.Event()

    def write_late(*held: Any) -> None:
        assert done.wait(300)
        write_all(*held)

    def stepped(self: Trainer, step: int, **rest: Any) -> Step:
        found = do_step(self, step, **rest)
        if step == 1:
            done.set()
        return found

    monkeypatch.setattr(saver, "_write_all", write_late)
    monkeypatch.setattr(Trainer, "do_step", stepped)
    late = [*arguments, f"run_dir={tmp_path / 'late'}", "train.background_save=true"]
    assert train.main(late) == 0
    plain, found = (
        load(tmp_path / name / "checkpoints" / "step-00000001") for name in ("plain", "late")
    )
    assert all(torch.equal(value, found.weights[name]) for name, value in plain.weights.items())


def test_the_last_save_must_not_fail(
    shards: Path,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(saver, "TensorWriter", FullDisk(2))
    arguments = ["tiny_mntp", f"data.train={shards}", f"model.base={tiny_model}", *LIGHT]
    arguments += [f"run_dir={tmp_path}", "train.save_every_steps=1"]
    assert train.main([*arguments, "train.steps=2"]) == 1
    assert "error: " in capsys.readouterr().err
    assert newest_step(tmp_path) == 1
    monkeypatch.undo()
    assert train.main([*arguments, "train.steps=2"]) == 0
    assert newest_step(tmp_path) == 2


class FullDisk:
    """Opens the files of all checkpoints but for that of one step."""

    def __init__(self, step: int) -> None:
        self._name = f".step-{step:08d}.tmp"

    def __call__(self, path: Path, **rest: Any) -> TensorWriter:
        if self._name in path.parts and path.name.startswith("exp_avg"):
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return TensorWriter(path, **rest)


def test_what_may_differ_must_be_named(
    shards: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["tiny_mntp", f"data.train={shards}", f"model.base={tiny_model}", *LIGHT]
    arguments += [f"run_dir={tmp_path}", "train.save_every_steps=1"]
    assert train.main([*arguments, "train.steps=1"]) == 0
    other = [*arguments, "train.steps=2", "train.lr=5e-4"]
    assert train.main(other) == 2
    assert "name it: train.may_differ=[train.lr]" in capsys.readouterr().err
    assert train.main([*other, "train.may_differ=[train.lrr]"]) == 2
    assert "'train.lrr' is no key" in capsys.readouterr().err
    assert train.main([*other, "train.may_differ=[train.lr]"]) == 0
    folder = newest(tmp_path)
    assert folder
    recorded = json.loads((folder / "state.json").read_text())["recipe"]
    assert recorded["train"]["lr"] == 5e-4
