"""The stages of a recipe as jobs: what each asks for, and whether it could run.

Knows recipes and resources. Refuses to know how a job is submitted. Nothing here imports torch.
"""

import argparse
import dataclasses
import math
import os
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from toolkit.base.console import warn
from toolkit.base.errors import BadInput
from toolkit.base.layout import ENCODER_DIR, LOG_DIR
from toolkit.base.needs import need_package
from toolkit.cluster import site, submit
from toolkit.launching.inputs import check_inputs, missing_inputs
from toolkit.runs.estimate import GIB, Cluster, Gpu, need
from toolkit.runs.shapes import shape_of
from toolkit.settings.domain_schema import DocumentsRecipe, MineRecipe, ReportRecipe
from toolkit.settings.merge_schema import MergeRecipe, check_forgetting, check_merge
from toolkit.settings.pipelines import output_of
from toolkit.settings.questions_schema import QuestionsRecipe, check_questions
from toolkit.settings.schema import (
    EvaluateRecipe,
    GradedRecipe,
    SharedRecipe,
    SimcseRecipe,
    StageRecipe,
    SupervisedRecipe,
    TrainingRecipe,
)
from toolkit.settings.task_schema import Mteb
from toolkit.settings.training_checks import check_training, fit_to_ranks
from toolkit.training.steps import check_steps

# Memory for a task with one GPU: weights go straight to the GPU, so that it needs a few GiB, and
# nodes have more than this per GPU.
ONE_GPU_GIB = 32
GPUS_UNKNOWN = 1  # per node, in the scripts that a dry run prints where SLURM cannot be asked
MOST_MTEB_TASKS = 56  # of a benchmark; counting them would import mteb, which takes seconds


@dataclasses.dataclass(frozen=True)
class PlannedJob:
    """A stage, what it asks for, and the folder of its logs."""

    name: str
    recipe: StageRecipe
    resources: submit.Resources
    folder: Path

    @property
    def is_training(self) -> bool:
        """Whether it trains, and so resumes from a checkpoint."""
        return isinstance(self.recipe, TrainingRecipe)


def jobs_of(
    stages: Mapping[str, StageRecipe],
    *,
    run_dir: Path,
    arguments: argparse.Namespace,
    cluster: str,
) -> list[PlannedJob]:
    """One job per stage, with what it asks for. Training gets the whole allocation. An embedding
    and questions get one task per GPU, and so does an evaluation, up to its `most_workers`. All
    else is one task."""
    if cluster == "local" and arguments.nodes != 1:
        raise BadInput(
            f"--nodes {arguments.nodes} --cluster local: this machine is one node; "
            "use --gpus-per-node for more ranks, or --cluster slurm"
        )
    gpus = _gpus(arguments, cluster=cluster)
    if arguments.dependency is not None:
        site.check_option("dependency", arguments.dependency, option=site.DEPENDENCY)
    if arguments.chain < 1:
        raise BadInput(f"--chain {arguments.chain}: at least 1")
    _check_memory(arguments, gpus=gpus)
    ranks = max(1, gpus)
    submit.check_folder(run_dir.absolute(), what="run_dir")
    title = re.sub(r"[^A-Za-z0-9_.+-]+", "-", run_dir.absolute().name).strip(".+-") or "run"
    whole = submit.Resources(
        name=title,
        nodes=arguments.nodes,
        tasks_per_node=ranks,
        gpus_per_node=gpus,
        cpus_per_task=arguments.cpus_per_task,
        time_min=arguments.time_min,
        mem_gib=arguments.mem_gib,
        mem_per_gpu_gib=arguments.mem_per_gpu_gib,
        options={
            name: text for name in site.OPTIONS if (text := getattr(arguments, name)) is not None
        },
    )
    one = _of_one_rank(whole)
    jobs = []
    for name, recipe in stages.items():
        asked = whole
        workers = arguments.nodes * ranks
        if isinstance(recipe, EvaluateRecipe):
            asked, workers = one, int(min(workers, most_workers(recipe)))
        elif isinstance(recipe, DocumentsRecipe | MineRecipe | MergeRecipe | ReportRecipe):
            asked, workers = one, 1
        if cluster == "slurm" and (
            isinstance(recipe, SharedRecipe) or (isinstance(recipe, EvaluateRecipe) and workers > 1)
        ):
            throttle = arguments.array_throttle
            asked = dataclasses.replace(one, array=workers, array_throttle=throttle)
        if isinstance(recipe, TrainingRecipe):
            asked = dataclasses.replace(whole, chained=int(arguments.chain > 1))
            recipe = fit_to_ranks(recipe, world_size=workers, tell=warn)
        asked = dataclasses.replace(asked, name=f"{title}-{name}")
        jobs.append(PlannedJob(name, recipe, asked, (run_dir / LOG_DIR / name).absolute()))
    return jobs


