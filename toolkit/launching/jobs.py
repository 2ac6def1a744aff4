"""What runs inside an allocation: one stage of a pipeline, named by kind and carried as JSON.

Knows which program runs which kind. A job holds plain data and an importable entry point, so that
what a scheduler stores is readable, and a restart is the same call again.
"""

import contextlib
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from submitit.helpers import DelayedSubmission

from toolkit.base.errors import BadInput, RunFailed, full_disk
from toolkit.command_line.door import end_with
from toolkit.settings.domain_schema import DocumentsRecipe, MineRecipe, ReportRecipe
from toolkit.settings.merge_schema import MergeRecipe
from toolkit.settings.questions_schema import QuestionsRecipe
from toolkit.settings.recipes import parse_recipe
from toolkit.settings.schema import EmbedRecipe, EvaluateRecipe, Recipe, TrainingRecipe

CHECK = "check"


@contextlib.contextmanager
def errors_as_lines() -> Iterator[None]:
    """Turn a `BadInput`, a `RunFailed` or a full disk into an error line in the log. A SLURM job
    then exits with a door's code, where submitit would exit with 1 and a traceback."""
    try:
        yield
    except Exception as error:
        ending = error if isinstance(error, BadInput | RunFailed) else None
        if ending is None and (line := full_disk(error)):
            ending = RunFailed(line)
        if ending is None:
            raise
        code = end_with(ending)
        if os.environ.get("SUBMITIT_EXECUTOR") == "slurm":
            raise SystemExit(code) from error
        raise  # submitit's local executor hands it to the launcher


class CheckJob:
    """The job of `launch --check`: every rank checks what a training stage checks before its first
    step, and stops there."""

    def __init__(self, recipe: Mapping[str, Any]) -> None:
        self.recipe = dict(recipe)

    def __call__(self) -> str:
        """Run the checks on this rank; a problem becomes one line in the log."""
        from toolkit.training.admission import check_ranks

        recipe = parse_recipe(self.recipe, source=CHECK)
        assert isinstance(recipe, TrainingRecipe)
        with errors_as_lines():
            check_ranks(recipe, environ=os.environ)
        return CHECK


class StageJob:
    """A stage as submitit runs it on every rank. Requeued on a time limit or preemption, it is
    called again and goes on from what is committed."""

    def __init__(self, recipe: Mapping[str, Any], *, name: str) -> None:
        self.recipe = dict(recipe)
        self.name = name

    def __call__(self) -> str:
        """Run the stage; returns its name. An error that a person can mend becomes one log line."""
        with errors_as_lines():
            run_stage(parse_recipe(self.recipe, source=self.name), environ=os.environ)
        return self.name

    def checkpoint(self) -> DelayedSubmission:
        """What submitit submits again when the job is preempted or out of time."""
        return DelayedSubmission(self)


def run_stage(recipe: Recipe, *, environ: Mapping[str, str]) -> None:
    """Run a recipe of any single kind. Programs are imported here, since they import torch."""
    if isinstance(recipe, TrainingRecipe):
        from toolkit.training import entry

        entry.run(recipe, environ=environ)
    elif isinstance(recipe, EmbedRecipe):
        from toolkit.encoding import program as encoding

        encoding.run(recipe, environ=environ)
    elif isinstance(recipe, QuestionsRecipe):
        from toolkit.domain import program as domain

        domain.run(recipe, environ=environ)
    elif isinstance(recipe, EvaluateRecipe):
        from toolkit.evaluation import program as evaluation

        evaluation.run(recipe, environ=environ)
    elif isinstance(recipe, DocumentsRecipe):
        from toolkit.domain import collection

        collection.run(recipe)
    elif isinstance(recipe, MineRecipe):
        from toolkit.domain import mining

        mining.run(recipe)
    elif isinstance(recipe, MergeRecipe):
        from toolkit.training import merges

        merges.run(recipe, environ=environ)
    elif isinstance(recipe, ReportRecipe):
        from toolkit.report.page import report

        report(Path(recipe.run), output=Path(recipe.output_dir), now=time.time())
    else:
        raise BadInput(f"a {recipe.kind} recipe is not a single stage")
