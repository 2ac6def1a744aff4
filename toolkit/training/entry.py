"""Where a training run begins: it refuses what it can before torch is imported.

Knows recipes, shards and signals. Refuses to know what a run does; `training.program` does.
"""

from collections.abc import Mapping
from pathlib import Path

from toolkit.base.console import say
from toolkit.cluster.preempt import StopSignal
from toolkit.cluster.topology import detect
from toolkit.evaluation import sts
from toolkit.settings.layouts import read_layout
from toolkit.settings.mixture_schema import sources_of
from toolkit.settings.model_source import resolve_model
from toolkit.settings.schema import GradedRecipe, SupervisedRecipe, TrainingRecipe
from toolkit.settings.training_checks import check_training, fit_to_ranks
from toolkit.text import pairs, shards


def run(recipe: TrainingRecipe, *, environ: Mapping[str, str]) -> None:
    """Train on the ranks that `environ` describes; see `training.program.run`."""
    # Importing torch takes seconds, in which a signal would otherwise end the process.
    with StopSignal(environ) as stop:
        topology = detect(environ)
        tell = say if topology.rank == 0 else None
        recipe = fit_to_ranks(recipe, world_size=topology.world_size, tell=tell)
        check_inputs(recipe, world_size=topology.world_size)
        # Here and not above: neither the help text nor a refusal must wait for torch.
        from toolkit.training import program

        program.run(recipe, environ=environ, stop=stop)


def check_inputs(recipe: TrainingRecipe, *, world_size: int) -> None:
    """Raise `BadInput` for what shows without torch; the program checks again, and more closely."""
    check_training(recipe, world_size=world_size)
    read_layout(recipe.deepspeed.config)
    resolve_model(recipe.model.base)
    for directory in map(Path, sources_of(recipe.data.train)):
        if isinstance(recipe, SupervisedRecipe):
            pairs.checked_manifest(directory, verify=False)
        elif isinstance(recipe, GradedRecipe):
            sts.read_pairs(directory)
        else:
            shards.checked_manifest(directory, verify=False)
