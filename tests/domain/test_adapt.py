"""The whole pipeline on the tiny model: documents in, a chosen encoder and a report out."""

import json
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.conftest import QUICKSTART, run
from toolkit.settings.pipeline_schema import PipelineRecipe
from toolkit.settings.recipes import load_recipe
from toolkit.text.pairs import open_pairs
from toolkit.text.readers import Columns
from toolkit.text.records import Article
from toolkit.text.shards import open_shards
from toolkit.text.sources import find_inputs, open_source


@pytest.fixture(scope="module")
def papers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty articles of the encyclopedia, each a text file, named as people name files."""
    folder = tmp_path_factory.mktemp("papers")
    (given,) = find_inputs([QUICKSTART / "encyclopedia.xml.bz2"])
    source = open_source(given, columns=Columns())
    pages = (source.document(raw, number=place) for place, raw in enumerate(source.rows(0)))
    articles = [page for page in pages if isinstance(page, Article)][:60]
    for article in articles:
        text = article.text.replace("\n", "\n\n")
        (folder / f"About {article.title.replace('/', '-')}.txt").write_text(text)
    return folder


def launch(papers: Path, out: Path, *settings: str, code: int = 0) -> str:
    command = [sys.executable, "-m", "toolkit.launch", "tiny_adapt_domain", "--cluster", "local"]
    command += ["--gpus-per-node", "0", f"data.source={papers}", f"run_dir={out}", *settings]
    return run(command, code=code)


def test_a_folder_becomes_a_chosen_encoder_with_a_report(papers: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    settings = (
        "skip=[mntp]",
        "train.save_every_steps=100",
        "choose.baselines=[bm25]",
        "evaluate.encoders.after.max_tokens=32",
    )
    said = launch(papers, out, *settings)
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
    # A restart finds what is there, and refuses pairs that other rules have mined.
    again = launch(papers, out, *settings, "mine.negatives=2", code=2)
    assert "these documents are already there" in again
    assert "holds pairs that were mined from others, or by other rules" in again


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


def test_what_is_missing_is_said_before_anything_runs(papers: Path, tmp_path: Path) -> None:
    said = launch(papers / "nowhere", tmp_path / "run", code=2)
    assert "nowhere: no such file or folder" in said
    said = launch(papers, tmp_path / "run", "skip=[minted]", code=2)
    assert "skip: no stage 'minted'" in said
    assert "did you mean" in said
    said = launch(papers, tmp_path / "run", f"source={papers}", code=2)
    assert "say which: documents.source=... or encyclopedia.source=... or data.source=..." in said
    assert not (tmp_path / "run").exists()
