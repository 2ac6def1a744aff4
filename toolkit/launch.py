"""The launcher: a recipe or a pipeline of recipes becomes jobs, each waiting for the one before.

    python -m toolkit.launch --nodes 4                        (Mistral-7B, the whole pipeline)
    python -m toolkit.launch --recipe tiny_pipeline --dry-run

Runs on a login node: nothing here imports torch.
"""

import argparse
import dataclasses
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from toolkit.cluster import site, submit
from toolkit.config import (
    check_training,
    load_recipe,
    recipe_names,
    resolve_model,
    resolve_stages,
    split_overrides,
    to_yaml,
)
from toolkit.door import guarded
from toolkit.files import BadInput, is_committed, write_atomic
from toolkit.jobs import StageJob
from toolkit.planning import GIB, Cluster, Gpu, gpu_of, need, shape_of
from toolkit.schema import (
    EmbedRecipe,
    EvaluateRecipe,
    PipelineRecipe,
    Recipe,
    StageRecipe,
    SupervisedRecipe,
    TrainingRecipe,
)

DEFAULT_RECIPE = "llm2vec_mistral_7b"
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


def parser() -> argparse.ArgumentParser:
    """The command line of the launcher."""
    made = argparse.ArgumentParser(
        prog="python -m toolkit.launch",
        description="Submit a recipe, or every stage of a pipeline, as jobs in order.",
        epilog="examples:\n"
        "  python -m toolkit.launch --nodes 4 run_dir=runs/a data.train=shards/wikipedia\n"
        "  python -m toolkit.launch --recipe tiny_pipeline --cluster local mntp.train.steps=20\n"
        "  python -m toolkit.launch --recipe simcse_mistral_7b --nodes 2 --dry-run\n\n"
        "In a pipeline, stage.key=value goes to one stage and key=value to all that have the key.\n"
        f"recipes of the project: {', '.join(recipe_names())}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("overrides", nargs="*", metavar="key=value", help="as in train.steps=100")
    made.add_argument("--recipe", default=DEFAULT_RECIPE, help=f"default {DEFAULT_RECIPE}")
    made.add_argument("--nodes", type=int, default=1, help="nodes of each training job (default 1)")
    made.add_argument(
        "--gpus-per-node",
        type=int,
        help="ranks per node; 0 is one CPU rank (default: what is there)",
    )
    made.add_argument("--gpu", help="its kind, as in h100: warns of a stage that will not fit")
    made.add_argument("--cpus-per-task", type=int, default=4, help="cores a rank (default 4)")
    made.add_argument("--time-min", type=int, default=1440, help="limit a job (default 1440)")
    made.add_argument("--mem-gib", type=int, help="memory a node (default: the cluster's)")
    made.add_argument("--dependency", help=site.DEPENDENCY.about)
    made.add_argument(
        "--array-throttle", type=int, help="tasks of an embedding at a time (default: all)"
    )
    site.add_options(made)
    made.add_argument(
        "--site", help=f"a file with defaults for all of these, also ${site.SITE_VARIABLE}"
    )
    made.add_argument(
        "--chain",
        type=int,
        default=1,
        help="jobs of a training stage, one after another, where SLURM may not requeue (default 1)",
    )
    made.add_argument("--cluster", choices=("auto", "slurm", "local"), default="auto")
    made.add_argument("--dry-run", action="store_true", help="print the exact scripts, do nothing")
    made.add_argument("--print-config", action="store_true", help="show the resolved recipes")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """The door `python -m toolkit.launch`."""
    arguments = parser().parse_intermixed_args(argv)

    def action() -> None:
        launch(with_site(arguments, argv=argv, environ=os.environ), environ=os.environ)

    try:
        return guarded(action)
    except submit.JobFailed as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def with_site(
    arguments: argparse.Namespace, *, argv: Sequence[str] | None, environ: Mapping[str, str]
) -> argparse.Namespace:
    """The command line read again, with the defaults of the site's file if there is one."""
    path = site.site_file(arguments.site, environ=environ)
    if path is None:
        return arguments
    again = parser()
    again.set_defaults(**site.read_site(path, parser=again))
    return again.parse_intermixed_args(argv)


def launch(arguments: argparse.Namespace, *, environ: Mapping[str, str]) -> None:
    """Resolve, check, and submit or run. Raises `BadInput` before anything is written, but for
    what only sbatch knows: then the scripts are there."""
    cluster = arguments.cluster
    if cluster == "auto":
        cluster = "slurm" if submit.has_slurm() else "local"
    if cluster == "slurm" and not (arguments.dry_run or submit.has_slurm()):
        raise BadInput("--cluster slurm: no sbatch and srun on PATH; submit from a login node")
    whole, run_dir, stages = resolve(arguments.recipe, overrides=arguments.overrides)
    if arguments.print_config:
        for name, recipe in stages.items():
            print(f"# {name}\n{to_yaml(recipe)}")
        return
    jobs = plan(stages, run_dir=run_dir, arguments=arguments, cluster=cluster)
    check(jobs)
    if arguments.gpu:
        warn_if_too_large(jobs, gpu=gpu_of(arguments.gpu))
    setup = environment_script(environ)
    if arguments.dry_run:
        for job in jobs:
            previous = previous_of(jobs, job)
            after = f"afterok:<id of {previous.name}>" if previous else arguments.dependency
            print(dry_run_text(job, after=after, cluster=cluster, setup=setup))
            if job.resources.chained:
                print(f"# {arguments.chain} such jobs, each afterany of the one before\n")
        return
    if isinstance(whole, PipelineRecipe):
        write_atomic(run_dir / "config.yaml", to_yaml(whole))
    if cluster == "local":
        run_jobs_here(jobs)
    else:
        submit_jobs(jobs, chain=arguments.chain, setup=setup, after=arguments.dependency)


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
    """What each stage asks for: training the whole allocation, an embedding one task a GPU."""
    if cluster == "local" and arguments.nodes != 1:
        raise BadInput(
            f"--nodes {arguments.nodes} --cluster local: this machine is one node; "
            "use --gpus-per-node for more ranks, or --cluster slurm"
        )
    if arguments.gpus_per_node is not None:
        gpus = arguments.gpus_per_node
    else:
        local = cluster == "local"
        gpus = submit.gpus_here() if local else submit.gpus_of_partition(arguments.partition)
    if gpus < 0:
        raise BadInput(f"--gpus-per-node {gpus}: 0 or more")
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
        if isinstance(recipe, EvaluateRecipe):
            asked = one
        elif isinstance(recipe, EmbedRecipe) and cluster == "slurm":
            throttle = arguments.array_throttle
            asked = dataclasses.replace(one, array=arguments.nodes * ranks, array_throttle=throttle)
        elif isinstance(recipe, TrainingRecipe):
            asked = dataclasses.replace(whole, chained=arguments.chain > 1)
        asked = dataclasses.replace(asked, name=f"{title}-{name}")
        jobs.append(PlannedJob(name, recipe, asked, (run_dir / "logs" / name).absolute()))
    return jobs


def check(jobs: Sequence[PlannedJob]) -> None:
    """Refuse now what a job would refuse after hours in the queue.

    What an earlier stage will write cannot be looked at yet, so only the rest is.
    """
    outputs: list[Path] = []
    for job in jobs:
        recipe, asked = job.recipe, job.resources
        if isinstance(recipe, TrainingRecipe):
            check_training(recipe, world_size=asked.nodes * asked.tasks_per_node)
            models, shards = [recipe.model.base], [recipe.data.train]
        elif isinstance(recipe, EmbedRecipe):
            models, shards = [recipe.encoder.model], [recipe.corpus.input]
        else:
            models = [settings.model for settings in recipe.encoders.values()]
            shards = [task.corpus for task in recipe.retrieval.values()]
        for directory in shards:
            if not _comes_later(directory, outputs=outputs) and not is_committed(Path(directory)):
                how = HOW_TO_PAIR if isinstance(recipe, SupervisedRecipe) else HOW_TO_SHARD
                raise BadInput(f"{job.name}: {directory}: no whole shard directory; {how}")
        for model in models:
            if not _comes_later(model, outputs=outputs):
                _warn_if_not_here(resolve_model(model))
        outputs.append(output_of(recipe).absolute())
        for place in (job.folder, outputs[-1]):
            _check_writable(place)


def _warn_if_not_here(model: str) -> None:
    if os.path.isdir(model):
        return
    from huggingface_hub import try_to_load_from_cache

    if try_to_load_from_cache(model, "config.json") is None:
        print(
            f"warning: {model} is not in this machine's hub cache, and jobs run offline; "
            f"fetch it first: hf download {model}",
            file=sys.stderr,
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
            print(
                f"warning: {job.name}: wants {found.total / GIB:.0f} GiB of a GPU of "
                f"{gpu.memory / GIB:.0f}; see python -m toolkit.plan",
                file=sys.stderr,
            )


def environment_script(environ: Mapping[str, str]) -> list[str]:
    """The line that sets up a job's environment: slurm/env.sh, the only home of site settings."""
    script = Path(__file__).parents[1] / "slurm" / "env.sh"
    chosen = environ.get("TOOLKIT_ENV_SH", str(script) if script.is_file() else "")
    if not chosen:
        return []
    # The script goes on after a `source` that failed, without the site's settings.
    if not Path(chosen).is_file():
        raise BadInput(f"TOOLKIT_ENV_SH={chosen!r}: no such file")
    where = str(Path(chosen).absolute())  # bash looks for a bare name on PATH first
    if "'" in where or not where.isprintable():
        raise BadInput(f"TOOLKIT_ENV_SH={chosen!r}: a path without quotes and line breaks")
    return [f"source '{where}'"]


def previous_of(jobs: Sequence[PlannedJob], job: PlannedJob) -> PlannedJob | None:
    """The job that `job` waits for."""
    place = list(jobs).index(job)
    return jobs[place - 1] if place else None


def dry_run_text(job: PlannedJob, *, after: str | None, cluster: str, setup: Sequence[str]) -> str:
    """What would be submitted for a job; the id of the job before it is not known yet."""
    if cluster == "local":
        asked = job.resources
        return (
            f"# {job.name}: {asked.tasks_per_node} process(es) on this machine, "
            f"logs in {job.folder}\n{to_yaml(job.recipe)}"
        )
    text = submit.sbatch_text(job.resources, folder=job.folder, after=after, setup=setup)
    return f"# ---- {job.name} ----\n{text}"


def submit_jobs(
    jobs: Sequence[PlannedJob], *, chain: int, setup: Sequence[str], after: str | None
) -> None:
    """Submit every job behind the one before it, the first as `after` says; prints a line a job.

    Of a training stage `chain` equal jobs, each after the end of the one before, whatever its end:
    those that find the run finished end at once.
    """
    last: str | None = None
    for job in jobs:
        after = f"afterok:{last}" if last else after
        for _ in range(chain if job.is_training else 1):
            try:
                last = submit.submit_slurm(
                    job.resources, job=_stage(job), folder=job.folder, after=after, setup=setup
                )
            except BadInput as error:
                if last is None:
                    raise
                queued = f"the jobs up to {last} are queued: scancel them"
                raise BadInput(f"{error}; {queued}") from error
            after = f"afterany:{last}"
            asked = job.resources
            shape = f"{asked.nodes} x {asked.tasks_per_node} ranks"
            if asked.array > 1:
                shape = f"array of {asked.array}"
            print(f"{job.name}: job {last} ({shape}), logs in {job.folder}", flush=True)


def run_jobs_here(jobs: Sequence[PlannedJob]) -> None:
    """Run every job on this machine, one after another."""
    for number, job in enumerate(jobs, 1):
        print(f"[{number}/{len(jobs)}] {job.name}", flush=True)
        submit.run_here(
            job.resources,
            job=_stage(job),
            folder=job.folder,
            show=lambda line: print(f"  {line}", flush=True),
        )


def _stage(job: PlannedJob) -> StageJob:
    return StageJob(job.recipe.model_dump(mode="json"), name=job.name)


def _check_writable(path: Path) -> None:
    there = next(place for place in (path, *path.parents) if place.exists())
    if not there.is_dir():
        raise BadInput(f"{path}: {there} is a file; choose another directory")
    if not os.access(there, os.W_OK | os.X_OK):
        raise BadInput(f"{path}: {there} is not yours to write; choose another directory")


def _comes_later(path: str, *, outputs: Sequence[Path]) -> bool:
    absolute = Path(path).absolute()
    return any(absolute == output or output in absolute.parents for output in outputs)


if __name__ == "__main__":
    sys.exit(main())
