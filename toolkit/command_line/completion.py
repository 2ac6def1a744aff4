"""What a shell completes on the command line of a door: options, recipes, keys of the recipe.

Knows argcomplete, which the shell runs the door with (pip install argcomplete). Refuses to know
what a door does. A door is found by PYTHON_ARGCOMPLETE_OK in its first line.
"""

import argparse
import functools
import glob
import os
from collections.abc import Iterable, Sequence

from toolkit.base.errors import BadInput
from toolkit.settings.catalogue import recipe_names
from toolkit.settings.pipelines import resolve_stages
from toolkit.settings.recipes import flatten, load_recipe
from toolkit.settings.schema import PipelineRecipe


def answer_shell(parser: argparse.ArgumentParser, *, kinds: Sequence[str] = ()) -> None:
    """Say what may follow, and end the process, where a shell asks; do nothing otherwise. `kinds`
    of recipes are those that the door takes, all if empty."""
    if "_ARGCOMPLETE" not in os.environ:
        return
    import argcomplete

    completers = {"recipe": functools.partial(recipes, kinds=kinds), "overrides": keys}
    for action in parser._actions:
        if action.dest in completers:
            action.completer = completers[action.dest]  # type: ignore[attr-defined]
    argcomplete.autocomplete(parser)


def recipes(prefix: str, *, kinds: Sequence[str] = (), **_asked: object) -> Iterable[str]:
    """The project's recipes, and the user's files."""
    found = glob.glob(f"{glob.escape(prefix)}*")
    folders = [f"{path}/" for path in found if os.path.isdir(path)]
    return [*recipe_names(kinds), *folders, *(path for path in found if path.endswith(".yaml"))]


def keys(prefix: str, parsed_args: argparse.Namespace, **_asked: object) -> Iterable[str]:
    """The keys of the recipe that the line names, of a pipeline those of its stages besides; the
    recipes, where the line may still name one (toolkit.launch)."""
    named = [word for word in parsed_args.overrides or () if "=" not in word]
    if parsed_args.recipe is None and not named:
        return recipes(prefix)
    try:
        recipe = load_recipe(parsed_args.recipe or named[0])
        found = list(flatten(recipe.model_dump(mode="json")))
        if isinstance(recipe, PipelineRecipe):
            found = [key for key in found if not key.startswith("stages.")]
            for name, stage in resolve_stages(recipe, overrides=[]).items():
                inner = list(flatten(stage.model_dump(mode="json")))
                found += [*inner, *(f"{name}.{key}" for key in inner)]
    except BadInput:  # said once the line is entered
        return []
    return [f"{key}=" for key in dict.fromkeys(found)]
