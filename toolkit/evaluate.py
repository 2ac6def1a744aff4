# PYTHON_ARGCOMPLETE_OK
"""The door of evaluation: scores of several encoders side by side, as JSON and a table.

    python -m toolkit.evaluate RECIPE [key=value ...]        (alone, several, or a SLURM array)

A restart goes on: what is scored already is not scored again.
"""

import os
import sys

from toolkit.command_line.door import recipe_door
from toolkit.evaluation.program import run
from toolkit.settings.schema import EvaluateRecipe, Recipe


def main(argv: list[str] | None = None) -> int:
    """The door `python -m toolkit.evaluate`."""

    def action(recipe: Recipe) -> None:
        assert isinstance(recipe, EvaluateRecipe)
        run(recipe, environ=os.environ)

    given = sys.argv[1:] if argv is None else argv
    if given[:1] == ["--reproduce"]:  # short for the recipe of that name
        given = [f"reproduce_{name}" for name in given[1:2]] + given[2:]
    return recipe_door(
        given,
        program="evaluate",
        about="Score encoders side by side on local files, alone or as a SLURM array.",
        example="python -m toolkit.evaluate quickstart_evaluate output_dir=runs/scores\n"
        "  python -m toolkit.evaluate --reproduce mistral_7b   (beside the paper's scores; also "
        "llama2_7b, llama3_8b, sheared_llama_1b, tiny)",
        kinds=("evaluate",),
        run=action,
    )


if __name__ == "__main__":
    sys.exit(main())
