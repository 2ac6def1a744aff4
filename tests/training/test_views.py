"""TensorBoard and Weights & Biases show what metrics.jsonl says, over a restart too."""

import importlib.util
import json
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from toolkit import train
from toolkit.base.errors import BadInput
from toolkit.runs.records import read_metrics
from toolkit.training.views import check_views


def shown_by_tensorboard(run_dir: Path) -> dict[int, float]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run_dir / "tensorboard"))
    events.Reload()
    return {event.step: event.value for event in events.Scalars("loss")}


def records_of(data: bytes) -> Iterator[bytes]:
    """LevelDB's log format after 7 bytes of W&B's own: blocks of 32 KiB, records in pieces."""
    place, record = 7, b""
    while place + 7 <= len(data):
        if (left := 2**15 - place % 2**15) < 7:
            place += left
            continue
        _, size, kind = struct.unpack("<IHB", data[place : place + 7])
        record += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # whole, or the last piece
            yield record
            record = b""


def shown_by_wandb(run_dir: Path) -> dict[int, float]:
    from wandb.proto import wandb_internal_pb2

    found = {}
    for path in sorted(run_dir.glob("wandb/offline-run-*/*.wandb")):
        for data in records_of(path.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            items = {
                item.key or "/".join(item.nested_key): json.loads(item.value_json)
                for item in record.history.item
            }
            if "loss" in items:
                found[int(items["_step"])] = float(items["loss"])
    return found


def test_views_show_the_metrics_and_go_on_after_a_restart(
    shards: Path, tiny_model: Path, tmp_path: Path
) -> None:
    arguments = ["tiny_mntp", f"data.train={shards}", f"model.base={tiny_model}"]
    arguments += [f"run_dir={tmp_path}", "train.save_every_steps=2"]
    arguments += ["train.views=[tensorboard, wandb]"]
    for steps in (2, 4):
        assert train.main([*arguments, f"train.steps={steps}"]) == 0
    told = {row["step"]: row["loss"] for row in read_metrics(tmp_path)}
    assert sorted(told) == [1, 2, 3, 4]
    assert shown_by_tensorboard(tmp_path) == pytest.approx(told, rel=1e-6)
    assert shown_by_wandb(tmp_path) == pytest.approx(told, rel=1e-6)


def test_a_view_that_is_not_installed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BadInput, match=r"train\.views: wandb is not installed; pip install wandb"):
        check_views(["wandb"])
