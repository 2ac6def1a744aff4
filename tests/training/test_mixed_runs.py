"""Runs on several sources with shares, by the doors: what is read, restarts, refusals, reports. The
order of rows: tests/text/test_mixture.py; loss and gradients: tests/training/test_parity.py."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import refused
from tests.light import LIGHT
from tests.text.making import shard_articles
from tests.training.test_held_out import naive
from toolkit import launch, plan, status, train
from toolkit.base.errors import BadInput
from toolkit.base.files import read_json
from toolkit.settings.pipelines import resolve
from toolkit.settings.recipes import load_recipe
from toolkit.settings.schema import SimcseRecipe, TrainingRecipe
from toolkit.settings.training_checks import check_training
from toolkit.text.records import Article
from toolkit.text.shards import open_shards
from toolkit.training.data import texts_read

Door = Callable[..., str]
LETTERS = [
    Article(
        str(n), "", "", " ".join(f"Dear {n}, this is letter {k} of {n}." for k in range(n % 4 + 1))
    )
    for n in range(12)
]


@pytest.fixture(scope="module")
def letters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A second source: few, short texts of their own kind."""
    return shard_articles(LETTERS, output=tmp_path_factory.mktemp("letters") / "shards")


def mixed(shards: Path, letters: Path, *, of_letters: float = 0.25) -> str:
    return json.dumps({str(shards): 1 - of_letters, str(letters): of_letters})


