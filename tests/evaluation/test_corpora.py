"""Corpora that all workers of an evaluation embed together: once, whoever is killed, and with the
vectors that one worker alone makes in memory."""

import json
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from tests.conftest import QUICKSTART, ROOT, contents
from tests.encoding.company import company_changes_bits
from tests.evaluation.watched import embedded
from tests.forking.start import environ_of_starts, forked_python
from toolkit import evaluate, verify
from toolkit.base.errors import BadInput
from toolkit.base.files import read_json
from toolkit.encoding.encoder import Encoder
from toolkit.encoding.store import VectorStore
from toolkit.evaluation.corpora import Corpora, ToldToStop
from toolkit.settings.recipes import load_recipe, parse_recipe
from toolkit.settings.schema import EncoderSettings, EvaluateRecipe
from toolkit.text.shards import open_shards

Scores = Mapping[str, Mapping[str, float]]
MAX_TOKENS = 48


def never() -> bool:
    return False


@pytest.fixture(scope="module")
def make(shards: Path, tiny_model: Path) -> Callable[..., Path]:
    """Write a recipe of retrieval on the shipped encyclopedia; returns its file."""

    def made(folder: Path, *, tasks: Sequence[str] = ("articles",), **others: Any) -> Path:
        queries = (QUICKSTART / "queries_dev.jsonl").read_text().splitlines(keepends=True)
        retrieval = {}
        for number, name in enumerate(tasks):
            file = folder / f"{name}.jsonl"
            file.write_text("".join(queries[number :: len(tasks)]))
            retrieval[name] = {"corpus": str(shards), "queries": str(file)}
        recipe = {
            "kind": "evaluate",
            "output_dir": str(folder / "out"),
            "encoders": {"tiny": {"model": str(tiny_model), "max_tokens": MAX_TOKENS}},
            "retrieval": retrieval,
            "lease_s": 60,
            **others,
        }
        path = folder / "recipe.yaml"
        path.write_text(json.dumps(recipe))
        return path

    return made


def scored(recipe: Path, *overrides: str) -> Scores:
    """By one worker, here."""
    loaded = load_recipe(str(recipe), overrides=list(overrides))
    assert isinstance(loaded, EvaluateRecipe)
    return evaluate.run(loaded, environ={})


