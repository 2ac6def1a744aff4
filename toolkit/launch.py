# PYTHON_ARGCOMPLETE_OK
"""The launcher: a recipe or a pipeline of recipes becomes jobs, each waiting for the one before.

    python -m toolkit.launch                                  (Mistral-7B, the whole pipeline)
    python -m toolkit.launch tiny_pipeline --dry-run

Runs on a login node: nothing here imports torch.
"""

import argparse
import dataclasses
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from toolkit.base.console import say, say_error, say_lines
from toolkit.base.errors import BadInput
from toolkit.base.files import create_atomic, write_atomic
from toolkit.base.layout import CONFIG_FILE
from toolkit.cluster import site, submit
from toolkit.command_line.completion import answer_shell
from toolkit.command_line.door import Parser, guarded
from toolkit.launching.follow import follow
from toolkit.launching.jobs import CHECK, CheckJob, StageJob
from toolkit.launching.stages import (
    ONE_GPU_GIB,
    PlannedJob,
    check_jobs,
    jobs_of,
    warn_if_too_large,
)
from toolkit.runs.estimate import gpu_of
from toolkit.runs.launched import Launched, write_launched
from toolkit.settings.catalogue import recipes_text, shipped
from toolkit.settings.hub import is_offline
from toolkit.settings.pipeline_schema import PipelineRecipe
from toolkit.settings.pipelines import output_of, places_of, resolve, split_overrides
from toolkit.settings.recipes import load_recipe, to_yaml
from toolkit.settings.schema import TrainingRecipe

DEFAULT_RECIPE = "llm2vec_mistral_7b"
EXAMPLES = """examples:
  python -m toolkit.launch run_dir=runs/a data.train=shards/wikipedia
  python -m toolkit.launch tiny_pipeline --cluster local mntp.train.steps=20
  python -m toolkit.launch simcse_mistral_7b --nodes 2 --dry-run

In a pipeline, stage.key=value goes to one stage and key=value to all that have the key, unless the
pipeline itself gives them different values."""
CHECK_MIN = 10  # a check takes seconds, and one hung node would hold all the others


def parser() -> argparse.ArgumentParser:
    """The command line of the launcher."""
    made = Parser(
        prog="python -m toolkit.launch",
        description="Submit a recipe, or every stage of a pipeline, as jobs in order.",
        epilog=f"{EXAMPLES}\n\n{recipes_text()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument(
        "overrides",
        nargs="*",
        metavar="RECIPE key=value",
        help=f"a recipe's name or YAML file (default {DEFAULT_RECIPE}), then train.steps=100 etc.",
    )
    made.add_argument("--recipe", help="the same, as an option")
    _add_resources(made)
    made.add_argument("--dependency", help=site.DEPENDENCY.about)
    made.add_argument(
        "--array-throttle", type=int, help="tasks of an array that run at a time (default: all)"
    )
    site.add_options(made)
    made.add_argument(
        "--site", help=f"a file with defaults for these options; also ${site.SITE_VARIABLE}"
    )
    made.add_argument(
        "--chain",
        type=int,
        default=1,
        help="jobs per training stage, one after another, where SLURM may not requeue (default 1)",
    )
    made.add_argument(
        "--check",
        action="store_true",
        help="only check whether all ranks could start: addresses, code, data, disk, clocks, speed",
    )
    made.add_argument(
        "--wait", action="store_true", help="follow the jobs; Ctrl-C asks what to do with them"
    )
    made.add_argument("--cluster", choices=("auto", "slurm", "local"), default="auto")
    made.add_argument(
        "--dry-run",
        action="store_true",
        help="print the exact scripts and what is missing; do nothing",
    )
    made.add_argument("--print-config", action="store_true", help="show the resolved recipes")
    return made


def _add_resources(made: argparse.ArgumentParser) -> None:
    made.add_argument("--nodes", type=int, default=1, help="nodes of each training job (default 1)")
    made.add_argument(
        "--gpus-per-node",
        type=int,
        help="ranks per node; 0 is one rank on the CPU (default: all GPUs of a node)",
    )
    made.add_argument("--gpu", help="kind of GPU, as in h100: warn of stages that will not fit")
    made.add_argument(
        "--allow-missing-models",
        action="store_true",
        help="submit even if a model is not in this machine's hub cache: the nodes have their own",
    )
    made.add_argument("--cpus-per-task", type=int, default=4, help="cores per rank (default 4)")
    made.add_argument(
        "--time-min", type=int, default=1440, help="time limit per job in minutes (default 1440)"
    )
    made.add_argument("--mem-gib", type=int, help="GiB of memory per node (default: the cluster's)")
    made.add_argument(
        "--mem-per-gpu-gib",
        type=int,
        help="GiB of memory per GPU, in place of --mem-gib (default: the cluster's; "
        f"{ONE_GPU_GIB} for tasks with one GPU each, which then share nodes)",
    )


