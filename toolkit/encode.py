# PYTHON_ARGCOMPLETE_OK
"""The door of encoding: a corpus in shards becomes vectors on disk, unit by unit.

    python -m toolkit.encode embed_corpus output_dir=... corpus.input=...     (alone, or several)
    sbatch slurm/embed_corpus.sh output_dir=...                              (a SLURM array)
    mpirun -n 4 python -m toolkit.encode embed_corpus output_dir=...         (MPI)

Workers may come and go at any time; a restart, with any number of them, skips what is finished.
"""

import os
import sys

from toolkit.command_line.door import recipe_door
from toolkit.encoding.program import run
from toolkit.settings.schema import EmbedRecipe, Recipe


def main(argv: list[str] | None = None) -> int:
    """The door `python -m toolkit.encode`."""

    def action(recipe: Recipe) -> None:
        assert isinstance(recipe, EmbedRecipe)
        run(recipe, environ=os.environ)

    return recipe_door(
        argv,
        program="encode",
        about="Embed a corpus, alone, as a task of a SLURM array, or under MPI.",
        example="python -m toolkit.encode embed_corpus encoder.model=runs/simcse "
        "corpus.input=shards/wikipedia output_dir=embeddings/wikipedia",
        kinds=("embed",),
        run=action,
    )


if __name__ == "__main__":
    sys.exit(main())
