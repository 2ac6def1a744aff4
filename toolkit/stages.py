"""The stages of a recipe as jobs: what each asks for, and whether it could run.

Knows recipes and resources. Refuses to know how a job is submitted. Nothing here imports torch.
"""

import argparse
import dataclasses
import os
import re
from collections.abc import Mapping, Sequence, Sized
from pathlib import Path

from toolkit.cluster import site, submit
from toolkit.config import (
    ADAPTER_CONFIG,
    check_training,
    is_adapter,
    load_recipe,
    resolve_model,
    resolve_stages,
    split_overrides,
)
from toolkit.console import warn
from toolkit.files import BadInput, is_committed
from toolkit.planning import GIB, Cluster, Gpu, need, shape_of
from toolkit.schema import (
    EmbedRecipe,
    EvaluateRecipe,
    PipelineRecipe,
    Recipe,
    StageRecipe,
    SupervisedRecipe,
    TrainingRecipe,
)

MOST_MTEB_TASKS = 56  # of a benchmark; to count them would take seconds
HOW_TO_SHARD = "make it with data_scripts/shard_wikipedia.py --input DUMP --output DIR"
HOW_TO_PAIR = "make it with data_scripts/prepare_pairs.py --input FILES --output DIR"


@dataclasses.dataclass(frozen=True)
class PlannedJob:
    """A stage, what it asks for, and the folder of its logs."""

    name: str
    recipe: StageRecipe
    resources: submit.Resources
    folder: Path

    @property
    def is_training(self) -> bool:
        """Whether it goes on from a checkpoint."""
        return isinstance(self.recipe, TrainingRecipe)


def resolve(name: str, *, overrides: Sequence[str]) -> tuple[Recipe, Path, dict[str, StageRecipe]]:
    """The recipe, its directory, and its stages by name; a single recipe is its only stage."""
    if load_recipe(name).kind == "pipeline":
        own, rest = split_overrides(overrides)
        pipeline = load_recipe(name, overrides=own)
        assert isinstance(pipeline, PipelineRecipe)
        return pipeline, Path(pipeline.run_dir), resolve_stages(pipeline, overrides=rest)
    recipe = load_recipe(name, overrides=overrides)
    assert not isinstance(recipe, PipelineRecipe)
    return recipe, output_of(recipe), {recipe.kind: recipe}


def output_of(recipe: StageRecipe) -> Path:
    """The directory that a stage writes."""
    return Path(recipe.run_dir if isinstance(recipe, TrainingRecipe) else recipe.output_dir)


