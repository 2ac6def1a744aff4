# PYTHON_ARGCOMPLETE_OK
"""The door of questions: a decoder writes questions about the documents of a corpus.

    python -m toolkit.questions write_questions corpus.input=... output_dir=...  (alone, or several)
    mpirun -n 4 python -m toolkit.questions write_questions ...                  (MPI)

Workers may come and go at any time; a restart, with any number of them, skips what is finished.
"""

import os
import sys

from toolkit.command_line.door import recipe_door
from toolkit.domain.program import run
from toolkit.settings.questions_schema import QuestionsRecipe
from toolkit.settings.schema import Recipe


def main(argv: list[str] | None = None) -> int:
    """The door `python -m toolkit.questions`."""

    def action(recipe: Recipe) -> None:
        assert isinstance(recipe, QuestionsRecipe)
        run(recipe, environ=os.environ)

    return recipe_door(
        argv,
        program="questions",
        about="Have a decoder write questions about the documents of a corpus, alone, as a task of "
        "a SLURM array, or under MPI: training pairs, and a retrieval test.",
        example="python -m toolkit.questions write_questions corpus.input=shards/papers "
        "output_dir=runs/questions",
        kinds=("questions",),
        run=action,
    )


if __name__ == "__main__":
    sys.exit(main())
