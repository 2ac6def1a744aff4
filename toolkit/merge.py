# PYTHON_ARGCOMPLETE_OK
"""Merge encoders of one base into one:  python -m toolkit.merge A B [C ...] OUT

No training, and one tensor of each model in memory. With --ratios OUT holds an encoder for each
ratio of two models, as a recipe of the kind `merge` makes them in a pipeline.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from toolkit.base.console import say
from toolkit.base.errors import BadInput
from toolkit.command_line.completion import answer_shell
from toolkit.command_line.door import Parser, guarded
from toolkit.settings.merge_schema import MergeRecipe, Method, check_merge
from toolkit.settings.model_source import check_reference
from toolkit.settings.recipes import parse_recipe
from toolkit.training.card import public_name

SOURCE = "merge"


def main(argv: list[str] | None = None) -> int:
    """The door `python -m toolkit.merge`."""
    parser = Parser(
        prog="python -m toolkit.merge",
        description="Merge the weights of encoders that were trained from one base. Each is a "
        "finished run, an export, a model folder, or a LoRA adapter, which is merged into its base "
        "first. Tokenizer, configuration and pooling must be the same, and are those of the first.",
        epilog="examples:\n"
        "  python -m toolkit.merge runs/general runs/law merged --weights 0.5,0.5\n"
        "  python -m toolkit.merge runs/general runs/law merges --ratios 0,0.25,0.5,0.75,1\n"
        "  python -m toolkit.merge runs/a runs/b runs/c merged --weights 0.4,0.3,0.3 \\\n"
        "    --method ties --base runs/mntp --density 0.2",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "places", nargs="+", metavar="MODEL ... OUT", help="two models or more, and where to write"
    )
    parser.add_argument(
        "--method",
        choices=get_args(Method),
        default="linear",
        help="linear: the weighted mean (the default); slerp: along the arc between two models, "
        "tensor by tensor; ties: the base plus what the models agree on",
    )
    parser.add_argument(
        "--weights", metavar="W,W", help="a weight per model, with commas between; their sum is 1"
    )
    parser.add_argument(
        "--ratios",
        metavar="R,R",
        help="of two models: the weight of the second; each ratio becomes the encoder OUT/RATIO",
    )
    parser.add_argument(
        "--base", metavar="MODEL", help="with ties: the model that all were trained from"
    )
    parser.add_argument(
        "--density",
        type=float,
        metavar="SHARE",
        help="with ties: how much of each difference from the base is kept, as in 0.2",
    )
    parser.add_argument(
        "--dtype", choices=("fp32", "bf16"), help="type of the weights (default: the first model's)"
    )
    answer_shell(parser)
    arguments = parser.parse_intermixed_args(argv)
    return guarded(lambda: run(arguments))


def run(arguments: argparse.Namespace) -> None:
    """Merge the models. Raises `BadInput` before anything is written."""
    recipe = recipe_of(arguments)
    check_merge(recipe)
    for model in (*recipe.models.values(), *([recipe.base] if recipe.base else [])):
        check_reference(model)
    # Here and not above: neither the help text nor a refusal must wait for torch.
    from toolkit.training import merges

    if recipe.ratios:
        merges.run(recipe, environ=os.environ)
        return
    for made in merges.merge_all(recipe):  # and nothing beside OUT
        say(f"merge: {made}")


def recipe_of(arguments: argparse.Namespace) -> MergeRecipe:
    """The command line as a recipe."""
    *models, out = arguments.places
    if len(models) < 2:
        raise BadInput("give two models or more, and after them the folder to write")
    names = [public_name(model) for model in models]
    named = [
        name if names.count(name) == 1 else f"{name} ({number})"
        for number, name in enumerate(names, 1)
    ]
    place = Path(out).absolute()
    content: dict[str, Any] = {
        "kind": SOURCE,
        "models": dict(zip(named, models, strict=True)),
        **{key: getattr(arguments, key) for key in ("method", "base", "density", "dtype")},
    }
    if arguments.ratios is not None:
        content |= {"ratios": _numbers("--ratios", arguments.ratios), "output_dir": str(out)}
    if arguments.weights is not None:
        content |= {"weights": {place.name: _numbers("--weights", arguments.weights)}}
        content.setdefault("output_dir", str(place.parent))
    content.setdefault("output_dir", str(out))
    recipe = parse_recipe(content, source=SOURCE)
    assert isinstance(recipe, MergeRecipe)
    return recipe


def _numbers(option: str, text: str) -> Sequence[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise BadInput(
            f"{option} {text}: write numbers with commas between, as 0.25,0.75"
        ) from error


if __name__ == "__main__":
    sys.exit(main())
