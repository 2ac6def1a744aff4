"""Writing checkpoints: all ranks write their shares at the same time, and rank 0 commits.

    .step-00001000.tmp/   all ranks write here; then fsync, marker, one rename

Knows who writes what and when. One full parameter at a time is put together from the partitions,
and only its owner keeps it. The owner writes it at once or, with `train.background_save`, keeps it
in host memory, from which a thread writes while training goes on. A failed save costs that
checkpoint, not the run.
"""

import contextlib
import dataclasses
import json
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import toolkit
from toolkit.base.console import warn
from toolkit.base.errors import RunFailed
from toolkit.base.files import publish, sha256_of, write_json
from toolkit.base.layout import CHECKPOINT_DIR, MOMENT_DIR, STATE_FILE, STEP_PREFIX, WEIGHT_DIR
from toolkit.base.sealed import content_digest
from toolkit.model.tensor_file import FULL_FILE, TensorWriter
from toolkit.model.weights import ADAPTER_FILE, adapter_config, saved_name
from toolkit.parallel import comm, zero
from toolkit.settings.schema import TrainingRecipe
from toolkit.training import checkpoint
from toolkit.training.checkpoint import Origin
from toolkit.training.starts import is_latest_start
from toolkit.training.steps import newest_step

KINDS = (WEIGHT_DIR, *zero.MOMENTS)
Put = Callable[[str, str, Tensor], None]  # (kind, stored name, value)


@dataclasses.dataclass(frozen=True)
class _Share:
    """What this rank writes: for each kind of value its file and the shapes of its tensors."""

    files: Mapping[str, tuple[str, Mapping[str, tuple[int, ...]]]]


