# PYTHON_ARGCOMPLETE_OK
"""The training door.

srun python -m toolkit.train mntp_mistral_7b run_dir=runs/a      (one process a GPU)
torchrun --nproc-per-node 8 -m toolkit.train mntp_mistral_7b
python -m toolkit.train tiny_mntp                                (alone)
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from toolkit.cluster.preempt import StopSignal
from toolkit.cluster.topology import detect
from toolkit.config import check_training, deepspeed_layout, resolve_model
from toolkit.door import recipe_door
from toolkit.schema import Recipe, SupervisedRecipe, TrainingRecipe
from toolkit.text import pairs, shards


def run(recipe: TrainingRecipe, *, environ: Mapping[str, str]) -> None:
    """Train on the ranks that `environ` describes; see `toolkit.training.program.run`."""
    # Before torch is imported, which takes seconds: a signal would end the process meanwhile.
    with StopSignal(environ) as stop:
        check_inputs(recipe, world_size=detect(environ).world_size)
        # Here and not above: neither the help text nor a refusal must wait for torch.
        from toolkit.training import program

        program.run(recipe, environ=environ, stop=stop)


def check_inputs(recipe: TrainingRecipe, *, world_size: int) -> None:
    """Raise `BadInput` for what can be told without torch; the program looks again, and closer."""
    check_training(recipe, world_size=world_size)
    deepspeed_layout(recipe.deepspeed.config)
    resolve_model(recipe.model.base)
    directory = Path(recipe.data.train)
    if isinstance(recipe, SupervisedRecipe):
        pairs.checked_manifest(directory, verify=False)
    else:
        shards.checked_manifest(directory, verify=False)


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
