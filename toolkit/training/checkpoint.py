"""Checkpoints: safetensors and JSON in committed directories, without a world size in them.

    RUN/checkpoints/step-00001000/{weights/, optimizer/, state.json, COMMITTED}

Knows the layout and its digests. Refuses to know how values are partitioned (`parallel.zero`).
Nothing is ever unpickled: a checkpoint holds numbers only.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from toolkit.files import (
    BadInput,
    committed_directory,
    is_committed,
    newest_committed,
    read_json,
    remove_committed,
    sha256_of,
    write_json,
)
from toolkit.model.weights import ADAPTER_FILE, FULL_FILE, adapter_config, saved_name
from toolkit.parallel import comm, zero
from toolkit.schema import Lora

CHECKPOINT_DIR = "checkpoints"
PREFIX = "step-"


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint in memory: full fp32 tensors by stored name."""

    step: int
    skipped_steps: int
    weights: Mapping[str, Tensor]
    moments: Mapping[str, Mapping[str, Tensor]]
    state: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Origin:
    """What a run grows from. Names may change, these digests may not."""

    base: str
    base_digest: str
    data_digest: str


def newest(run_dir: Path) -> Path | None:
    """The newest whole checkpoint of a run; None before its first."""
    return newest_committed(run_dir / CHECKPOINT_DIR, PREFIX)


def newest_step(run_dir: Path) -> int:
    """The step of the newest whole checkpoint; 0 before the first."""
    folder = newest(run_dir)
    return int(folder.name.removeprefix(PREFIX)) if folder else 0


def check_origin(run_dir: Path, *, origin: Origin) -> None:
    """Refuse to continue a run whose base model or shards are no longer what they were."""
    folder = newest(run_dir)
    if folder is None:
        return
    state = read_json(folder / "state.json")
    for name, what in (("base_digest", "base model"), ("data_digest", "shards")):
        if state[name] != getattr(origin, name):
            raise BadInput(
                f"{folder}: was trained with a {what} of other content; bring that back, or choose "
                "another run_dir"
            )


def save(
    engine: Any,
    *,
    run_dir: Path,
    step: int,
    skipped_steps: int,
    lora: Lora | None,
    origin: Origin,
) -> None:
    """Write the checkpoint of `step`. Collective: every rank calls it, rank 0 writes.

    Values are fp32 masters, so that a bf16 run resumes bit for bit. `skipped_steps` of the steps
    have not been AdamW's.
    """
    parameters = zero.trainable_parameters(engine)
    # One pass a kind, so that rank 0 holds one full copy of the trained values at a time.
    target = run_dir / CHECKPOINT_DIR / f"{PREFIX}{step:08d}"
    if comm.rank() != 0:
        for parameter in parameters.values():
            zero.full_value(engine, parameter)
        for moment in zero.MOMENTS:
            for parameter in parameters.values():
                zero.full_moment(engine, parameter, name=moment)
        comm.barrier()
        return
    with committed_directory(target) as folder:
        (folder / "weights").mkdir()
        (folder / "optimizer").mkdir()
        values = {saved_name(n): zero.full_value(engine, p) for n, p in parameters.items()}
        save_file(values, folder / "weights" / (ADAPTER_FILE if lora else FULL_FILE))
        for moment in zero.MOMENTS:
            values = {
                saved_name(n): zero.full_moment(engine, p, name=moment)
                for n, p in parameters.items()
            }
            save_file(values, folder / "optimizer" / f"{moment}.safetensors")
        if lora:
            write_json(
                folder / "weights" / "adapter_config.json", adapter_config(lora, base=origin.base)
            )
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        digests = {str(path.relative_to(folder)): sha256_of(path) for path in files}
        write_json(
            folder / "state.json",
            {
                "step": step,
                "skipped_steps": skipped_steps,
                "world_size": comm.world_size(),
                "sha256": digests,
                **dataclasses.asdict(origin),
            },
        )
    comm.barrier()


def load_newest(run_dir: Path) -> Checkpoint | None:
    """The newest whole checkpoint, each file checked against its digest; None for a new run."""
    folder = newest(run_dir)
    return load(folder) if folder else None


def load(folder: Path) -> Checkpoint:
    """Read one checkpoint; `BadInput` names the file that is damaged or missing."""
    if not is_committed(folder):
        raise BadInput(f"{folder}: is not a whole checkpoint (no COMMITTED marker)")
    state = read_json(folder / "state.json")
    for name, digest in state["sha256"].items():
        if not (folder / name).is_file():
            raise BadInput(f"{folder / name}: is missing from the checkpoint")
        if sha256_of(folder / name) != digest:
            raise BadInput(
                f"{folder / name}: is damaged (its sha256 is not the recorded one); "
                f"remove {folder} to resume from the checkpoint before it"
            )
    weights = next(iter(sorted((folder / "weights").glob("*.safetensors"))))
    moments = {m: load_file(folder / "optimizer" / f"{m}.safetensors") for m in zero.MOMENTS}
    return Checkpoint(
        step=int(state["step"]),
        skipped_steps=int(state["skipped_steps"]),
        weights=load_file(weights),
        moments=moments,
        state=state,
    )


def prune(run_dir: Path, *, keep: int) -> None:
    """Remove all but the newest `keep` whole checkpoints."""
    parent = run_dir / CHECKPOINT_DIR
    whole = sorted(path for path in parent.glob(f"{PREFIX}*") if is_committed(path))
    for path in whole[:-keep]:
        remove_committed(path)


def by_parameter(values: Mapping[str, Tensor], *, names: Mapping[str, Any]) -> dict[str, Tensor]:
    """Stored tensors under their parameter names; `BadInput` when one is missing or of no use."""
    wanted = {name: saved_name(name) for name in names}
    if missing := sorted(set(wanted.values()) - set(values)):
        raise BadInput(f"the checkpoint lacks {missing[0]!r}: was model.lora or the base changed?")
    if extra := sorted(set(values) - set(wanted.values())):
        raise BadInput(f"the checkpoint holds {extra[0]!r}, which this recipe does not train")
    return {name: values[stored] for name, stored in wanted.items()}
