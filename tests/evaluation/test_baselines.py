"""BM25 as a row beside encoders, and fused with them: beside the formulas written out, and through
the door."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.benchmarks.real import bm25 as oracle
from tests.benchmarks.real.peers import bm25
from tests.benchmarks.real.scoring import cranfield, ranked
from tests.conftest import QUICKSTART
from toolkit import evaluate
from toolkit.encoding.encoder import Encoder
from toolkit.evaluation.baselines import not_better, outcome_with_words
from toolkit.evaluation.retrieval import Judged, RerankingTask, RetrievalTask
from toolkit.evaluation.task import Outcome
from toolkit.launching.stages import most_workers
from toolkit.report.door import main as report
from toolkit.settings.recipes import load_recipe
from toolkit.settings.schema import EvaluateRecipe
from toolkit.text.bm25 import Bm25

TEXTS = {
    "A": "the cat sat on the mat",
    "B": "a dog and a cat and a dog",
    "C": "birds sing",
    "D": "the dog sleeps",
}
QUERIES = {"1": "where is the cat", "2": "dog", "3": "zebra"}
JUDGED = Judged(QUERIES, {"1": {"A": 1}, "2": {"B": 1, "D": 2}, "3": {"C": 1}})


class Table:
    """Vectors by text, of a seed."""

    name = revision = "table"

    def __call__(self, texts: Sequence[str], *, instructed: bool = True) -> NDArray[np.float32]:
        seeds = [[ord(letter) for letter in text] for text in texts]
        rows = [np.random.default_rng(seed).normal(size=5) for seed in seeds]
        return np.array(rows, dtype=np.float32)


class Spied:
    """A task that keeps the scores which it is to judge, and may have others to begin with."""

    main = "nDCG@10"

    def __init__(self, task: RetrievalTask, **others: Sequence[NDArray[Any]]) -> None:
        self._task, self._others = task, others
        self.found: list[NDArray[Any]] = []

    def scores(self, embed: Any) -> dict[str, float]:
        return {}

    def cosines(self, embed: Any) -> Iterator[NDArray[Any]]:
        return iter(self._others.get("cosines") or self._task.cosines(embed))

    def word_scores(self) -> Iterator[NDArray[Any]]:
        return iter(self._others.get("words") or self._task.word_scores())

    def outcome(self, found: Iterable[NDArray[Any]]) -> Outcome:
        self.found = list(found)
        return Outcome({})


def by_hand(query: str) -> dict[str, float]:
    """The fused score of each text, with one sort for each ranking."""
    table = Table()
    texts = list(TEXTS.values())
    vectors, (asked,) = table(texts).astype(float), table([query]).astype(float)
    cosine = {
        name: float(vector @ asked / np.linalg.norm(vector) / np.linalg.norm(asked))
        for name, vector in zip(TEXTS, vectors, strict=True)
    }
    word = dict(zip(TEXTS, oracle.BM25(texts).scores(query).tolist(), strict=True))
    total = dict.fromkeys(TEXTS, 0.0)
    for scores in (cosine, {name: score for name, score in word.items() if score > 0}):
        for rank, name in enumerate(sorted(scores, key=lambda name: -scores[name]), 1):
            total[name] += 1 / (60 + rank)
    return total


@pytest.fixture
def same_constants(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oracle's constants are Anserini's unless it is told."""
    monkeypatch.setattr(oracle, "K1", 1.2)
    monkeypatch.setattr(oracle, "B", 0.75)


@pytest.mark.usefixtures("same_constants")
def test_a_retrieval_task_by_words_and_fused() -> None:
    task = RetrievalTask(JUDGED, list(TEXTS), list(TEXTS.values()))
    expected = ranked(bm25(task)).scores
    found = outcome_with_words(task, None).scores
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    spied = Spied(task)
    outcome_with_words(spied, Table())
    for query, score_N in zip(QUERIES.values(), spied.found, strict=True):
        assert score_N.tolist() == pytest.approx(list(by_hand(query).values()))


def test_only_the_first_thousand_of_a_ranking_count() -> None:
    task = RetrievalTask(JUDGED, [], [])
    cosine_N = np.random.default_rng(0).normal(size=1500)
    word_N = np.where(np.arange(1500) < 1200, np.random.default_rng(1).random(1500), 0)
    spied = Spied(task, cosines=[cosine_N], words=[word_N])
    outcome_with_words(spied, Table())
    near, worded = (np.argsort(-score_N).tolist() for score_N in (cosine_N, word_N))
    expected = np.zeros(1500)
    for rank in range(1000):
        expected[near[rank]] += 1 / (61 + rank)
        expected[worded[rank]] += 1 / (61 + rank)
    assert spied.found[0].tolist() == pytest.approx(expected.tolist())
    assert (expected == 0).sum() > 100


