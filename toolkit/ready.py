# PYTHON_ARGCOMPLETE_OK
"""Whether a recipe could start: one process refuses in a second what all ranks would refuse.

    python -m toolkit.ready RECIPE [key=value ...] [--ranks N]    (the recipe that sbatch will get)

On a login node before sbatch; the scripts in slurm/ run it on the first node before their ranks.
"""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence

from toolkit.base.console import say
from toolkit.base.errors import BadInput
from toolkit.cluster.topology import array_task, ranks_of_job
from toolkit.command_line.completion import answer_shell
from toolkit.command_line.door import Parser, add_recipe, guarded
from toolkit.launching.stages import check_stage
from toolkit.settings.catalogue import recipes_text
from toolkit.settings.hub import is_offline
from toolkit.settings.pipelines import resolve
from toolkit.settings.schema import TrainingRecipe


def main(argv: Sequence[str] | None = None) -> int:
    """The door `python -m toolkit.ready`."""
    parser = Parser(
        prog="python -m toolkit.ready",
        description="Check whether a recipe, or every stage of a pipeline, could start: keys, "
        "shards, models, directories, steps. If not, one line says why, and the exit code is 2.",
        epilog="example:\n"
        "  python -m toolkit.ready mntp_mistral_7b run_dir=runs/a --ranks 4 && \\\n"
        "    sbatch slurm/mntp_mistral.sh run_dir=runs/a\n\n"
        f"{recipes_text()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_recipe(parser)
    parser.add_argument(
        "--ranks", type=int, help="ranks that will run it (default: those of the SLURM job, or 1)"
    )
    answer_shell(parser)
    arguments = parser.parse_intermixed_args(argv)
    return guarded(lambda: run(arguments, environ=os.environ))


def run(arguments: argparse.Namespace, *, environ: Mapping[str, str]) -> None:
    """Check every stage of a recipe. Raises `BadInput` for what its ranks would refuse."""
    _, _, stages = resolve(arguments.recipe, overrides=arguments.overrides)
    ranks = ranks_of_job(environ) if arguments.ranks is None else arguments.ranks
    if ranks < 1:
        raise BadInput(f"--ranks {ranks}: at least 1")
    _, tasks = array_task(environ)
    for name, recipe in stages.items():
        check_stage(
            stages,
            name=name,
            # Tasks of an array share an encoding or evaluation, but never a training run.
            workers=ranks if isinstance(recipe, TrainingRecipe) else ranks * tasks,
            models_must_be_here=is_offline(environ),
        )
    say(f"ready: {', '.join(stages)}")


if __name__ == "__main__":
    sys.exit(main())
