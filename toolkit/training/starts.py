"""Every start of a run: when, where, with what. RUN/starts.jsonl has one line per start.

It tells what ran (versions, device, attention), and whether restarts make progress: a chain of
requeued jobs that makes no step is ended. A plain limit on restarts would end long runs too.
"""

import contextlib
import dataclasses
import datetime
import importlib.metadata
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

import toolkit
from toolkit.base.errors import RunFailed
from toolkit.base.files import append_line, create_atomic, write_atomic, write_json
from toolkit.base.layout import CONFIG_FILE, HEARTBEATS_FILE, STARTING_FILE, STARTS_FILE
from toolkit.cluster.exclusion import excluded_nodes, exclusion_command
from toolkit.cluster.leases import this_process
from toolkit.cluster.preempt import CHAIN_VARIABLE, requeue_command
from toolkit.cluster.topology import LOCAL, Topology
from toolkit.cluster.watchdog import Job, Watchdog
from toolkit.runs.records import read_starts
from toolkit.settings.recipes import to_yaml
from toolkit.settings.schema import TrainingRecipe
from toolkit.settings.training_checks import check_run_dir

MAX_RESTARTS = 3  # in a row, without a step
PACKAGES = ("torch", "transformers", "deepspeed", "peft", "safetensors")


@dataclasses.dataclass(frozen=True)
class Place:
    """Where this process runs, and what watches it."""

    topology: Topology
    environ: Mapping[str, str]
    device: torch.device
    watchdog: Watchdog


def watched_job(recipe: TrainingRecipe, *, topology: Topology, environ: Mapping[str, str]) -> Job:
    """The facts of the job on which the watchdogs of all ranks agree."""
    return Job(
        world_size=topology.world_size,
        address=topology.main_address,
        port=topology.main_port,
        interval_s=recipe.train.heartbeat_s,
        stall_s=recipe.train.stall_s,
        on_loss=requeue_command(environ),
        on_lost_node=exclusion_command(environ),
        heartbeats=str((Path(recipe.run_dir) / HEARTBEATS_FILE).absolute()),
        name=f"{topology.job_id}.{environ.get('SLURM_RESTART_COUNT', '0')}",
    )


def is_automatic(environ: Mapping[str, str]) -> bool:
    """Whether no person asked for this start: SLURM requeued the job, or it continues a chain."""
    restarted = environ.get("SLURM_RESTART_COUNT", "") not in ("", "0")
    # A person submitted the first job of a chain.
    return restarted or environ.get(CHAIN_VARIABLE, "") not in ("", "0", "1")


def check_progress(run_dir: Path, *, step: int, environ: Mapping[str, str]) -> None:
    """Raise `RunFailed` where the last restarts have not made a step beyond `step`."""
    if not is_automatic(environ):
        return
    # Newest first: how many automatic starts in a row began at this very step?
    in_vain = 0
    for start in reversed(read_starts(run_dir)):
        if not start.get("automatic") or start["step"] != step:
            break
        in_vain += 1
    if in_vain >= MAX_RESTARTS:
        raise RunFailed(
            f"{run_dir}: the last {in_vain} restarts made no step beyond {step}; look into its "
            "logs (a time limit that is too short? a node that fails?), then start it by hand"
        )


def claim_run_dir(recipe: TrainingRecipe) -> None:
    """Write config.yaml. If two recipes claim a new directory at the same time, one gets it, and
    `BadInput` is raised for the other, although it found the directory free minutes ago."""
    path = Path(recipe.run_dir) / CONFIG_FILE
    if not create_atomic(path, to_yaml(recipe)):
        check_run_dir(recipe)
        write_atomic(path, to_yaml(recipe))  # some keys may differ from one start to the next


@contextlib.contextmanager
def loading(recipe: TrainingRecipe, *, place: Place) -> Iterator[None]:
    """While entered, RUN/starting.json says who loads the model: a run that has not begun has no
    other file. Rank 0 writes it, and removes it when loading ends. After an error it also removes
    the run directory, if that is new."""
    if place.topology.rank:
        yield
        return
    run_dir, began = Path(recipe.run_dir), False
    is_new = not run_dir.exists()
    content = {"kind": recipe.kind, "steps": recipe.train.steps, "pid": os.getpid(), **_who(place)}
    try:
        write_json(run_dir / STARTING_FILE, content)
        yield
        began = True
    finally:
        (run_dir / STARTING_FILE).unlink(missing_ok=True)
        if is_new and not began:
            with contextlib.suppress(OSError):
                run_dir.rmdir()


def _who(place: Place) -> dict[str, Any]:
    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "job": place.topology.job_id,
        "node": place.topology.node_name,
        "world_size": place.topology.world_size,
    }


def record_start(run_dir: Path, *, step: int, place: Place, facts: Mapping[str, Any]) -> None:
    """Append the start of a run that goes on after `step`, with further `facts` about it."""
    on_gpu, topology = place.device.type == "cuda", place.topology
    start: dict[str, Any] = {
        **_who(place),
        "step": step,
        "automatic": is_automatic(place.environ),
        "launcher": topology.launcher,
        "num_nodes": topology.num_nodes,
        "excluded": excluded_nodes(topology.job_id) if topology.job_id != LOCAL else "",
        "device": torch.cuda.get_device_name(place.device) if on_gpu else "cpu",
        "process": this_process(),
        **facts,
        "versions": {
            "toolkit": toolkit.__version__,
            **{package: importlib.metadata.version(package) for package in PACKAGES},
        },
    }
    append_line(run_dir / STARTS_FILE, json.dumps(start, ensure_ascii=False))


def is_latest_start(run_dir: Path) -> bool:
    """Whether no other process has started this run since ours. Of two jobs in one run directory
    the later one goes on, since somebody may have taken the earlier one for dead."""
    starts = read_starts(run_dir)
    return not starts or starts[-1].get("process") in (None, this_process())