@pytest.mark.usefixtures("same_constants")
def test_a_reranking_task_by_words_and_fused() -> None:
    texts = list(TEXTS.values())
    task = RerankingTask(["the cat", "dog"], [[texts[0]], [texts[3]]], [texts[1:3], texts[:2]])
    found = list(task.word_scores())
    index = oracle.BM25(texts)
    for query, rows, score_N in zip(task.queries, ([0, 1, 2], [3, 0, 1]), found, strict=True):
        assert score_N.tolist() == pytest.approx(index.scores(query)[rows].tolist())
    # "dog" is twice in a text of seven words and once in one of three; words alone say the latter.
    assert outcome_with_words(task, None).scores["MAP"] == pytest.approx(1.0)
    assert 0 < outcome_with_words(task, Table()).scores["MAP"] <= 1


def test_cranfield_as_the_studys_own_bm25(real_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the constants of Anserini, and with those of Lucene, which are the toolkit's."""
    task = cranfield(real_data)
    constants = {(0.9, 0.4): 0.3446, (1.2, 0.75): 0.3599}
    for (k1, b), expected in constants.items():
        monkeypatch.setattr(oracle, "K1", k1)
        monkeypatch.setattr(oracle, "B", b)
        task.__dict__["_index"] = Bm25(task.texts, k1=k1, b=b)
        found = outcome_with_words(task, None).scores
        for name, score in ranked(bm25(task)).scores.items():
            assert found[name] == pytest.approx(score, abs=1e-6)
        assert found["nDCG@10"] == pytest.approx(expected, abs=1e-4)
    del task.__dict__["_index"]
    assert outcome_with_words(task, None).scores["nDCG@10"] == pytest.approx(0.3599, abs=1e-4)


def test_an_encoder_that_does_not_beat_words_is_named() -> None:
    rows = {
        "BM25": {"a nDCG@10": 0.5, "b nDCG@10": 0.2, "a R@100": 0.9},
        "one": {"a nDCG@10": 0.5, "b nDCG@10": 0.3, "a R@100": 0.1, "c Spearman": 0.1},
        "one + BM25": {"a nDCG@10": 0.4, "b nDCG@10": 0.1, "a R@100": 0.1},
    }
    main = ["a nDCG@10", "b nDCG@10", "c Spearman"]
    assert list(not_better(rows, main=main)) == [
        "one does not beat BM25 on a nDCG@10: 0.500, BM25 0.500"
    ]
    assert not list(not_better({"one": rows["one"]}, main=main))


@pytest.fixture
def recipe(tmp_path: Path, shards: Path, tiny_model: Path) -> Callable[..., Path]:
    """A recipe with one task that ranks a corpus, one that ranks candidates, and one that ranks
    nothing."""
    candidates = tmp_path / "candidates.jsonl"
    line = {"query": "the cat", "positive": ["a cat sat"], "negative": ["a dog", "a bird"]}
    candidates.write_text(json.dumps(line) + "\n")
    content = {
        "kind": "evaluate",
        "output_dir": str(tmp_path / "scores"),
        "encoders": {"mine_own": {"model": str(tiny_model), "max_tokens": 16}},
        "sts": {"pairs": str(QUICKSTART / "sts_dev.tsv")},
        "retrieval": {
            "articles": {"corpus": str(shards), "queries": str(QUICKSTART / "queries_dev.jsonl")}
        },
        "reranking": {"some": str(candidates)},
    }

    def write(**changes: Any) -> Path:
        path = tmp_path / "recipe.yaml"
        path.write_text(json.dumps({**content, **changes}))
        return path

    return write


@pytest.fixture
def embedded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many texts each call of an encoder embeds."""
    counts: list[int] = []
    real = Encoder.vectors_of

    def counting(self: Encoder, texts: Sequence[str], **settings: Any) -> Any:
        counts.append(len(texts))
        return real(self, texts, **settings)

    monkeypatch.setattr(Encoder, "vectors_of", counting)
    return counts


def test_rows_beside_the_encoders(
    recipe: Callable[..., Path],
    embedded: list[int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert evaluate.main([str(recipe())]) == 0
    alone = json.loads((tmp_path / "scores" / "scores.json").read_text())
    assert list(alone) == ["mine own"]
    capsys.readouterr()
    # BM25 comes in: nothing is embedded for it.
    embedded.clear()
    path = recipe(baselines=["bm25"])
    assert evaluate.main([str(path)]) == 0
    with_words = json.loads((tmp_path / "scores" / "scores.json").read_text())
    assert list(with_words) == ["BM25", "mine own"]
    assert with_words["mine own"] == alone["mine own"]
    ranked_names = [name for name in alone["mine own"] if not name.startswith("pairs")]
    assert list(with_words["BM25"]) == ranked_names
    assert not embedded
    said = capsys.readouterr().out
    mine, words = (with_words[row]["articles nDCG@10"] for row in ("mine own", "BM25"))
    assert words > 0.5 > mine > 0
    line = "mine own does not beat BM25 on articles nDCG@10"
    assert f"evaluate: {line}: {mine:.3f}, BM25 {words:.3f}\n" in said
    # Fused: from new scores, each text is embedded once for both rows of its encoder.
    path = recipe(baselines=["bm25"], fusion=True, output_dir=str(tmp_path / "anew"))
    assert evaluate.main([str(path)]) == 0
    every = json.loads((tmp_path / "anew" / "scores.json").read_text())
    assert list(every) == ["BM25", "mine own", "mine own + BM25"]
    assert every["BM25"] == with_words["BM25"]
    assert every["mine own"] == alone["mine own"]
    assert list(every["mine own + BM25"]) == ranked_names
    assert mine < every["mine own + BM25"]["articles nDCG@10"] != words
    num_texts = sum(embedded)
    capsys.readouterr()
    # Again: every part is there. A part that is lost is made again, to the same bytes.
    assert evaluate.main([str(path)]) == 0
    assert "is scored" not in capsys.readouterr().out
    assert sum(embedded) == num_texts
    lost = tmp_path / "anew" / "parts" / "mine_own + BM25" / "articles.json"
    content = lost.read_bytes()
    lost.unlink()
    assert evaluate.main([str(path)]) == 0
    assert lost.read_bytes() == content
    loaded = load_recipe(str(path))
    assert isinstance(loaded, EvaluateRecipe)
    parts = list((tmp_path / "anew" / "parts").glob("*/*.json"))
    alone = loaded.model_copy(update={"share_corpora": False})
    assert most_workers(alone) == len(parts) == 7
    # The page of the run has the rows, and the same line.
    assert report([str(tmp_path / "anew")]) == 0
    page = (tmp_path / "anew" / "report" / "index.html").read_text()
    heads = "".join(f"<th>{head}</th>" for head in ("score", *every))
    assert heads in page
    assert f"<p>{line}: {mine:.3f}, BM25 {words:.3f}</p>" in page


def test_fusion_embeds_each_text_once(
    recipe: Callable[..., Path], embedded: list[int], tmp_path: Path
) -> None:
    task = json.loads(recipe().read_text())["retrieval"]
    for fusion in (False, True):
        changes = {"sts": {}, "reranking": {}, "retrieval": task, "fusion": fusion}
        path = recipe(**changes, baselines=["bm25"], output_dir=str(tmp_path / f"{fusion}"))
        assert evaluate.main([str(path)]) == 0
    assert embedded[: len(embedded) // 2] == embedded[len(embedded) // 2 :]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"baselines": ["bm52"]}, "bm25"),
        ({"fusion": True}, "fusion=true: fuses with BM25; add baselines: [bm25]"),
        (
            {"baselines": ["bm25"], "retrieval": {}, "reranking": {}},
            "baselines: BM25 ranks texts for queries, and the recipe has no task that does: give "
            "it retrieval or reranking",
        ),
        (
            {"baselines": ["bm25"], "encoders": {"BM25": {"model": "x"}}},
            "encoders: 'BM25' is the name of a baseline; rename the encoder",
        ),
        (
            {"baselines": ["bm25"], "encoders": {"my + BM25": {"model": "x"}}},
            "encoders: 'my + BM25' is the name of a baseline; rename the encoder",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    changes: dict[str, Any],
    message: str,
    recipe: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert evaluate.main([str(recipe(**changes))]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert not (tmp_path / "scores").exists()


def test_each_query_keeps_its_score_and_the_documents_that_come_first() -> None:
    task = RetrievalTask(JUDGED, list(TEXTS), list(TEXTS.values()))
    outcome = task.outcome(task.cosines(Table()))
    assert list(outcome.queries) == list(QUERIES)
    mean = np.mean([found["score"] for found in outcome.queries.values()])
    assert outcome.scores["nDCG@10"] == pytest.approx(mean)
    table = Table()
    vectors = table(list(TEXTS.values())).astype(float)
    for name, found in outcome.queries.items():
        asked = table([QUERIES[name]]).astype(float)[0]
        cosine = vectors @ asked / np.linalg.norm(vectors, axis=1)
        order = sorted(range(len(TEXTS)), key=lambda row: -cosine[row])
        assert found["first"] == [list(TEXTS)[row] for row in order[:3]]
        assert found["query"] == QUERIES[name]
        assert set(found["relevant"]) <= {
            one for one, grade in JUDGED.grades[name].items() if grade
        }


def test_the_page_says_how_two_sets_of_queries_agree(
    recipe: Callable[..., Path], shards: Path, tmp_path: Path
) -> None:
    asked = {
        name: {"corpus": str(shards), "queries": str(QUICKSTART / f"queries_{part}.jsonl")}
        for name, part in (("written", "dev"), ("own", "test"))
    }
    only: dict[str, Any] = {"sts": {}, "reranking": {}, "baselines": ["bm25"], "fusion": True}
    assert evaluate.main([str(recipe(retrieval=asked, **only))]) == 0
    rows = json.loads((tmp_path / "scores" / "scores.json").read_text())
    assert report([str(tmp_path / "scores")]) == 0
    page = (tmp_path / "scores" / "report" / "index.html").read_text()
    by_written, by_own = (
        sorted(rows, key=lambda name: rows[name][f"{task} nDCG@10"]) for task in asked
    )
    assert len(rows) == 3 and by_written == by_own
    said = "They put 0 of 3 pairs in another order (Kendall&#x27;s tau 1.00 over 3)."
    assert f"<p>Do own and written agree on which is better? {said}</p>" in page