@pytest.fixture(scope="module")
def alone(make: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Scores:
    """The scores of a worker that embeds the corpus alone, in memory, and writes none."""
    folder = tmp_path_factory.mktemp("alone")
    scores = scored(make(folder, share_corpora=False))
    assert not (folder / "out" / "corpora").exists()
    return scores


def check_scores(found: Scores, wanted: Scores, *, model: Path) -> None:
    """The same bits where this machine gives a text the same bits beside any others."""
    exact = not company_changes_bits(model)
    for name, row in wanted.items():
        assert found[name] == (row if exact else pytest.approx(row, abs=1e-6))


def start(log: Path, recipe: Path, **settings: Any) -> subprocess.Popen[str]:
    command = ["-m", "tests.evaluation.watched", str(log), str(recipe), json.dumps(settings)]
    return subprocess.Popen(
        [forked_python(), *command],
        cwd=ROOT,
        env=environ_of_starts(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def end(worker: subprocess.Popen[str]) -> tuple[int, str]:
    said, _ = worker.communicate(timeout=300)
    return worker.returncode, said


def markers(out: Path) -> dict[str, tuple[int, int]]:
    """The markers of finished units, and when each was written."""
    files = sorted(out.glob("corpora/*/units/*.json"))
    return {file.stem: (file.stat().st_ino, file.stat().st_mtime_ns) for file in files}


def test_two_workers_share_a_corpus_of_which_a_killed_one_did_some_units(
    make: Callable[..., Path], alone: Scores, tiny_model: Path, tmp_path: Path
) -> None:
    recipe, log, out = make(tmp_path), tmp_path / "log", tmp_path / "out"
    killed = start(log, recipe, end_at=3, signal="KILL")
    code, said = end(killed)
    assert code == -9, said
    done = markers(out)
    begun = {unit for _, unit, _ in embedded(log)}
    assert 1 <= len(done) <= 2 and len(begun) == 3
    workers = [start(log, recipe, meet=3) for _ in range(2)]  # three with the killed one
    ends = [end(worker) for worker in workers]
    assert [code for code, _ in ends] == [0, 0], ends
    check_scores(read_json(out / "scores.json"), alone, model=tiny_model)
    (folder,) = (out / "corpora").iterdir()
    times = Counter(unit for _, unit, _ in embedded(log))
    assert set(times) == set(range(len(VectorStore(folder).units)))
    assert len({pid for *_, pid in embedded(log)}) == 3
    # What was on disk stayed; only what the killed worker had not written was embedded again.
    assert {name: markers(out)[name] for name in done} == done
    again = {unit for unit, count in times.items() if count > 1}
    assert again == begun - {int(name) for name in done}
    assert max(times.values()) <= 2
    assert sorted(path.name for path in folder.iterdir()) == ["manifest.json", "plan.json", "units"]


def test_a_worker_that_is_told_to_stop_leaves_the_corpus_between_two_units(
    make: Callable[..., Path], alone: Scores, tiny_model: Path, tmp_path: Path
) -> None:
    recipe, log, out = make(tmp_path), tmp_path / "log", tmp_path / "out"
    code, said = end(start(log, recipe, end_at=2, signal="TERM"))
    assert code == 75 and "told to stop; the same command goes on" in said
    assert len(markers(out)) == 2 and not list(out.glob("corpora/*/leases"))
    assert not (out / "leases").exists()
    check_scores(scored(recipe), alone, model=tiny_model)
    (folder,) = (out / "corpora").iterdir()
    assert VectorStore(folder, verify=True).num_rows == 170
    assert verify.run(out) == 0


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows of each call of the model."""
    rows: list[int] = []
    inner = Encoder.embed

    def embed(self: Encoder, prepared: Any, **others: Any) -> Any:
        rows.append(prepared.num_rows)
        return inner(self, prepared, **others)

    monkeypatch.setattr(Encoder, "embed", embed)
    return rows


def test_three_tasks_on_one_corpus_embed_it_once(
    make: Callable[..., Path],
    tmp_path: Path,
    counted: list[int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe = make(tmp_path, tasks=("one", "two", "three"))
    scores = scored(recipe)
    assert sum(counted) == 170 + 60
    counted.clear()
    assert scored(recipe) == scores
    # Kept by content: another task on it, by another name, embeds no document.
    whole = scored(make(tmp_path, tasks=("four",)))
    assert sum(counted) == 60
    # Of damage one unit is embedded again, and nothing is scored from what is left.
    counted.clear()
    (folder,) = (tmp_path / "out" / "corpora").iterdir()
    path = folder / "units" / "00002.safetensors"
    before = contents(folder)
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    capsys.readouterr()
    assert verify.run(tmp_path / "out") == 2
    assert f"is missing or damaged; delete {folder}: a task" in capsys.readouterr().err
    capsys.readouterr()
    repaired = scored(make(tmp_path, tasks=("five",)))
    unit = VectorStore(folder).units[2]
    assert sum(counted) == 60 + unit.stop - unit.start
    assert "00002.safetensors: is missing or damaged; it is embed" in capsys.readouterr().err
    assert contents(folder) == before
    assert repaired["tiny"]["five nDCG@10"] == whole["tiny"]["four nDCG@10"]


def corpora_in(folder: Path, *, should_stop: Callable[[], bool] = never) -> Corpora:
    given = {"kind": "evaluate", "output_dir": str(folder), "encoders": {"x": {"model": "m"}}}
    recipe = parse_recipe(given, source="test")
    assert isinstance(recipe, EvaluateRecipe)
    return Corpora(recipe, should_stop=should_stop)


TEXTS = [f"Text {number} of {number % 7 * 'some more '}words." for number in range(100)]


def test_whatever_changes_a_vector_makes_another_corpus(tiny_model: Path, tmp_path: Path) -> None:
    """Encoders, their settings and texts never share vectors; equal ones do, at whatever path."""
    copy, other = tmp_path / "copy", tmp_path / "other"
    for folder in (copy, other):
        shutil.copytree(tiny_model, folder)
    (weights,) = other.glob("*.safetensors")
    tensors = load_file(weights)
    save_file({name: 1.01 * tensor for name, tensor in tensors.items()}, weights)
    corpora = corpora_in(tmp_path / "out")
    models = [{"model": str(copy)}, {"model": str(other)}]
    settings: list[dict[str, Any]] = [{}, *models, {"max_tokens": 8}, {"causal": True}]
    settings += [{"prompt": "passage: "}, {"pooling": "max"}, {"dtype": "bf16"}]
    for one in settings:
        encoder = Encoder(EncoderSettings(**{"model": str(tiny_model), "max_tokens": 32, **one}))
        found = corpora.vectors([*TEXTS, *TEXTS[:9]], encoder=encoder, name="x")
        wanted = encoder.vectors_of([*TEXTS, *TEXTS[:9]])
        tolerance = 0.05 if one.get("dtype") == "bf16" else 1e-5
        np.testing.assert_allclose(found, wanted, atol=tolerance, err_msg=str(one))
    assert len(list((tmp_path / "out" / "corpora").iterdir())) == len(settings) - 1
    corpora.vectors([*TEXTS, "another"], encoder=encoder, name="x")
    # Of the same lengths, so that all else in the plan is the same.
    swapped = [*TEXTS[:10], TEXTS[17], *TEXTS[11:17], TEXTS[10], *TEXTS[18:]]
    assert [*map(len, swapped)] == [*map(len, TEXTS)]
    corpora.vectors(swapped, encoder=encoder, name="x")
    assert len(list((tmp_path / "out" / "corpora").iterdir())) == len(settings) + 1


def test_a_helper_takes_only_what_it_can_embed(tiny_model: Path, tmp_path: Path) -> None:
    settings = EncoderSettings(model=str(tiny_model), max_tokens=32)
    encoder = Encoder(settings)
    asked: list[Mapping[str, Any]] = []

    def ours(made_by: Mapping[str, Any]) -> Encoder | None:
        asked.append(made_by)
        return encoder if made_by == {"model": encoder.digest(), **settings.facts()} else None

    helper = corpora_in(tmp_path)
    assert not helper.help_others(ours)  # there is no corpus yet
    with pytest.raises(ToldToStop):
        corpora_in(tmp_path, should_stop=lambda: True).vectors(TEXTS, encoder=encoder, name="x")
    (folder,) = (tmp_path / "corpora").iterdir()
    assert not helper.help_others(lambda _: None) and not asked  # of an encoder that is not ours
    texts = (folder / "texts.parquet").read_bytes()
    (folder / "texts.parquet").write_bytes(texts[:-20])
    with pytest.raises(BadInput, match=r"texts\.parquet: cannot be read"):
        helper.help_others(ours)
    (folder / "texts.parquet").write_bytes(texts)
    assert helper.help_others(ours) and len(asked) == 2
    assert not helper.help_others(ours) and len(asked) == 2  # nothing is left to do
    found = VectorStore(folder).vectors()
    np.testing.assert_allclose(found, encoder.vectors_of(TEXTS), atol=1e-5)


def test_a_vector_that_is_not_finite_names_its_text(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, inner = Encoder(EncoderSettings(model=str(tiny_model), max_tokens=32)), Encoder.embed

    def embed(self: Encoder, prepared: Any, **others: Any) -> Any:
        vectors_ND = inner(self, prepared, **others)
        vectors_ND[3] = np.nan
        return vectors_ND

    monkeypatch.setattr(Encoder, "embed", embed)
    with pytest.raises(BadInput, match=r"are not finite, the first that of 'Text \d+ of"):
        corpora_in(tmp_path).vectors(TEXTS, encoder=encoder, name="x")
    assert not list((tmp_path / "corpora").glob("*/units/*.json"))


def test_shards_are_what_is_counted(shards: Path) -> None:
    """The numbers that these tests know."""
    texts = [record["text"] for record in open_shards(shards).records(0, 170)]
    assert len(set(texts)) == open_shards(shards).num_rows == 170
