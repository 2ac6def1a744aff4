"""Checkpoints on disk: safetensors and JSON in committed directories, for any number of ranks.

    RUN/checkpoints/step-00001000/{weights/, optimizer/, state.json, COMMITTED}

Knows the layout, its digests and which checkpoints are kept. Refuses to know how values are
partitioned (`parallel.zero`) and who writes what (`saver`). Nothing is ever unpickled: a checkpoint
holds numbers only.
"""

import contextlib
import dataclasses
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from toolkit.base.errors import BadInput
from toolkit.base.files import is_committed, read_json, remove_committed, sha256_of
from toolkit.base.layout import CHECKPOINT_DIR, MOMENT_DIR, STATE_FILE, STEP_PREFIX, WEIGHT_DIR
from toolkit.base.sealed import content_digest
from toolkit.model.tensor_file import Renamed, StoredTensors
from toolkit.model.weights import saved_name
from toolkit.parallel import zero
from toolkit.settings.schema import Train
from toolkit.training.steps import newest, step_of

_MEND = "remove its directory to resume from the checkpoint before it"


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A checkpoint: full fp32 tensors by stored name, each read from disk when it is used."""

    folder: Path
    step: int
    skipped_steps: int
    weights: Mapping[str, Tensor]
    moments: Mapping[str, Mapping[str, Tensor]]
    state: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Origin:
    """What a run starts from: its base model and its data. Their names may change from start to
    start, but neither their digests nor the way data become `samples`."""

    base: str
    base_digest: str
    data_digest: str
    samples: str = ""


def check_origin(run_dir: Path, *, origin: Origin) -> None:
    """Raise `BadInput` for a run whose base model or training data (shards, pairs, a teacher's
    vectors) have changed since its checkpoint."""
    folder = newest(run_dir)
    if folder is None:
        return
    state = _state(folder)
    for name, what in (("base_digest", "base model"), ("data_digest", "training data")):
        if state[name] != getattr(origin, name):
            raise BadInput(
                f"{folder}: its {what} changed after it was trained; bring back the old content, "
                "or choose another run_dir"
            )
    # MNTP checkpoints without this key are older, and were packed differently too.
    if state.get("samples", "") != origin.samples:
        raise BadInput(
            f"{folder}: was trained on blocks that another version of the toolkit packed, and this "
            "one packs others; finish the run with the version that began it, or choose another "
            "run_dir"
        )


def load_newest(run_dir: Path) -> Checkpoint | None:
    """The newest whole checkpoint, each file checked against its digest; None for a new run."""
    folder = newest(run_dir)
    if folder is None:
        return None
    check_files(folder)
    return load(folder)


def check_files(folder: Path, *, part: int = 0, parts: int = 1) -> int:
    """Check every `parts`-th file of a checkpoint, from number `part`, against its digest; returns
    how many. `BadInput` names the file that is damaged or missing."""
    if not is_committed(folder):
        raise BadInput(f"{folder}: is not a whole checkpoint (no COMMITTED marker)")
    digests = _state(folder)["sha256"]
    mine = sorted(digests)[part::parts]
    for name in mine:
        if not (folder / name).is_file():
            raise BadInput(f"{folder / name}: is missing from the checkpoint")
        if sha256_of(folder / name) != digests[name]:
            raise BadInput(
                f"{folder / name}: is damaged (its sha256 is not the recorded one); {_MEND}"
            )
    return len(mine)


def load(folder: Path) -> Checkpoint:
    """A checkpoint whose tensors are read one by one, each when it is used. `check_files` must have
    passed before."""
    state = _state(folder)
    names = sorted(state["sha256"])

    def stored(stem: str) -> StoredTensors:
        # Several ranks have written a file each, as in model-00001-of-00004.safetensors.
        pattern = re.compile(stem + r"(-\d+-of-\d+)?\.safetensors")
        return StoredTensors([folder / name for name in names if pattern.fullmatch(name)])

    return Checkpoint(
        folder=folder,
        step=int(state["step"]),
        skipped_steps=int(state["skipped_steps"]),
        weights=stored(rf"{WEIGHT_DIR}/\w+"),
        moments={moment: stored(f"{MOMENT_DIR}/{moment}") for moment in zero.MOMENTS},
        state=state,
    )


def _state(folder: Path) -> dict[str, Any]:
    """state.json, which lists the files; its own digest shows that the list is whole."""
    path = folder / STATE_FILE
    state: dict[str, Any] = read_json(path)
    if state.pop("digest", None) != content_digest(state):
        raise BadInput(f"{path}: is damaged (its content is not what was written); {_MEND}")
    return state


def prune(run_dir: Path, *, train: Train) -> None:
    """Remove all whole checkpoints except the newest `keep_checkpoints`, those of every
    `keep_every_steps` and, with `keep_best`, the one of lowest `_badness`."""
    parent = run_dir / CHECKPOINT_DIR
    whole = sorted(path for path in parent.glob(f"{STEP_PREFIX}*") if is_committed(path))
    # Steps have leading zeros: the order of names is that of steps.
    kept = set(whole[-train.keep_checkpoints :])
    if train.keep_every_steps:
        kept |= {path for path in whole if step_of(path) % train.keep_every_steps == 0}
    if train.keep_best:
        judged = [(bad, path) for path in whole if (bad := _badness(path)) is not None]
        # Of equally good checkpoints the earliest.
        kept |= {min(judged)[1]} if judged else set()
    for path in whole:
        if path not in kept:
            remove_committed(path)


def _badness(path: Path) -> float | None:
    """The negated score of the probe, or the held-out loss where nothing was probed."""
    # Pruning cannot judge a damaged checkpoint, and must not end a run for it.
    with contextlib.suppress(BadInput):
        state = _state(path)
        score: float | None = state.get("probe")
        loss: float | None = state["held_out_loss"]
        return loss if score is None else -score
    return None


def by_parameter(values: Mapping[str, Tensor], *, names: Iterable[str]) -> Mapping[str, Tensor]:
    """Stored tensors by parameter name. `BadInput` when one is missing or has no parameter."""
    wanted = {name: saved_name(name) for name in names}
    if missing := sorted(set(wanted.values()) - set(values)):
        raise BadInput(f"the checkpoint lacks {missing[0]!r}: was model.lora or the base changed?")
    if extra := sorted(set(values) - set(wanted.values())):
        raise BadInput(f"the checkpoint holds {extra[0]!r}, which this recipe does not train")
    return Renamed(values, names=wanted)
