"""The evaluation program: scores of several encoders side by side, as JSON and a table.

python -m toolkit.evaluate RECIPE [key=value ...]
"""

import json
import sys
from pathlib import Path

from toolkit.door import recipe_door
from toolkit.encoding.formats import unit_length
from toolkit.evaluation.retrieval import read_queries, recall_at
from toolkit.evaluation.sts import cosines, read_pairs, spearman
from toolkit.evaluation.tables import table
from toolkit.files import BadInput, write_atomic
from toolkit.schema import EvaluateRecipe, Recipe, Retrieval
from toolkit.standing import SCORES_FILE
from toolkit.text.shards import open_shards

RECALL_TOP = 3


def run(recipe: EvaluateRecipe) -> dict[str, dict[str, float]]:
    """Score every encoder on every task; writes scores.json and prints the table.

    Raises `BadInput` before anything is written when an encoder, a task or the output cannot be
    used.
    """
    # Here and not above: the help text of a door must not wait for torch.
    from toolkit.encoding.encoder import Encoder

    output_dir = Path(recipe.output_dir)
    if output_dir.exists() and not output_dir.is_dir():
        raise BadInput(f"output_dir={output_dir}: is a file; choose a directory")
    pairs = {name: read_pairs(Path(path)) for name, path in recipe.sts.items()}
    judged = {name: read_queries(Path(task.queries)) for name, task in recipe.retrieval.items()}
    scores: dict[str, dict[str, float]] = {}
    for encoder_name, settings in recipe.encoders.items():
        encoder = Encoder(settings)
        row = scores[encoder_name.replace("_", " ")] = {}
        for name, graded in pairs.items():
            cosine_P = cosines(
                encoder.encode(graded.first), second_PD=encoder.encode(graded.second)
            )
            row[f"{name} Spearman"] = spearman(cosine_P, grades_P=graded.grades_P)
        for name, task in recipe.retrieval.items():
            texts, titles = _documents(task)
            similarity_QN = (
                unit_length(encoder.encode(judged[name].queries))
                @ unit_length(encoder.encode(texts)).T
            )
            row[f"{name} recall@{RECALL_TOP}"] = recall_at(
                similarity_QN, titles=titles, judged=judged[name], top=RECALL_TOP
            )
    # In the order of the recipe, in which the states came about.
    write_atomic(output_dir / SCORES_FILE, json.dumps(scores, indent=2) + "\n")
    print(table(scores))
    return scores


def _documents(task: Retrieval) -> tuple[list[str], list[str]]:
    shards = open_shards(Path(task.corpus))
    records = shards.records(0, shards.num_rows)
    return [r["text"] for r in records], [r["title"] for r in records]


def main(argv: list[str] | None = None) -> int:
    """The door `python -m toolkit.evaluate`."""

    def action(recipe: Recipe) -> None:
        assert isinstance(recipe, EvaluateRecipe)
        run(recipe)

    return recipe_door(
        argv,
        program="evaluate",
        about="Score encoders side by side on local STS and retrieval files.",
        example="python -m toolkit.evaluate quickstart_evaluate output_dir=runs/scores",
        kinds=("evaluate",),
        run=action,
    )


if __name__ == "__main__":
    sys.exit(main())