class _Writer:
    """Writes a share value by value; remembers the first error, and does nothing after it."""

    def __init__(self, folder: Path, *, share: _Share) -> None:
        self._folder, self._share = folder, share
        self._open: dict[str, TensorWriter] = {}
        self._digests: dict[str, str] = {}
        self.error = ""

    def make_folders(self) -> None:
        with self._remembering():
            shutil.rmtree(self._folder, ignore_errors=True)
            for part in (WEIGHT_DIR, MOMENT_DIR):
                (self._folder / part).mkdir(parents=True)

    def put(self, kind: str, name: str, value: Tensor) -> None:
        if self.error:
            return
        assert value.dtype == torch.float32
        with self._remembering():
            file, shapes = self._share.files[kind]
            if kind not in self._open:
                self._open[kind] = TensorWriter(self._folder / file, shapes=shapes)
            self._open[kind].put(name, value)
            # The last value of its file: closing it gives the digest.
            if name == list(shapes)[-1]:
                self._digests[file] = self._open.pop(kind).close()

    def finish(self) -> str:
        """Close the files; returns their digests and the error as JSON, for rank 0."""
        for writer in self._open.values():
            writer.abandon()
        missing = {file for file, _ in self._share.files.values()} - set(self._digests)
        if missing and not self.error:
            self.error = f"rank {comm.rank()}: {min(missing)} was not written"
        return json.dumps({"sha256": self._digests, "error": self.error})

    @contextlib.contextmanager
    def _remembering(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.error = f"rank {comm.rank()}: {error}"


class Saver:
    """The checkpoints of a run. All methods are collective: every rank calls them."""

    def __init__(self, recipe: TrainingRecipe, *, engine: zero.Engine, origin: Origin) -> None:
        self._recipe, self._origin, self._engine = recipe, origin, engine
        self._run_dir, self._leads = Path(recipe.run_dir), comm.rank() == 0
        self._parameters = zero.trainable_parameters(engine)
        shapes = {saved_name(n): zero.full_shape(p) for n, p in self._parameters.items()}
        self._owners = _owners(shapes, lora=recipe.model.lora is not None)
        self._share = _share_of(shapes, owners=self._owners, lora=recipe.model.lora is not None)
        self._pending: _Pending | None = None

    def save(self, *, step: int, facts: Mapping[str, Any], last: bool) -> None:
        """Save the state after `step`, with `facts` in its record. A background save may still be
        going on at return, unless it is the `last`.

        Values are fp32 masters, so that the state of a bf16 run is resumed bit for bit. A failed
        save is a warning. All ranks raise `RunFailed` if the last save fails, or if another job has
        started in the run directory.
        """
        self.settle(wait=True)
        self._end_if_another_job_has_started()
        folder = self._run_dir / CHECKPOINT_DIR / f".{STEP_PREFIX}{step:08d}.tmp"
        writer = _Writer(folder, share=self._share)
        if self._leads:
            writer.make_folders()
        comm.barrier()  # no rank writes before the folders are there
        if self._recipe.train.background_save and not last:
            held: list[tuple[str, str, Tensor]] = []
            # Copies: the next step changes the masters while the thread still writes.
            self._gather(lambda *one: held.append((*one[:2], one[2].clone())))
            thread = threading.Thread(target=_write_all, args=(writer, held))
            thread.start()
        else:
            self._gather(writer.put)
            thread = None
        self._pending = _Pending(step, facts, folder, writer, thread)
        if thread is None:
            error = self.settle(wait=True)
            if error and last:
                raise RunFailed(f"{self._run_dir}: step {step} could not be saved ({error})")

    def _end_if_another_job_has_started(self) -> None:
        ours = not self._leads or is_latest_start(self._run_dir)
        why = "another job has started in this run directory since; this one ends, unsaved"
        if any(comm.gather_texts("" if ours else why)):
            raise RunFailed(f"{self._run_dir}: {why}")

    def settle(self, *, wait: bool) -> str:
        """Commit a save once all ranks have written it; with `wait`, wait for that. Returns the
        error, or the empty string."""
        pending = self._pending
        if pending is None:
            return ""
        thread = pending.thread
        if thread is not None and wait:
            thread.join()
        busy = thread is not None and thread.is_alive()
        # All ranks must agree: one that is done may find another still writing.
        if not wait and any(comm.gather_texts("busy" if busy else "")):
            return ""
        self._pending = None
        reports = [json.loads(text) for text in comm.gather_texts(pending.writer.finish())]
        errors = [one["error"] for one in reports if one["error"]]
        if self._leads and not errors:
            digests = {name: value for one in reports for name, value in one["sha256"].items()}
            try:
                self._commit(pending, digests=digests)
            except OSError as error:
                errors = [str(error)]
        errors = [text for text in comm.gather_texts(errors[0] if errors else "") if text]
        if self._leads:
            self._tidy(pending, error=errors[0] if errors else "")
        return errors[0] if errors else ""

    def _tidy(self, pending: "_Pending", *, error: str) -> None:
        """Remove a failed save, or the checkpoints that the new one replaces."""
        if error:
            shutil.rmtree(pending.folder, ignore_errors=True)
            newest = newest_step(self._run_dir)
            warn(f"step {pending.step} could not be saved ({error}); the newest is step {newest}")
            return
        try:
            checkpoint.prune(self._run_dir, train=self._recipe.train)
        except OSError as failed:
            warn(f"an old checkpoint could not be removed ({failed})")

    def _gather(self, put: Put) -> None:
        for kind in KINDS:
            moment = None if kind == WEIGHT_DIR else kind
            for name, parameter in self._parameters.items():
                stored = saved_name(name)
                owner = self._owners[kind][stored]
                value = zero.value_at(self._engine, parameter, moment=moment, owner=owner)
                if value is not None:
                    put(kind, stored, value)

    def _commit(self, pending: "_Pending", *, digests: dict[str, str]) -> None:
        folder, lora = pending.folder, self._recipe.model.lora
        if lora:
            name = f"{WEIGHT_DIR}/adapter_config.json"
            write_json(folder / name, adapter_config(lora, base=self._origin.base))
            digests[name] = sha256_of(folder / name)
        state = {
            "step": pending.step,
            "world_size": comm.world_size(),
            "sha256": digests,
            "recipe": self._recipe.model_dump(mode="json"),
            "version": toolkit.__version__,
            **dataclasses.asdict(self._origin),
            **pending.facts,
        }
        write_json(folder / STATE_FILE, {**state, "digest": content_digest(state)})
        path = folder.with_name(f"{STEP_PREFIX}{pending.step:08d}")
        if not publish(folder, path):
            raise FileExistsError(
                f"{path}: another job has written it: two share the run directory"
            )


@dataclasses.dataclass(frozen=True)
class _Pending:
    step: int
    facts: Mapping[str, Any]
    folder: Path
    writer: _Writer
    thread: threading.Thread | None


def _write_all(writer: _Writer, held: list[tuple[str, str, Tensor]]) -> None:
    while held:
        writer.put(*held.pop(0))  # frees each value once it is written


def _owners(shapes: Mapping[str, tuple[int, ...]], *, lora: bool) -> dict[str, dict[str, int]]:
    """Which rank writes which value: each a run of neighbours, all of about the same size. PEFT
    wants adapters in one file: the last rank writes it, since it has the least to do otherwise."""
    world_size = comm.world_size()
    sizes = {name: max(1, _numel(shape)) for name, shape in shapes.items()}
    total, before, shared = sum(sizes.values()), 0, {}
    for name, size in sizes.items():
        # The middle of a parameter decides its rank: shares differ by less than one parameter.
        shared[name] = (2 * before + size) * world_size // (2 * total)
        before += size
    owners = dict.fromkeys(KINDS, shared)
    if lora:
        owners[WEIGHT_DIR] = dict.fromkeys(shapes, world_size - 1)
    return owners


def _share_of(
    shapes: Mapping[str, tuple[int, ...]], *, owners: Mapping[str, Mapping[str, int]], lora: bool
) -> _Share:
    files = {}
    for kind in KINDS:
        mine = {name: shape for name, shape in shapes.items() if owners[kind][name] == comm.rank()}
        if not mine:
            continue
        if kind != WEIGHT_DIR:
            files[kind] = (_file(f"{MOMENT_DIR}/{kind}"), mine)
        elif lora:
            files[kind] = (f"{WEIGHT_DIR}/{ADAPTER_FILE}", mine)
        else:
            files[kind] = (_file(f"{WEIGHT_DIR}/{FULL_FILE.removesuffix('.safetensors')}"), mine)
    return _Share(files)


def _file(stem: str) -> str:
    if comm.world_size() == 1:
        return f"{stem}.safetensors"
    return f"{stem}-{comm.rank() + 1:05d}-of-{comm.world_size():05d}.safetensors"


def _numel(shape: tuple[int, ...]) -> int:
    size = 1
    for side in shape:
        size *= side
    return size