def metrics(run_dir: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").open()]


@pytest.fixture(scope="module")
def runs(
    tmp_path_factory: pytest.TempPathFactory, shards: Path, letters: Path, tiny_model: Path
) -> Path:
    """A run of two steps, that run in a copy with four steps, and a run of four steps in one."""
    folder = tmp_path_factory.mktemp("runs")
    common = ["tiny_mntp", f"data.train={mixed(shards, letters)}", f"model.base={tiny_model}"]
    common += [*LIGHT, "model.lora.dropout=0.0", "data.held_out_documents=3"]
    common += ["deepspeed.config=zero2", "train.micro_batch_rows=4"]
    for name, steps in (("half", 2), ("whole", 4)):
        assert train.main([*common, f"run_dir={folder / name}", f"train.steps={steps}"]) == 0
    for name in ("one", "two"):
        shutil.copytree(folder / "half", folder / name)
    (folder / "common.json").write_text(json.dumps([*common, "train.steps=4"]))
    assert train.main([*common, f"run_dir={folder / 'one'}", "train.steps=4"]) == 0
    return folder


def test_a_restart_goes_on_with_the_same_rows(runs: Path, door: Door) -> None:
    """Bit for bit; on other ranks to rounding."""
    door("train", *read_json(runs / "common.json"), f"run_dir={runs / 'two'}", ranks=2)
    losses = {
        name: [row["loss"] for row in metrics(runs / name) if row["step"]]
        for name in ("whole", "one", "two")
    }
    assert losses["one"] == losses["whole"] and len(losses["whole"]) == 4
    assert losses["two"] == pytest.approx(losses["whole"], rel=1e-5)
    weights = {
        name: load_file(runs / name / "encoder" / "model.safetensors") for name in ("whole", "one")
    }
    assert all(torch.equal(weights["one"][key], value) for key, value in weights["whole"].items())


def test_held_out_documents_of_each_source_have_the_naive_loss(
    runs: Path, shards: Path, letters: Path, tiny_model: Path
) -> None:
    before = [row for row in metrics(runs / "whole") if not row["step"]]
    sources = mixed(shards, letters)
    overrides = [f"data.train={sources}"]
    expected = naive(tiny_model, shards=shards, documents=3, overrides=overrides)
    assert before[0]["held_out_loss"] == pytest.approx(expected[0], rel=1e-5)
    alone = naive(tiny_model, shards=shards, documents=3)
    assert abs(alone[0] - expected[0]) > 1e-3


def test_epochs_are_told_wherever_the_run_is_shown(
    runs: Path, shards: Path, letters: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    last = metrics(runs / "whole")[-1]
    # 4 steps of 8 rows, a quarter of them of letters.
    found = {name: last[f"epochs/{name}"] for name in map(str, (shards, letters))}
    capsys.readouterr()
    assert status.main([str(runs / "whole"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["epochs"] == found
    assert status.main([str(runs / "whole")]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert f"{letters} {found[str(letters)]:.2f}" in printed.replace("- ", "-")
    (stage,) = read_json(runs / "whole" / "encoder" / "origin.json")["stages"]
    assert stage["data"].startswith("0.75 of shards and 0.25 of shards 2 (")
    card = (runs / "whole" / "encoder" / "README.md").read_text()
    assert "shards 2" in card and str(letters) not in card and str(shards) not in card


def test_a_source_that_comes_too_often_is_warned_of(
    shards: Path,
    letters: Path,
    tiny_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """SimCSE; the epochs by counting the sentences that the run reads."""
    given = ["train.steps=3", "train.global_batch_rows=128", "train.micro_batch_rows=128"]
    given += [f"data.train={mixed(shards, letters, of_letters=0.9)}", f"model.base={tiny_model}"]
    given += [f"run_dir={tmp_path / 'run'}", "data.max_tokens=8", "model.attention_dropout=0.0"]
    recipe = load_recipe("tiny_simcse", overrides=given)
    assert isinstance(recipe, SimcseRecipe)
    own = sum("letter" in text and "Dear" in text for text, _ in texts_read(recipe))
    epochs = own / int(open_shards(letters).num_sentences.sum())
    assert epochs > 10 and own in (345, 346)  # nine tenths of 384
    capsys.readouterr()
    assert train.main(["tiny_simcse", *given, LIGHT[0], "train.log_every_steps=3"]) == 0
    assert metrics(tmp_path / "run")[-1][f"epochs/{letters}"] == pytest.approx(epochs)
    captured = capsys.readouterr()
    assert f"{shards}: 0.1 of all rows, of " in captured.out
    assert f"warning: {letters}: 0.9 of all rows" in captured.err
    assert f"in 3 steps {epochs:.3g} epochs: the same texts again and again" in captured.err


SHARE = "a share is a number above 0 and at most 1"
GIVE = "give a path, or a share for each of several"
REFUSED = {  # A and B are sources, C is another name of A
    "{A: 0.7, B: 0.2}": "the sum of the shares is 0.9, and must be 1",
    "{A: 0.5, B: 0.500002}": "the sum of the shares is 1.000002, and must be 1",
    "{A: 0, B: 1}": SHARE,
    "{A: -0.5, B: 1.5}": SHARE,
    "{A: .nan, B: 1}": SHARE,
    "{A: true}": SHARE,
    "{A: much, B: 1}": SHARE,
    "{A: 0.5, A/: 0.5}": "two of these paths are the same folder; name it once",
    "{}": GIVE,
    "[A, B]": GIVE,
    "7": GIVE,
    "''": GIVE,
    "{A: 0.5, nowhere: 0.5}": "nowhere: no such directory",
    "{A: 0.5, C: 0.5}": "hold the same shards; name them once",
}


@pytest.mark.parametrize("asked", REFUSED)
def test_what_cannot_be_mixed_is_refused(
    asked: str,
    places: dict[str, Path],
    tiny_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, value = tmp_path / "run", re.sub(r"\b[ABC]\b", lambda it: str(places[it[0]]), asked)
    given = ["tiny_mntp", f"data.train={value}", f"model.base={tiny_model}", f"run_dir={out}"]
    assert REFUSED[asked] in refused(capsys, train.main, *given)
    assert not out.exists()


@pytest.fixture
def places(shards: Path, letters: Path, tmp_path: Path) -> dict[str, Path]:
    (tmp_path / "C").symlink_to(shards)
    return {"A": shards, "B": letters, "C": tmp_path / "C"}


@pytest.mark.parametrize("kind", ["supervised", "graded"])
def test_pairs_are_not_mixed(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = [f"tiny_{kind}", "data.train={a: 0.5, b: 0.5}", f"run_dir={tmp_path / 'run'}"]
    told = "data.train: has 2 sources, which only mntp and simcse mix"
    assert told in refused(capsys, train.main, *given)
    assert told in refused(capsys, launch.main, *given, "--cluster", "local")


def test_a_run_goes_on_with_the_same_mixture_only(runs: Path, shards: Path, letters: Path) -> None:
    common = read_json(runs / "common.json")[1:]

    def check(sources: str, *overrides: str) -> None:
        given = [*common, f"run_dir={runs / 'whole'}", f"data.train={sources}", *overrides]
        recipe = load_recipe("tiny_mntp", overrides=given)
        assert isinstance(recipe, TrainingRecipe)
        check_training(recipe, world_size=1)

    check(json.dumps({str(letters): 0.25, str(shards): 0.75}))  # in any order
    for other in (mixed(shards, letters, of_letters=0.3), str(shards)):
        with pytest.raises(
            BadInput, match=r"belongs to another recipe: data.train was \{'/.*, now"
        ):
            check(other)
        check(other, "train.may_differ=[data.train]")


def test_the_launcher_and_the_plan_know_all_sources(
    shards: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sources = f"data.train={{{shards}: 0.75, {tmp_path / 'law.v2'}: 0.25}}"
    given = ["tiny_pipeline", sources, f"run_dir={tmp_path / 'run'}", f"model.base={tiny_model}"]
    line = refused(capsys, launch.main, "--cluster", "local", *given, f"corpus.input={shards}")
    assert f"mntp: {tmp_path / 'law.v2'}: no whole shard directory" in line
    assert plan.main(given) == 0
    printed = capsys.readouterr().out  # 6 steps of 8 rows, and 6 of 16
    for rows in ((36, 12), (72, 24)):
        assert f"rows: {rows[0]} of {shards}, {rows[1]} of {tmp_path / 'law.v2'}" in printed


def test_a_stage_mixes_what_the_pipeline_makes_with_other_texts(tmp_path: Path) -> None:
    """Placeholders stand in the names of sources too; braces that a user gives mean themselves."""
    path = tmp_path / "mine.yaml"
    path.write_text(
        "kind: pipeline\nrun_dir: out\nmodel: {base: x}\nstages:\n  mntp:\n    recipe: tiny_mntp\n"
        "    set:\n      data.train: {'{run_dir}/documents/train': 0.5, general: 0.5}\n"
    )
    _, _, stages = resolve(str(path), overrides=["run_dir=other"])
    assert isinstance(stages["mntp"], TrainingRecipe)
    assert stages["mntp"].data.train == {"other/documents/train": 0.5, "general": 0.5}
    _, _, stages = resolve(str(path), overrides=["mntp.data.train={'{run_dir}': 0.5, b: 0.5}"])
    assert isinstance(stages["mntp"], TrainingRecipe)
    assert stages["mntp"].data.train == {"{run_dir}": 0.5, "b": 0.5}