def main(argv: Sequence[str] | None = None) -> int:
    """The door `python -m toolkit.launch`."""
    made = parser()
    answer_shell(made)
    arguments = parse(made, argv)

    def action() -> None:
        launch(with_site(arguments, argv=argv, environ=os.environ), environ=os.environ)

    try:
        return guarded(action)
    except submit.JobFailed as error:
        say_error(error)
        return 1


def parse(made: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line. The recipe is the first word, that of --recipe, or the default.

    Only a word without = is a recipe, so that keys alone are keys of the default recipe.
    """
    default = made.get_default("recipe") or DEFAULT_RECIPE  # a site's file may have another
    made.set_defaults(recipe=None)
    arguments = made.parse_intermixed_args(argv)
    if arguments.recipe is None and arguments.overrides and "=" not in arguments.overrides[0]:
        arguments.recipe = arguments.overrides.pop(0)
    arguments.recipe = arguments.recipe or default
    return arguments


def with_site(
    arguments: argparse.Namespace, *, argv: Sequence[str] | None, environ: Mapping[str, str]
) -> argparse.Namespace:
    """Parse the command line again, with the defaults of the site's file if there is one."""
    path = site.site_file(arguments.site, environ=environ)
    if path is None:
        return arguments
    again = parser()
    again.set_defaults(**site.read_site(path, parser=again))
    return parse(again, argv)


def launch(arguments: argparse.Namespace, *, environ: Mapping[str, str]) -> None:
    """Resolve the recipe, check it, and submit or run its jobs. Raises `BadInput` before anything
    is written, except for what sbatch alone can refuse: by then it has the scripts."""
    cluster = arguments.cluster
    if cluster == "auto":
        several = arguments.dry_run and arguments.nodes > 1  # which only SLURM's scripts can have
        cluster = "slurm" if submit.has_slurm() or several else "local"
    if cluster == "slurm" and not (arguments.dry_run or submit.has_slurm()):
        raise BadInput("--cluster slurm: no sbatch and srun on PATH; submit from a login node")
    whole, run_dir, stages = resolve(arguments.recipe, overrides=arguments.overrides)
    if arguments.print_config:
        for name, recipe in stages.items():
            say(f"# {name}")
            say_lines(f"{to_yaml(recipe)}\n")
        return
    jobs = jobs_of(stages, run_dir=run_dir, arguments=arguments, cluster=cluster)
    # Jobs run offline by default: what this machine has not cached, they could not fetch.
    must_be_here = cluster == "slurm" and not arguments.dry_run and is_offline(environ, default="1")
    check_jobs(
        jobs,
        models_must_be_here=must_be_here and not arguments.allow_missing_models,
        inputs_must_be_here=not arguments.dry_run,
    )
    if arguments.gpu:
        gpu = gpu_of(arguments.gpu)
        warn_if_too_large(jobs, gpu=gpu, model_must_be_here=not arguments.dry_run)
    setup = environment_script(environ)
    if arguments.check:
        jobs = [check_of(jobs)]
    if arguments.dry_run:
        for job in jobs:
            previous = previous_of(jobs, job)
            after = f"afterok:<id of {previous.name}>" if previous else arguments.dependency
            text = dry_run_text(job, after=after, cluster=cluster, setup=setup)
            say_lines(f"{text}\n")  # a line between two scripts
            if job.resources.chained:
                say(
                    f"# {arguments.chain} such jobs, each afterany of the one before, with its "
                    "number in TOOLKIT_CHAIN\n"
                )
        return
    if arguments.check:
        run_check(jobs[0], cluster=cluster, after=arguments.dependency, setup=setup)
        return
    if isinstance(whole, PipelineRecipe):
        claim_pipeline(run_dir, whole, overrides=arguments.overrides)
    if cluster == "local":
        write_launched(run_dir, [launched(job) for job in jobs])
        run_jobs_here(jobs)
    else:
        submitted = submit_jobs(
            jobs, chain=arguments.chain, setup=setup, after=arguments.dependency
        )
        job_ids: dict[str, list[str]] = {job.name: [] for job in jobs}
        for job, job_id in submitted:  # after each job: sbatch may refuse a later one
            job_ids[job.name].append(job_id)
            write_launched(run_dir, [launched(one, job_ids[one.name]) for one in jobs])
        say(f"see python -m toolkit.status {run_dir}")
        if arguments.wait and not follow(run_dir):
            raise submit.JobFailed(f"{run_dir}: not all stages are done")


def claim_pipeline(run_dir: Path, whole: PipelineRecipe, *, overrides: Sequence[str] = ()) -> None:
    """Write a pipeline's config.yaml, and say which stages each override goes to, where they are
    several. Raises `BadInput` where a single run has its own config.yaml there, which it needs in
    order to resume. Each stage claims its own directory."""
    path, text = run_dir / CONFIG_FILE, to_yaml(whole)
    if not create_atomic(path, text):
        if (kind := load_recipe(str(path)).kind) != whole.kind:
            raise BadInput(f"run_dir={run_dir} is a run of kind {kind!r}; choose another run_dir")
        write_atomic(path, text)
    for override in split_overrides(overrides)[1]:
        places = places_of(whole, override=override)
        if len(reached := [name for name in places if name not in whole.skip]) > 1:
            say(f"{override}: in {', '.join(reached)}")


def environment_script(environ: Mapping[str, str]) -> list[str]:
    """The line that sets up a job's environment: slurm/env.sh, the only home of site settings."""
    script = shipped("slurm") / "env.sh"
    chosen = environ.get("TOOLKIT_ENV_SH", str(script) if script.is_file() else "")
    if not chosen:
        return []
    # The script goes on after a `source` that failed, without the site's settings.
    if not Path(chosen).is_file():
        raise BadInput(f"TOOLKIT_ENV_SH={chosen!r}: no such file")
    where = str(Path(chosen).absolute())  # bash looks for a bare name on PATH first
    if "'" in where or not where.isprintable():
        raise BadInput(f"TOOLKIT_ENV_SH={chosen!r}: give a path without quotes and line breaks")
    return [f"source '{where}'"]


def check_of(jobs: Sequence[PlannedJob]) -> PlannedJob:
    """The job of --check: it has the size of the first training stage, and checks every rank."""
    trained = [job for job in jobs if job.is_training]
    if not trained:
        raise BadInput("--check looks at the ranks of a training stage, and this recipe has none")
    asked = dataclasses.replace(
        trained[0].resources,
        name=f"{trained[0].resources.name}-{CHECK}",
        time_min=CHECK_MIN,
        chained=0,
    )
    return PlannedJob(CHECK, trained[0].recipe, asked, trained[0].folder.with_name(CHECK))


def run_check(job: PlannedJob, *, cluster: str, after: str | None, setup: Sequence[str]) -> None:
    """Run the check to its end and show what its first rank prints. Raises `BadInput` with the
    problem that a rank found, and `JobFailed` where the job did not finish."""
    work = CheckJob(job.recipe.model_dump(mode="json"))
    show = say
    if cluster == "local":
        submit.run_here(job.resources, job=work, folder=job.folder, show=show)
    else:
        submit.run_there(
            job.resources, job=work, folder=job.folder, after=after, setup=setup, show=show
        )
    say("check: all ranks could start")


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


def launched(job: PlannedJob, jobs: Sequence[str] = ()) -> Launched:
    """The record of a stage that `toolkit.status` reads."""
    recipe = job.recipe
    steps = recipe.train.steps if isinstance(recipe, TrainingRecipe) else None
    output = str(output_of(recipe).absolute())
    return Launched(job.name, recipe.kind, output, str(job.folder), steps, tuple(jobs))


def submit_jobs(
    jobs: Sequence[PlannedJob], *, chain: int, setup: Sequence[str], after: str | None
) -> Iterator[tuple[PlannedJob, str]]:
    """Submit every job to wait for the one before it, and the first for `after`; print one line
    per job and yield the job with its id.

    A training stage gets `chain` equal jobs. Each starts when the one before it has ended, however
    it ended; those that find the run finished end at once.
    """
    last: str | None = None
    for job in jobs:
        after = f"afterok:{last}" if last else after
        for number in range(1, 1 + (chain if job.is_training else 1)):
            asked = job.resources
            if asked.chained:
                asked = dataclasses.replace(asked, chained=number)
            try:
                last = submit.submit_slurm(
                    asked, job=_stage(job), folder=job.folder, after=after, setup=setup
                )
            except BadInput as error:
                if last is None:
                    raise
                queued = f"the jobs up to {last} are queued: scancel them"
                raise BadInput(f"{error}; {queued}") from error
            after = f"afterany:{last}"
            shape = f"{asked.nodes} x {asked.tasks_per_node} ranks"
            if asked.array > 1:
                shape = f"array of {asked.array}"
            say(f"{job.name}: job {last} ({shape}), logs in {job.folder}")
            yield job, last


def run_jobs_here(jobs: Sequence[PlannedJob]) -> None:
    """Run every job on this machine, one after another."""
    for number, job in enumerate(jobs, 1):
        say(f"[{number}/{len(jobs)}] {job.name}")
        submit.run_here(
            job.resources,
            job=_stage(job),
            folder=job.folder,
            show=lambda line: say(f"  {line}"),
        )


def _stage(job: PlannedJob) -> StageJob:
    return StageJob(job.recipe.model_dump(mode="json"), name=job.name)


if __name__ == "__main__":
    sys.exit(main())
