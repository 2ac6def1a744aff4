"""Runs that train vectors for their storage: what they record, and what they refuse."""

from pathlib import Path

import pytest

from tests.conftest import QUICKSTART
from toolkit import train
from toolkit.runs.records import read_metrics
from toolkit.settings.recipes import load_recipe, to_yaml
from toolkit.settings.storage_schema import Stored

TINY = QUICKSTART / "tiny-mistral"
BINARY = "{vectors: binary}"
INT8 = "{vectors: int8, dims: 32, weight: 0.5}"


@pytest.fixture
def recipe(shards: Path, tmp_path: Path) -> list[str]:
    sizes = ["train.global_batch_rows=8", "train.micro_batch_rows=8", "train.steps=2"]
    places = [f"run_dir={tmp_path / 'run'}", f"data.train={shards}", f"model.base={TINY}"]
    return ["tiny_simcse", *places, *sizes]


def test_each_loss_is_recorded_and_the_card_says_what_for(
    recipe: list[str], tmp_path: Path
) -> None:
    settings = [f"simcse.stored_as=[{BINARY}, {INT8}]", "simcse.spread_out_weight=0.25"]
    assert train.main([*recipe, *settings, "train.log_every_steps=1"]) == 0
    run = tmp_path / "run"
    # Of the loss only that on the plain vectors is not recorded by itself.
    for row in read_metrics(run):
        parts = row["loss_binary"] + 0.5 * row["loss_int8_32"]
        assert 2.5 * (row["loss"] - 0.25 * row["spread_out"]) > parts > 0
        assert 0 < row["spread_out"] < 2
    card = (run / "encoder" / "README.md").read_text(encoding="utf-8")
    for_what = "for vectors stored as binary of all numbers (weight 1) and int8 of 32 numbers"
    assert f"{for_what} (weight 0.5); spread out with weight 0.25 |" in card


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["stored_as=[{vectors: int4}]"], "should be 'int8' or 'binary', not \"int4\""),
        (["stored_as=[{vectors: int8, dim: 32}]"], "valid keys here: vectors, dims, weight; "),
        (["stored_as=[{vectors: int8, dims: 0}]"], "greater than or equal to 1, not 0"),
        (["stored_as=[{vectors: int8, weight: 0}]"], "should be greater than 0, not 0"),
        (["stored_as=[binary]"], 'not "binary"'),
        ([f"stored_as=[{BINARY}, {INT8}, {BINARY}]"], "binary is there twice; give it once"),
        (
            ["stored_as=[{vectors: int8, dims: 257}]"],
            f"dims=257 of int8, but the vectors of {TINY} have 256 numbers; give at most so many",
        ),
        (["spread_out_weight=-1"], "greater than or equal to 0, not -1"),
        (["spread_out_weight=.inf"], "spread_out_weight"),
        (
            [f"stored_as=[{BINARY}]", "teacher.embeddings=absent", "teacher.weight=1"],
            "simcse.stored_as has no effect with simcse.teacher.weight=1, which leaves InfoNCE out",
        ),
    ],
)
def test_what_cannot_be_trained_for_is_refused(
    settings: list[str],
    message: str,
    recipe: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert train.main([*recipe, *(f"simcse.{setting}" for setting in settings)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", ["simcse", "supervised"])
def test_a_recipe_with_forms_is_read_as_it_was_printed(kind: str, tmp_path: Path) -> None:
    made = load_recipe(f"tiny_{kind}", overrides=[f"{kind}.stored_as=[{BINARY}, {INT8}]"])
    path = tmp_path / "printed.yaml"
    path.write_text(to_yaml(made), encoding="utf-8")
    again = load_recipe(str(path))
    assert again == made
    forms = (Stored(vectors="binary"), Stored(vectors="int8", dims=32, weight=0.5))
    assert getattr(again, kind).stored_as == forms
    assert getattr(again, kind).cuts([64, 32]) == (32, 64)