def plan(
    stages: Mapping[str, StageRecipe],
    *,
    run_dir: Path,
    arguments: argparse.Namespace,
    cluster: str,
) -> list[PlannedJob]:
    """What each stage asks for: training the whole allocation, an embedding one task a GPU; so an
    evaluation, while there are as many encoders and tasks."""
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
    ranks = max(1, gpus)
    # The folder of the logs stands in the script: a line break would end its #SBATCH line.
    if not str(run_dir.absolute()).isprintable():
        raise BadInput(f"run_dir {str(run_dir)!r}: a path without line breaks, please")
    title = re.sub(r"[^A-Za-z0-9_.+-]+", "-", run_dir.absolute().name).strip(".+-") or "run"
    whole = submit.Resources(
        name=title,
        nodes=arguments.nodes,
        tasks_per_node=ranks,
        gpus_per_node=gpus,
        cpus_per_task=arguments.cpus_per_task,
        time_min=arguments.time_min,
        mem_gib=arguments.mem_gib,
        options={
            name: text for name in site.OPTIONS if (text := getattr(arguments, name)) is not None
        },
    )
    one = dataclasses.replace(
        whole,
        nodes=1,
        tasks_per_node=1,
        gpus_per_node=min(gpus, 1),
        mem_gib=arguments.mem_gib and max(1, arguments.mem_gib // ranks),  # its part of a node's
    )
    jobs = []
    for name, recipe in stages.items():
        asked = whole
        workers = arguments.nodes * ranks
        if isinstance(recipe, EvaluateRecipe):
            asked, workers = one, min(workers, num_parts(recipe))
        if cluster == "slurm" and (
            isinstance(recipe, EmbedRecipe) or (isinstance(recipe, EvaluateRecipe) and workers > 1)
        ):
            throttle = arguments.array_throttle
            asked = dataclasses.replace(one, array=workers, array_throttle=throttle)
        if isinstance(recipe, TrainingRecipe):
            asked = dataclasses.replace(whole, chained=int(arguments.chain > 1))
        asked = dataclasses.replace(asked, name=f"{title}-{name}")
        jobs.append(PlannedJob(name, recipe, asked, (run_dir / "logs" / name).absolute()))
    return jobs


def num_parts(recipe: EvaluateRecipe) -> int:
    """How many workers an evaluation can have: its encoders times its tasks."""
    kinds: tuple[Sized, ...] = (
        recipe.sts,
        recipe.retrieval,
        recipe.classification,
        recipe.clustering,
        recipe.pair_classification,
        recipe.reranking,
        recipe.words,
        recipe.mteb.tasks,
    )
    tasks = sum(len(kind) for kind in kinds)
    return len(recipe.encoders) * (tasks + MOST_MTEB_TASKS * bool(recipe.mteb.benchmark))


def _gpus(arguments: argparse.Namespace, *, cluster: str) -> int:
    """Of a node: what is asked for, or what is there."""
    gpus: int | None = arguments.gpus_per_node
    if gpus is None:
        local = cluster == "local"
        return submit.gpus_here() if local else submit.gpus_of_partition(arguments.partition)
    if gpus < 0:
        raise BadInput(f"--gpus-per-node {gpus}: 0 or more")
    return gpus


def check(jobs: Sequence[PlannedJob]) -> None:
    """Refuse now what a job would refuse after hours in the queue.

    What an earlier stage will write cannot be looked at yet, so only the rest is.
    """
    stages = {job.name: job.recipe for job in jobs}
    for job in jobs:
        recipe, asked = job.recipe, job.resources
        if isinstance(recipe, TrainingRecipe):
            check_training(recipe, world_size=asked.nodes * asked.tasks_per_node)
        elif isinstance(recipe, EvaluateRecipe):
            _check_files(recipe, stage=job.name)
        elif recipe.schedule == "alone" and asked.array > 1:
            raise BadInput(
                f"{job.name}: schedule=alone is for one worker, and these nodes have {asked.array}:"
                " each would embed everything; schedule=claim shares it"
            )
        models, shards = inputs_of(stages, name=job.name)
        for directory in shards:
            if not is_committed(Path(directory)):
                how = HOW_TO_PAIR if isinstance(recipe, SupervisedRecipe) else HOW_TO_SHARD
                raise BadInput(f"{job.name}: {directory}: no whole shard directory; {how}")
        for model in models:
            if isinstance(recipe, TrainingRecipe) or not is_adapter(Path(model)):
                _warn_if_not_here(resolve_model(model))
        for place in (job.folder, output_of(recipe).absolute()):
            _check_writable(place)


def inputs_of(stages: Mapping[str, StageRecipe], *, name: str) -> tuple[list[str], list[str]]:
    """The models and the shards that a stage reads, but for what an earlier stage writes."""
    recipe = stages[name]
    if isinstance(recipe, TrainingRecipe):
        models, shards = [recipe.model.base], [recipe.data.train]
    elif isinstance(recipe, EmbedRecipe):
        models = [recipe.encoder.model, *recipe.encoder.adapters]
        shards = [recipe.corpus.input]
    else:
        models = [m for one in recipe.encoders.values() for m in (one.model, *one.adapters)]
        shards = [task.corpus for task in recipe.retrieval.values()]
    before = list(stages)[: list(stages).index(name)]
    outputs = [output_of(stages[earlier]).absolute() for earlier in before]
    there = [
        [path for path in found if not _comes_later(path, outputs=outputs)]
        for found in (models, shards)
    ]
    return there[0], there[1]


def _check_files(recipe: EvaluateRecipe, *, stage: str) -> None:
    """That the files of local tasks are there; what is in them is looked at by the job."""
    paths = [*recipe.sts.values(), *recipe.clustering.values(), *recipe.reranking.values()]
    paths += recipe.pair_classification.values()
    paths += [part for task in recipe.classification.values() for part in (task.train, task.test)]
    paths += [part for task in recipe.words.values() for part in (task.train, task.test)]
    for task in recipe.retrieval.values():
        paths += [task.queries, *([task.judgements] if task.judgements else [])]
    if missing := [path for path in paths if not Path(path).exists()]:
        raise BadInput(f"{stage}: {missing[0]}: no such file")


def _warn_if_not_here(model: str) -> None:
    if os.path.isdir(model):
        return
    from huggingface_hub import try_to_load_from_cache

    files = ("config.json", ADAPTER_CONFIG)
    if not any(isinstance(try_to_load_from_cache(model, name), str) for name in files):
        warn(
            f"{model} is not in this machine's hub cache, and jobs run offline; "
            "fetch it first: python -m toolkit.prefetch RECIPE"
        )


def warn_if_too_large(jobs: Sequence[PlannedJob], *, gpu: Gpu) -> None:
    """Say which training stage will not fit its GPUs, by `toolkit.plan`'s estimate.

    The first stage's model tells the shape: a later one trains what came of it.
    """
    trained = [(job, job.recipe) for job in jobs if isinstance(job.recipe, TrainingRecipe)]
    shape = shape_of(trained[0][1].model.base) if trained else None
    for job, recipe in trained:
        assert shape
        asked = job.resources
        cluster = Cluster(asked.nodes, asked.tasks_per_node, gpu=gpu, network=float("inf"))
        found = need(shape, recipe, layout_name=recipe.deepspeed.config, cluster=cluster)
        if not found.fits(gpu):
            warn(
                f"{job.name}: wants {found.total / GIB:.0f} GiB of a GPU of "
                f"{gpu.memory / GIB:.0f}; see python -m toolkit.plan"
            )


def _check_writable(path: Path) -> None:
    there = next(place for place in (path, *path.parents) if place.exists())
    if not there.is_dir():
        raise BadInput(f"{path}: {there} is a file; choose another directory")
    if not os.access(there, os.W_OK | os.X_OK):
        raise BadInput(f"{path}: {there} is not yours to write; choose another directory")


def _comes_later(path: str, *, outputs: Sequence[Path]) -> bool:
    absolute = Path(path).absolute()
    return any(absolute == output or output in absolute.parents for output in outputs)
