"""Checks of a run and of the place of an export that need no torch.

Knows the recipe of a run directory. Refuses to know tensors.
"""

from pathlib import Path

from toolkit.base.errors import BadInput
from toolkit.base.files import is_committed
from toolkit.base.layout import CONFIG_FILE
from toolkit.settings.recipes import load_recipe
from toolkit.settings.schema import TrainingRecipe


def run_recipe(run_dir: Path) -> TrainingRecipe:
    """The recipe of a training run, from its own config.yaml."""
    path = run_dir / CONFIG_FILE
    if not path.is_file():
        raise BadInput(f"{run_dir}: is not a run directory (no {CONFIG_FILE})")
    recipe = load_recipe(str(path))
    if not isinstance(recipe, TrainingRecipe):
        raise BadInput(f"{run_dir}: is a run of kind {recipe.kind!r}, not a training run")
    return recipe


def refuse_taken(out: Path) -> None:
    """Raise `BadInput` if `out` is a finished export or a folder that is not empty."""
    if is_committed(out) or (out.is_dir() and any(out.iterdir())):
        raise BadInput(f"{out}: already there; export to another folder, or remove it first")
