"""What a recipe may not ask of evaluation, said before a model is read."""

from typing import Any

import pytest

from tests.conftest import QUICKSTART
from toolkit.base.errors import BadInput
from toolkit.evaluation.tasks import read_tasks
from toolkit.settings.schema import EvaluateRecipe

STS = {"dev": str(QUICKSTART / "sts_dev.tsv")}


def recipe(**tasks: Any) -> EvaluateRecipe:
    return EvaluateRecipe(
        kind="evaluate", output_dir="out", encoders={"one": {"model": "m"}}, **tasks
    )


def test_tasks_stand_in_the_recipes_order() -> None:
    tasks = recipe(sts={**STS, "again": STS["dev"]}, instructions={"again": "Find the same."})
    assert [one.name for one in read_tasks(tasks)] == ["dev", "again"]


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ({"sts": STS, "pair_classification": {"dev": "PAIRS"}}, "two tasks have the name 'dev'"),
        (
            {"sts": STS, "instructions": {"devel": "Find the same."}},
            r"instructions\.devel: no such task; there are dev",
        ),
        ({}, "the recipe has no task: give it sts, retrieval, classification"),
    ],
)
def test_what_cannot_be_is_refused(
    tasks: dict[str, Any], message: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    pairs = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    lines = '{"text1": "a", "text2": "b", "label": 1}\n{"text1": "a", "text2": "c", "label": 0}\n'
    pairs.write_text(lines)
    if "pair_classification" in tasks:
        tasks = {**tasks, "pair_classification": {"dev": str(pairs)}}
    with pytest.raises(BadInput, match=message):
        read_tasks(recipe(**tasks))
