"""What a shell completes on the command line of a door: options, recipes, keys of the recipe.

Knows argcomplete, which the shell runs the door with (pip install argcomplete). Refuses to know
what a door does. A door is found by PYTHON_ARGCOMPLETE_OK in its first line.
"""

import argparse
import glob
import os
from collections.abc import Iterable

from toolkit.config import flatten, load_recipe, recipe_names, resolve_stages
from toolkit.files import BadInput
from toolkit.schema import PipelineRecipe


def answer_shell(parser: argparse.ArgumentParser) -> None:
    """Say what may follow, and end the process, where a shell asks; do nothing otherwise."""
    if "_ARGCOMPLETE" not in os.environ:
        return
    import argcomplete

    completers = {"recipe": recipes, "overrides": keys}
    for action in parser._actions:
        if action.dest in completers:
            action.completer = completers[action.dest]  # type: ignore[attr-defined]
    argcomplete.autocomplete(parser)


def recipes(prefix: str, **_asked: object) -> Iterable[str]:
    """The project's recipes, and the user's files."""
    found = glob.glob(f"{glob.escape(prefix)}*")
    folders = [f"{path}/" for path in found if os.path.isdir(path)]
    return [*recipe_names(), *folders, *(path for path in found if path.endswith(".yaml"))]


def keys(parsed_args: argparse.Namespace, **_asked: object) -> Iterable[str]:
    """The keys of the recipe that the line names, of a pipeline those of its stages besides."""
    try:
        recipe = load_recipe(parsed_args.recipe)
        found = list(flatten(recipe.model_dump(mode="json")))
        if isinstance(recipe, PipelineRecipe):
            found = [key for key in found if not key.startswith("stages.")]
            for name, stage in resolve_stages(recipe, overrides=[]).items():
                inner = list(flatten(stage.model_dump(mode="json")))
                found += [*inner, *(f"{name}.{key}" for key in inner)]
    except BadInput:  # said once the line is entered
        return []
    return [f"{key}=" for key in dict.fromkeys(found)]
