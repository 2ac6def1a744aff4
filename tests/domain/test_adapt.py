"""The whole pipeline on the tiny model: documents in, a chosen encoder and a report out."""

import dataclasses
import json
import shutil
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.conftest import run
from tests.domain.adapting import SETTINGS, command, differing, write_papers
from tests.domain.killing import Killer
from toolkit.runs.launched import read_launched
from toolkit.settings.pipeline_schema import PipelineRecipe
from toolkit.settings.recipes import load_recipe
from toolkit.text.pairs import open_pairs
from toolkit.text.shards import open_shards


@pytest.fixture(scope="module")
def papers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_papers(tmp_path_factory.mktemp("papers"))


def launch(papers: Path, folder: Path, *settings: str, code: int = 0) -> str:
    return run([sys.executable, *command(papers, *settings)], code=code, cwd=folder)


@dataclasses.dataclass(frozen=True)
class Adapted:
    """A whole run without a break, and what was printed. Not to be written to."""

    out: Path
    said: str


@pytest.fixture(scope="module")
def whole(papers: Path, tmp_path_factory: pytest.TempPathFactory) -> Adapted:
    folder = tmp_path_factory.mktemp("whole")
    return Adapted(folder / "run", launch(papers, folder, *SETTINGS))


def test_a_folder_becomes_a_chosen_encoder_with_a_report(whole: Adapted) -> None:
    out, said = whole.out, whole.said
    assert "[13/13] report" in said
    chosen = json.loads((out / "choose" / "chosen.json").read_text())
    assert {row["ratio"] for row in chosen["rows"]} == {0.0, 0.25, 0.5, 0.75, 1.0}
    assert (Path(chosen["model"]) / "config.json").is_file()
    scores = json.loads((out / "scores" / "scores.json").read_text())
    assert set(scores) == {"BM25", "before", "after", "before + BM25", "after + BM25"}
    assert {"questions nDCG@10", "general_searches nDCG@10"} <= set(scores["BM25"])
    page = (out / "report" / "index.html").read_text()
    for head in ("What it was trained on", "how to deploy it", "after beside before", "forgetting"):
        assert head in page
    # The page says all that was given on the command line, and its recipe gives this run again.
    assert "choose.baselines=" not in page and "baselines:" in page
    config = load_recipe(str(out / "config.yaml"))
    assert isinstance(config, PipelineRecipe)
    assert config.stages["choose"].set["baselines"] == ["bm25"]
    assert "train.save_every_steps=100: in simcse, supervised" in said
    check_parts(out)
    assert Path(chosen["model"]).is_absolute()
    run([sys.executable, "-m", "toolkit.verify", str(out)])


def check_parts(out: Path) -> None:
    """Nothing that is asked, mined or trained comes from a document of dev or test."""
    parts = {
        row["id"]: row["part"] for row in pq.read_table(out / "documents/split.parquet").to_pylist()
    }
    corpus = open_shards(out / "documents" / "corpus")
    records = corpus.records(0, len(corpus))
    kept_out = {record["text"] for record in records if parts[record["id"]] != "train"}
    assert len(kept_out) == 24
    mined = open_pairs(out / "mined")
    assert [task.name for task in mined.tasks] == ["questions", "titles", "sentences"]
    pairs = [
        mined.pair(number, row)
        for number, num_rows in enumerate(mined.num_rows)
        for row in range(int(num_rows))
    ]
    assert pairs
    for pair in pairs:
        for text in (pair.positive, *pair.negatives):
            assert not any(text.endswith(other) for other in kept_out)
        assert not any(pair.query in other for other in kept_out)
    trained = open_shards(out / "documents" / "train")
    assert not kept_out & {record["text"] for record in trained.records(0, len(trained))}
    for part in ("dev", "test"):
        lines = (out / f"questions_{part}" / "judgements.tsv").read_text().splitlines()[1:]
        assert lines
        assert {parts[line.split("\t")[1]] for line in lines} == {part}


def test_a_run_killed_in_two_stages_goes_on_to_the_same_results(
    papers: Path, whole: Adapted, tmp_path: Path
) -> None:
    """A short one: in the two stages that write most files of their own. Those after them find that
    what they were made from is the same again; pairs by other rules are refused."""
    out = tmp_path / "run"
    shutil.copytree(whole.out, out)
    for stage in ("documents", "questions"):
        shutil.rmtree(out / stage)
    killer = Killer(command(papers, *SETTINGS), folder=tmp_path, whole=whole.out, seed=5)
    for stage in ("documents", "questions"):
        killer.kill_in(stage)
    again = launch(papers, tmp_path, *SETTINGS, "mine.negatives=2", code=2)
    assert "these documents are already there" in again
    assert "holds pairs that were mined from others, or by other rules" in again
    assert differing(out, whole.out) == [], killer.told


@pytest.mark.slow
def test_a_run_killed_in_every_stage_goes_on_to_the_same_results(
    papers: Path, tmp_path: Path
) -> None:
    one, killed = tmp_path / "one", tmp_path / "killed"
    for folder in (one, killed):
        folder.mkdir()
    settings = ("train.save_every_steps=2", "choose.baselines=[bm25]")
    launch(papers, one, *settings)
    killer = Killer(command(papers, *settings), folder=killed, whole=one / "run", seed=2)
    stages = [stage.name for stage in read_launched(one / "run")]
    assert len(stages) == 14
    for stage in stages:
        killer.kill_in(stage)
    launch(papers, killed, *settings)
    assert differing(killed / "run", one / "run") == [], killer.told
    print("killed in", *killer.told, sep="\n")
    run([sys.executable, "-m", "toolkit.verify", str(killed / "run")])


def test_what_is_missing_is_said_before_anything_runs(papers: Path, tmp_path: Path) -> None:
    said = launch(papers / "nowhere", tmp_path, code=2)
    assert "nowhere: no such file or folder" in said
    said = launch(papers, tmp_path, "skip=[minted]", code=2)
    assert "skip: no stage 'minted'" in said
    assert "did you mean" in said
    said = launch(papers, tmp_path, f"source={papers}", code=2)
    assert "say which: documents.source=... or encyclopedia.source=... or data.source=..." in said
    assert not (tmp_path / "run").exists()
