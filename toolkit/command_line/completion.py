"""What a shell completes on the command line of a door: options, recipes, keys of the recipe.

Knows argcomplete (pip install argcomplete), through which the shell runs the door when Tab is
pressed. Refuses to know what a door does. argcomplete recognises a door by PYTHON_ARGCOMPLETE_OK in
its first line.
"""

import argparse
import functools
import glob
import os
from collections.abc import Iterable, Sequence

from toolkit.base.errors import BadInput
from toolkit.settings.catalogue import recipe_names
from toolkit.settings.pipeline_schema import PipelineRecipe
from toolkit.settings.pipelines import resolve_stages
from toolkit.settings.recipes import flatten, load_recipe


def answer_shell(parser: argparse.ArgumentParser, *, kinds: Sequence[str] = ()) -> None:
    """If a shell asks for completions, print them and end the process; otherwise do nothing.
    `kinds` are the kinds of recipes that the door takes, all kinds if empty."""
    if "_ARGCOMPLETE" not in os.environ:
        return
    import argcomplete

    completers = {"recipe": functools.partial(recipes, kinds=kinds), "overrides": keys}
    for action in parser._actions:
        if action.dest in completers:
            action.completer = completers[action.dest]  # type: ignore[attr-defined]
    argcomplete.autocomplete(parser)


def recipes(prefix: str, *, kinds: Sequence[str] = (), **_asked: object) -> Iterable[str]:
    """The names of the project's recipes, and the user's folders and YAML files."""
    paths = glob.glob(f"{glob.escape(prefix)}*")
    folders = [f"{path}/" for path in paths if os.path.isdir(path)]
    return [*recipe_names(kinds), *folders, *(path for path in paths if path.endswith(".yaml"))]


def keys(prefix: str, parsed_args: argparse.Namespace, **_asked: object) -> Iterable[str]:
    """The keys of the recipe that the line names, for a pipeline also those of its stages. If the
    line names no recipe yet (toolkit.launch), the recipes."""
    named = [word for word in parsed_args.overrides or () if "=" not in word]
    if parsed_args.recipe is None and not named:
        return recipes(prefix)
    try:
        recipe = load_recipe(parsed_args.recipe or named[0])
        names = list(flatten(recipe.model_dump(mode="json")))
        if isinstance(recipe, PipelineRecipe):
            names = [key for key in names if not key.startswith("stages.")]
            for name, stage in resolve_stages(recipe, overrides=[]).items():
                inner = list(flatten(stage.model_dump(mode="json")))
                names += [*inner, *(f"{name}.{key}" for key in inner)]
    except BadInput:  # the door prints it once the line is entered
        return []
    return [f"{key}=" for key in dict.fromkeys(names)]