def _of_one_rank(whole: submit.Resources) -> submit.Resources:
    """What a task of an array asks for: it claims work by itself, so that one GPU is enough."""
    ranks, mem_gib = whole.tasks_per_node, whole.mem_gib
    one = dataclasses.replace(
        whole,
        nodes=1,
        tasks_per_node=1,
        gpus_per_node=min(whole.gpus_per_node, 1),
        mem_gib=mem_gib and max(1, mem_gib // ranks),  # its share of a node's
    )
    if one.gpus_per_node and one.mem_gib is None and one.mem_per_gpu_gib is None:
        # Where a site sets no default, SLURM gives a task all memory of its node, so that no other
        # can use the node's other GPUs.
        one = dataclasses.replace(one, mem_per_gpu_gib=ONE_GPU_GIB)
    return one


def _check_memory(arguments: argparse.Namespace, *, gpus: int) -> None:
    per_gpu = arguments.mem_per_gpu_gib
    if per_gpu is not None and arguments.mem_gib is not None:
        raise BadInput(
            f"--mem-gib {arguments.mem_gib} --mem-per-gpu-gib {per_gpu}: one is per node, the "
            "other per GPU; give one of them"
        )
    if per_gpu is not None and not gpus:
        raise BadInput(f"--mem-per-gpu-gib {per_gpu}: there are no GPUs; give --mem-gib")


def most_workers(recipe: EvaluateRecipe) -> float:
    """How many workers an evaluation can have: its encoders times its tasks and what baselines add,
    or any number if they can embed the documents of a task together."""
    has_documents = recipe.retrieval or recipe.reranking or recipe.mteb != Mteb()
    if recipe.share_corpora and has_documents:
        return math.inf
    tasks = sum(len(kind) for kind in _tasks_of(recipe))
    ranked = len(recipe.retrieval) + len(recipe.reranking)
    beside = len(recipe.baselines) + recipe.fusion * len(recipe.encoders)
    of_encoders = len(recipe.encoders) * (tasks + MOST_MTEB_TASKS * bool(recipe.mteb.benchmark))
    return of_encoders + ranked * beside


def _tasks_of(recipe: EvaluateRecipe) -> tuple[Collection[str], ...]:
    """The names of tasks, by kind; without those of a benchmark of MTEB."""
    return (
        recipe.sts,
        recipe.retrieval,
        recipe.classification,
        recipe.clustering,
        recipe.pair_classification,
        recipe.reranking,
        recipe.words,
        recipe.mteb.tasks,
    )


def _gpus(arguments: argparse.Namespace, *, cluster: str) -> int:
    """GPUs per node: as many as are asked for, or else as many as are there."""
    gpus: int | None = arguments.gpus_per_node
    if gpus is not None:
        if gpus < 0:
            raise BadInput(f"--gpus-per-node {gpus}: 0 or more")
        return gpus
    if cluster == "local":
        return submit.gpus_here()
    try:
        return submit.gpus_of_partition(arguments.partition)
    except submit.NoSinfo as error:
        if not arguments.dry_run:
            raise BadInput(f"{error}; give --gpus-per-node, or --cluster local") from error
        warn(f"{error}; the scripts ask for {GPUS_UNKNOWN} GPU per node, or give --gpus-per-node")
        return GPUS_UNKNOWN


def check_jobs(
    jobs: Sequence[PlannedJob], *, models_must_be_here: bool, inputs_must_be_here: bool = True
) -> None:
    """Refuse now what a job would refuse after hours in the queue. Where the inputs need not be
    here, a missing one is only a warning: the scripts can be printed without it."""
    stages = {job.name: job.recipe for job in jobs}
    for job in jobs:
        asked = job.resources
        workers = asked.array * asked.nodes * asked.tasks_per_node
        check_settings(stages[job.name], name=job.name, workers=workers)
        _check_pooling_before(stages, name=job.name)
        if inputs_must_be_here:
            check_inputs(stages, name=job.name, models_must_be_here=models_must_be_here)
        else:
            for missing in missing_inputs(stages, name=job.name, models_must_be_here=False):
                warn(missing)
        _check_writable(job.folder)


def check_stage(
    stages: Mapping[str, StageRecipe], *, name: str, workers: int, models_must_be_here: bool
) -> None:
    """Raise `BadInput` for what `workers` processes of a stage would refuse."""
    check_settings(stages[name], name=name, workers=workers)
    check_inputs(stages, name=name, models_must_be_here=models_must_be_here)


def check_settings(recipe: StageRecipe, *, name: str, workers: int) -> None:
    """Raise `BadInput` for what `workers` processes of a stage would refuse, whatever they read."""
    if isinstance(recipe, TrainingRecipe):
        recipe = fit_to_ranks(recipe, world_size=workers)
        check_training(recipe, world_size=workers)
        check_steps(Path(recipe.run_dir), steps=recipe.train.steps)
    elif isinstance(recipe, SharedRecipe) and recipe.schedule == "alone" and workers > 1:
        raise BadInput(
            f"{name}: schedule=alone is for one worker, and these nodes have {workers}:"
            " each would do everything; schedule=claim shares it"
        )
    elif isinstance(recipe, MergeRecipe):
        check_merge(recipe)
    elif isinstance(recipe, ReportRecipe):
        need_package("matplotlib", of="toolkit.report")
    elif isinstance(recipe, EvaluateRecipe):
        _check_choice(recipe)
    elif isinstance(recipe, QuestionsRecipe):
        check_questions(recipe)
    _check_writable(output_of(recipe).absolute())


def _check_choice(recipe: EvaluateRecipe) -> None:
    """Raise `BadInput` for a choice among merges that its encoders and tasks do not allow."""
    if recipe.forgetting is None or recipe.mteb.benchmark:
        return  # what tasks a benchmark has is known to mteb alone, whose import takes seconds
    tasks = [name for kind in _tasks_of(recipe) for name in kind]
    adapters = {name: one.adapters for name, one in recipe.encoders.items()}
    check_forgetting(recipe.forgetting, encoders=adapters, tasks=tasks)


def _check_pooling_before(stages: Mapping[str, StageRecipe], *, name: str) -> None:
    """Raise `BadInput` for a contrastive stage that pools otherwise than the one before it."""
    kinds = (SimcseRecipe, SupervisedRecipe, GradedRecipe)
    recipe = stages[name]
    if not isinstance(recipe, kinds):
        return
    for other_name, other in stages.items():
        folders = (Path(output_of(other)), Path(output_of(other)) / ENCODER_DIR)
        if not isinstance(other, kinds) or Path(recipe.model.base) not in folders:
            continue
        if other.model.pools_as != recipe.model.pools_as:
            now, before = recipe.model.pooling_text, other.model.pooling_text
            raise BadInput(f"{name}: {now}, and {other_name}, from which it goes on, has {before}")


def warn_if_too_large(
    jobs: Sequence[PlannedJob], *, gpu: Gpu, model_must_be_here: bool = True
) -> None:
    """Warn of each training stage that will not fit its GPUs, by `toolkit.plan`'s estimate.

    Later stages train what the first one made of its model, so that this gives the shape of all.
    """
    trained = [(job, job.recipe) for job in jobs if isinstance(job.recipe, TrainingRecipe)]
    try:
        shape = shape_of(trained[0][1].model.base) if trained else None
    except BadInput as error:
        if model_must_be_here:
            raise
        warn(f"cannot tell whether it fits: {error}")
        return
    for job, recipe in trained:
        assert shape
        asked = job.resources
        # Memory does not depend on the network, whose speed is not known here.
        cluster = Cluster(asked.nodes, asked.tasks_per_node, gpu=gpu, network=float("inf"))
        needed = need(shape, recipe, layout_name=recipe.deepspeed.config, cluster=cluster)
        if not needed.fits(gpu):
            warn(
                f"{job.name}: needs {needed.total / GIB:.0f} GiB per GPU, and a GPU has "
                f"{gpu.memory / GIB:.0f}; see python -m toolkit.plan"
            )


def _check_writable(path: Path) -> None:
    # The job makes the missing folders: the nearest one that exists decides whether it can.
    there = next(place for place in (path, *path.parents) if place.exists())
    if not there.is_dir():
        raise BadInput(f"{path}: {there} is a file; choose another directory")
    if not os.access(there, os.W_OK | os.X_OK):
        raise BadInput(f"{path}: you may not write in {there}; choose another directory")
