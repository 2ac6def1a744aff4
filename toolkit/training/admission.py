"""What is checked before a run's first step: by each rank alone, then by all ranks together.

What one rank refuses, all ranks refuse, and each ends by itself. Otherwise, since rank 0 alone
reads the shards, the other ranks would wait for it until somebody kills them.

Knows what can be refused. Refuses to know what a run does.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from toolkit.base.errors import BadInput, RunFailed
from toolkit.cluster.topology import Topology, detect
from toolkit.model.attention_kernels import check_dropout
from toolkit.model.backbone import DTYPES, load_config
from toolkit.model.declared import digest_of_base
from toolkit.model.fp8 import check_fp8
from toolkit.model.fused import check_kernels
from toolkit.model.weights import base_folder, check_mergeable
from toolkit.parallel import comm, zero
from toolkit.parallel.agreement import agree
from toolkit.settings.layouts import read_layout
from toolkit.settings.model_source import ModelSource, resolve_model
from toolkit.settings.schema import TrainingRecipe
from toolkit.settings.training_checks import check_training, check_widths
from toolkit.training import checkpoint
from toolkit.training.checkpoint import Origin
from toolkit.training.data import digest_of_data, form_of_samples
from toolkit.training.preflight import preflight
from toolkit.training.probe import open_probe
from toolkit.training.starts import check_progress, claim_run_dir
from toolkit.training.steps import check_steps, newest, newest_step
from toolkit.training.views import check_views

CHECK_S = 60.0  # a rank that does not answer for so long is not there


@dataclasses.dataclass(frozen=True)
class Admission:
    """What a rank that can start has read by itself: the engine's settings, the base model, and the
    origin of the run."""

    settings: zero.EngineSettings
    base: ModelSource
    origin: Origin


Problem = BadInput | RunFailed


def look(
    recipe: TrainingRecipe, *, topology: Topology, environ: Mapping[str, str]
) -> Admission | Problem:
    """`check`, but returning a problem, so that the other ranks can hear of it. Still raised are
    problems that every rank sees for itself, and those of a run with a single rank."""
    check_training(recipe, world_size=topology.world_size)
    try:
        return check(recipe, topology=topology, environ=environ)
    except (BadInput, RunFailed) as error:
        if topology.world_size == 1:
            raise
        return error


def meet(
    result: Admission | Problem, *, topology: Topology, timeout_s: float
) -> tuple[Admission, torch.device]:
    """Meet the other ranks and exchange results; returns our own result and our device.

    Raises on all ranks the problem that any rank has. Collective.
    """
    if isinstance(result, Admission):
        device = join(topology, timeout_s=timeout_s)
        # Says that this rank has no problem, and raises the problem of any other rank.
        agree(None)
        return result, device
    try:
        join(topology, timeout_s=min(timeout_s, CHECK_S))
    except BadInput:  # the others never came, but our own problem says more
        raise result from None
    agree(result)  # raises, on every rank
    raise result


def check_ranks(recipe: TrainingRecipe, *, environ: Mapping[str, str]) -> None:
    """Check everything that needs no model before the first step; rank 0 prints the result. Raises
    `BadInput` for what a run would refuse."""
    topology = detect(environ)
    result = look(recipe, topology=topology, environ=environ)
    try:
        admission, device = meet(result, topology=topology, timeout_s=CHECK_S)
        preflight(
            Path(recipe.run_dir),
            topology=topology,
            data_digest=admission.origin.data_digest,
            device=device,
            alone_too=True,
        )
    finally:
        comm.stop()


def join(topology: Topology, *, timeout_s: float) -> torch.device:
    """Meet the other ranks; returns our device."""
    return comm.start(
        rank=topology.rank,
        world_size=topology.world_size,
        local_rank=topology.local_rank,
        address=topology.main_address,
        port=topology.main_port,
        timeout_s=timeout_s,
    )


def check(recipe: TrainingRecipe, *, topology: Topology, environ: Mapping[str, str]) -> Admission:
    """Check everything that needs neither the other ranks nor a write.

    Rank 0 alone hashes the shards and the base model again; the others have no digest of the base.
    """
    run_dir, world_size, leads = Path(recipe.run_dir), topology.world_size, topology.rank == 0
    micro, accumulation = check_training(recipe, world_size=world_size)
    settings = zero.EngineSettings(
        layout=read_layout(recipe.deepspeed.config),
        micro_batch_rows=micro,
        accumulation=accumulation,
        world_size=world_size,
        ranks_per_node=topology.local_world_size,
        clip_norm=recipe.train.clip_norm,
        bf16=recipe.model.dtype == "bf16",
    )
    base = resolve_model(recipe.model.base)
    config = load_config(base, attention_dropout=recipe.model.attention_dropout)
    check_dropout(
        config,
        attention=recipe.model.attention,
        dtype=DTYPES[recipe.model.dtype],
        on_gpu=torch.cuda.is_available(),
    )
    check_kernels(recipe.model.kernels, on_gpu=torch.cuda.is_available(), key="model.kernels")
    if recipe.model.fp8:
        device = comm.device_of(topology.local_rank)
        check_fp8(dtype=recipe.model.dtype, device=device, key="model.fp8")
    check_views(recipe.train.views)
    check_widths(recipe, width=config.hidden_size)
    data_digest = digest_of_data(recipe, verify=leads)
    digest = digest_of_base(base, model=recipe.model) if leads else ""
    origin = Origin(recipe.model.base, digest, data_digest, samples=form_of_samples(recipe))
    if leads:
        checkpoint.check_origin(run_dir, origin=origin)
        open_probe(recipe.train.probe)
        step = check_steps(run_dir, steps=recipe.train.steps)
        check_progress(run_dir, step=step, environ=environ)
    return Admission(settings, base, origin)


def check_exportable(base: ModelSource, *, trained: list[str]) -> None:
    """Raise `BadInput` on all ranks when the trained weights could not be merged afterwards, which
    rank 0 checks. Collective."""
    _by_rank_0(lambda: check_mergeable(base_folder(base), trained=trained))


def claim(recipe: TrainingRecipe) -> None:
    """Have rank 0 claim the run directory for this recipe (`claim_run_dir`). All ranks raise
    `BadInput` when it belongs to another recipe. Collective."""
    _by_rank_0(lambda: claim_run_dir(recipe))


def _by_rank_0(action: Callable[[], None]) -> None:
    """Have rank 0 do something. All ranks raise the `BadInput` that rank 0 meets."""
    problem = None
    if comm.rank() == 0:
        try:
            action()
        except BadInput as error:
            problem = error
    agree(problem)


def restore(run_dir: Path, *, device: torch.device) -> checkpoint.Checkpoint | None:
    """The newest whole checkpoint, if there is one. Each rank checks a share of its files, and all
    ranks refuse it when one of them finds damage."""
    step, folder, problem = newest_step(run_dir), newest(run_dir), None
    # A shared file system may show ranks different states: all must resume from one step.
    comm.require_equal(step, what="the newest checkpoint's step", device=device)
    if folder is None:
        return None
    try:
        checkpoint.check_files(folder, part=comm.rank(), parts=comm.world_size())
    except BadInput as error:
        problem = error
    agree(problem)
    return checkpoint.load(folder)
