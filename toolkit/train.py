# PYTHON_ARGCOMPLETE_OK
"""The training door.

srun python -m toolkit.train mntp_mistral_7b run_dir=runs/a      (one process per GPU)
torchrun --nproc-per-node 8 -m toolkit.train mntp_mistral_7b
python -m toolkit.train tiny_mntp                                (alone)
"""

import os
import sys

from toolkit.command_line.door import recipe_door
from toolkit.settings.schema import Recipe, TrainingRecipe
from toolkit.training.entry import run


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
        kinds=("mntp", "simcse", "supervised", "graded"),
        run=action,
    )


if __name__ == "__main__":
    sys.exit(main())
