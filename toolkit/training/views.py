"""Where people look at a run: TensorBoard, Weights & Biases. The record is metrics.jsonl.

Knows both packages, which are optional, and imports one when a recipe names it.
"""

import hashlib
import importlib.util
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from toolkit.base.errors import BadInput
from toolkit.base.layout import TENSORBOARD_DIR


class View(Protocol):
    """Something that shows figures by step."""

    def show(self, step: int, figures: Mapping[str, float]) -> None:
        """Show the figures of a step by name."""

    def close(self) -> None:
        """Write what is still buffered, and end the view."""


class _TensorBoard:
    def __init__(self, run_dir: Path, *, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # Steps after the checkpoint are done again, and would be shown twice.
        self._writer: Any = SummaryWriter(run_dir / TENSORBOARD_DIR, purge_step=step + 1)

    def show(self, step: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class _Wandb:
    def __init__(self, run_dir: Path, *, settings: Mapping[str, Any]) -> None:
        import wandb

        # Compute nodes are offline by default; `wandb sync` brings the run up later.
        os.environ.setdefault("WANDB_MODE", "offline")
        name = str(run_dir.absolute())
        self._run: Any = wandb.init(
            dir=str(run_dir),
            id=hashlib.sha256(name.encode()).hexdigest()[:16],  # a restart goes on in the same run
            name=run_dir.name,
            resume="allow",
            config=dict(settings),
            settings=wandb.Settings(silent=True),
        )

    def show(self, step: int, figures: Mapping[str, float]) -> None:
        self._run.log(dict(figures), step=step)

    def close(self) -> None:
        self._run.finish()


def check_views(names: Sequence[str]) -> None:
    """Raise `BadInput` when a view's package is not installed."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise BadInput(f"train.views: {name} is not installed; pip install {name}")


def open_views(
    names: Sequence[str], *, run_dir: Path, step: int, settings: Mapping[str, Any]
) -> list[View]:
    """The views of a run that goes on after `step`."""
    views: list[View] = []
    for name in names:
        if name == "tensorboard":
            views.append(_TensorBoard(run_dir, step=step))
        else:
            views.append(_Wandb(run_dir, settings=settings))
    return views
