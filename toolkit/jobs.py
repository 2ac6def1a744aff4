"""What runs inside an allocation: one stage of a pipeline, named by kind and carried as JSON.

Knows which program runs which kind. A job holds plain data and an importable entry point, so that
what a scheduler stores is readable, and a restart is the same call again.
"""

import os
import sys
from collections.abc import Mapping
from typing import Any

from submitit.helpers import DelayedSubmission

from toolkit.config import parse_recipe
from toolkit.files import BadInput
from toolkit.schema import EmbedRecipe, EvaluateRecipe, Recipe, TrainingRecipe


class StageJob:
    """A stage as submitit runs it on every rank. Requeued on a time limit or preemption, it is
    called again and goes on from what is committed."""

    def __init__(self, recipe: Mapping[str, Any], *, name: str) -> None:
        self.recipe = dict(recipe)
        self.name = name

    def __call__(self) -> str:
        """Run the stage; returns its name. What a person can mend is one line in the log."""
        try:
            run_stage(parse_recipe(self.recipe, source=self.name), environ=os.environ)
        except BadInput as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            raise
        return self.name

    def checkpoint(self) -> DelayedSubmission:
        """What submitit submits again when the job is told to go."""
        return DelayedSubmission(self)


def run_stage(recipe: Recipe, *, environ: Mapping[str, str]) -> None:
    """Run a recipe of any single kind. Programs are imported here: they bring torch."""
    if isinstance(recipe, TrainingRecipe):
        from toolkit import train

        train.run(recipe, environ=environ)
    elif isinstance(recipe, EmbedRecipe):
        from toolkit import encode

        encode.run(recipe, environ=environ)
    elif isinstance(recipe, EvaluateRecipe):
        from toolkit import evaluate

        evaluate.run(recipe)
    else:
        raise BadInput(f"a {recipe.kind} recipe is no single stage")
