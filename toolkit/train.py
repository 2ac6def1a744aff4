# PYTHON_ARGCOMPLETE_OK
"""The training door.

srun python -m toolkit.train mntp_mistral_7b run_dir=runs/a      (one process a GPU)
torchrun --nproc-per-node 8 -m toolkit.train mntp_mistral_7b
python -m toolkit.train tiny_mntp                                (alone)
"""

import os
import sys
from collections.abc import Mapping

from toolkit.cluster.preempt import StopSignal
from toolkit.door import recipe_door
from toolkit.schema import Recipe, TrainingRecipe


def run(recipe: TrainingRecipe, *, environ: Mapping[str, str]) -> None:
    """Train on the ranks that `environ` describes; see `toolkit.training.program.run`."""
    # Before torch is imported, which takes seconds: a signal would end the process meanwhile.
    with StopSignal(environ) as stop:
        # Here and not above: the help text of a door must not wait for torch.
        from toolkit.training import program

        program.run(recipe, environ=environ, stop=stop)


def main(argv: list[str] | None = None) -> int:
    """The door `python -m toolkit.train`."""

    def action(recipe: Recipe) -> None:
        assert isinstance(recipe, TrainingRecipe)
        run(recipe, environ=os.environ)

    return recipe_door(
        argv,
        program="train",
        about="Train inside an allocation (srun, torchrun, submitit) or alone.",
        example="srun python -m toolkit.train mntp_mistral_7b run_dir=runs/mntp train.steps=500",
        kinds=("mntp", "simcse", "supervised"),
        run=action,
    )


if __name__ == "__main__":
    sys.exit(main())
