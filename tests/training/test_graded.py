"""A run on graded pairs by the door, from a file to an encoder; and what is refused. Loss and
gradients: tests/model/test_cosent.py and tests/training/test_parity.py."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import QUICKSTART, refused
from tests.light import LIGHT
from toolkit import launch, train
from toolkit.base.files import read_json
from toolkit.encoding.encoder import Encoder
from toolkit.evaluation.sts import cosines, read_pairs, spearman
from toolkit.runs.records import read_metrics
from toolkit.training.graded import GradedPairs

FILE = QUICKSTART / "sts_dev.tsv"


def test_training_puts_cosines_in_the_order_of_grades(tiny_model: Path, tmp_path: Path) -> None:
    """On the very pairs that it is scored on: what it learns there, it must know there."""
    out = tmp_path / "run"
    given = [f"run_dir={out}", f"model.base={tiny_model}", *LIGHT, "data.max_tokens=32"]
    assert train.main(["tiny_graded", *given, "train.steps=8", "train.lr=0.003"]) == 0
    rows = [row for row in read_metrics(out) if row["step"]]
    assert [row["step"] for row in rows] == list(range(1, 9))
    assert all(0 <= row["accuracy"] <= 1 for row in rows)
    before, after = correlation(tiny_model), correlation(out)
    assert after > before + 0.05
    (stage,) = read_json(out / "encoder" / "origin.json")["stages"]
    assert (stage["kind"], stage["pooling"]) == ("graded", "mean")
    assert "sts_dev.tsv" in (out / "encoder" / "README.md").read_text()


def correlation(model: Path) -> float:
    """Spearman's, of a model's cosines and the grades."""
    pairs, encoder = read_pairs(FILE), Encoder.from_pretrained(model)
    first_PD, second_PD = encoder.encode(pairs.first), encoder.encode(pairs.second)
    return spearman(cosines(first_PD, second_PD=second_PD), grades_P=pairs.grades_P)


def test_each_pair_comes_once_in_an_epoch() -> None:
    """Content and name of a sample, by its number in the file."""
    pairs, read = GradedPairs(FILE), read_pairs(FILE)
    assert pairs.num_samples == len(read.first)
    last = pairs.content(pairs.num_samples - 1)
    assert (last.first, last.second) == (read.first[-1], read.second[-1])
    assert last.grade == read.grades_P[-1]
    assert pairs.name(3) == "sts_dev.tsv, pair 3"


@pytest.fixture
def refuses(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    def call(*arguments: object) -> str:
        out = tmp_path / "run"
        given = ["tiny_graded", f"run_dir={out}", f"model.base={tiny_model}", *arguments]
        line = refused(capsys, train.main, *given)
        assert not out.exists()
        return line

    return call


def test_what_cannot_be_trained_on_is_refused(
    refuses: Callable[..., str], tmp_path: Path, shards: Path
) -> None:
    flat, broken = tmp_path / "flat.tsv", tmp_path / "broken.csv"
    flat.write_text("1\ta\tb\n1\tc\td\n")
    broken.write_text("a,b,1\na,b,high\n")
    assert "2 pairs of one grade have no order" in refuses(f"data.train={flat}")
    assert "line 2: 'high' is not a score" in refuses(f"data.train={broken}")
    assert "graded pairs are a .tsv (score first) or a .csv" in refuses(f"data.train={shards}")
    assert "cannot be read" in refuses(f"data.train={tmp_path / 'absent.tsv'}")
    line = refuses("data.held_out_documents=3")
    assert "data.held_out_documents=3: pairs do not come from documents" in line
    assert "needs others beside it" in refuses("train.global_batch_rows=1")
    assert "graded.scale" in refuses("graded.scale=0")


def test_the_launcher_looks_for_the_file(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["tiny_graded", f"run_dir={tmp_path / 'run'}", f"model.base={tiny_model}"]
    absent = f"data.train={tmp_path / 'absent.tsv'}"
    line = refused(capsys, launch.main, *given, absent, "--cluster", "local")
    assert "absent.tsv: no such file; give a .tsv or .csv of graded pairs" in line


def test_a_stage_upon_it_must_pool_as_it_does(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the launcher, before anything has run."""
    stages = {
        "graded": {"recipe": "tiny_graded", "set": {"run_dir": "{run_dir}/graded"}},
        "simcse": {"recipe": "tiny_simcse", "set": {"model.base": "{run_dir}/graded"}},
    }
    stages["graded"]["set"]["model.base"] = "{model.base}"  # type: ignore[index]
    stages["simcse"]["set"]["model.pooling"] = "last"  # type: ignore[index]
    pipeline = {
        "kind": "pipeline",
        "run_dir": str(tmp_path / "run"),
        "model": {"base": str(tiny_model)},
        "data": {"train": "unused"},
        "corpus": {"input": "unused"},
        "stages": stages,
    }
    path = tmp_path / "pipeline.yaml"
    path.write_text(json.dumps(pipeline))
    line = refused(capsys, launch.main, path, "--cluster", "local")
    assert "simcse: model.pooling=last" in line
    assert "and graded, from which it goes on, has" in line
