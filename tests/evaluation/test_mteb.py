"""MTEB's own tasks on local data, run with our model by MTEB: the scores that our tasks give."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mteb
import numpy as np
import pytest
from datasets import Dataset, DatasetDict
from mteb.abstasks import (
    AbsTaskClassification,
    AbsTaskClustering,
    AbsTaskPairClassification,
    AbsTaskRetrieval,
    AbsTaskSTS,
)
from mteb.abstasks.task_metadata import TaskMetadata
from numpy.typing import NDArray

from tests.conftest import QUICKSTART
from tests.evaluation.real_sets import Grades, read_cranfield, read_entailment
from toolkit import evaluate
from toolkit.base.errors import BadInput
from toolkit.base.files import read_json
from toolkit.encoding.encoder import Encoder
from toolkit.encoding.store import VectorStore
from toolkit.evaluation.classes import ClassificationTask, ClusteringTask, PairTask
from toolkit.evaluation.corpora import Corpora
from toolkit.evaluation.labelled import read_labelled
from toolkit.evaluation.mteb_tasks import (
    MtebModel,
    MtebTask,
    instruction_of,
    load_data,
    paths_of,
    tasks_of,
)
from toolkit.evaluation.program import Embedder
from toolkit.evaluation.retrieval import Judged, RetrievalTask
from toolkit.evaluation.sts import Pairs, StsTask, cosines, read_pairs, spearman
from toolkit.settings.recipes import parse_recipe
from toolkit.settings.schema import EncoderSettings, EvaluateRecipe
from toolkit.settings.task_schema import Mteb

ROWS = 400


def metadata(name: str, *, kind: str, main: str) -> TaskMetadata:
    return TaskMetadata(
        name=name,
        description="Local data.",
        reference=None,
        dataset={"path": "local/none", "revision": "1"},
        type=kind,
        category="t2t",
        modalities=["text"],
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
        main_score=main,
        date=None,
        domains=None,
        task_subtypes=None,
        license=None,
        annotations_creators=None,
        dialect=None,
        sample_creation=None,
        bibtex_citation=None,
    )


class LocalSTS(AbsTaskSTS):
    metadata = metadata("LocalSTS", kind="STS", main="cosine_spearman")
    min_score, max_score = 0, 5


class LocalIntents(AbsTaskClassification):
    metadata = metadata("LocalIntents", kind="Classification", main="accuracy")
    n_experiments = 3


class LocalClusters(AbsTaskClustering):
    metadata = metadata("LocalClusters", kind="Clustering", main="v_measure")
    max_fraction_of_documents_to_embed = None
    max_documents_per_cluster = ROWS


class MoreClusters(AbsTaskClustering):
    """With the samples that MTEB draws anew for every encoder."""

    metadata = metadata("MoreClusters", kind="Clustering", main="v_measure")
    max_fraction_of_documents_to_embed = None
    max_document_to_embed = ROWS // 2
    max_documents_per_cluster = 64


class LocalEntailment(AbsTaskPairClassification):
    metadata = metadata("LocalEntailment", kind="PairClassification", main="cosine_ap")


class LocalCranfield(AbsTaskRetrieval):
    metadata = metadata("LocalCranfield", kind="Retrieval", main="ndcg_at_10")


def with_data(task: Any, dataset: Any) -> Any:
    task.dataset = dataset
    task.data_loaded = True
    return task


class Remembering:
    """An embedder that works on every text once: both ways see the same vectors."""

    def __init__(self, inner: Embedder) -> None:
        self._inner, self._known = inner, dict[tuple[str, bool], NDArray[np.float32]]()
        self.name, self.revision = inner.name, inner.revision
        self.rows = 0

    def __call__(self, texts: Sequence[str], *, instructed: bool = True) -> NDArray[np.float32]:
        new = [text for text in dict.fromkeys(texts) if (text, instructed) not in self._known]
        self.rows += len(new)
        for text, vector in zip(new, self._inner(new, instructed=instructed), strict=True):
            self._known[text, instructed] = vector
        return np.stack([self._known[text, instructed] for text in texts])


@pytest.fixture(scope="module")
def embed(tiny_model: Path) -> Remembering:
    settings = EncoderSettings(model=str(tiny_model), max_tokens=32)
    return Remembering(Embedder(Encoder(settings), name="tiny model", instruction="Find it."))


def by_mteb(task: Any, embed: Remembering, folder: Path) -> dict[str, float]:
    """All scores of the test split; `MtebTask` gives the main one of them."""
    main = MtebTask(task, folder).scores(embed)["main score"]
    (path,) = folder.rglob(f"{task.metadata.name}.json")
    (scores,) = read_json(path)["scores"]["test"]
    assert main == pytest.approx(scores["main_score"], abs=1e-6)
    found: dict[str, float] = scores
    return found


def test_sts_scores_are_those_of_mteb(embed: Remembering, real_data: Path, tmp_path: Path) -> None:
    whole = read_pairs(real_data / "stsbenchmark_en" / "stsb-en-test.csv")
    pairs = Pairs(whole.first[:ROWS], whole.second[:ROWS], whole.grades_P[:ROWS])
    columns = {"sentence1": pairs.first, "sentence2": pairs.second, "score": pairs.grades_P}
    task = with_data(LocalSTS(), {"test": Dataset.from_dict(columns)})
    theirs = by_mteb(task, embed, tmp_path)
    ours = StsTask(pairs).scores(embed)
    assert ours["Spearman"] == pytest.approx(theirs["cosine_spearman"], abs=1e-6)
    assert 0.1 < ours["Spearman"] < 0.9


def of_intents(rows: tuple[list[str], list[str]], *, count: int) -> tuple[list[str], list[str]]:
    """The texts and labels of the first so many labels."""
    wanted = sorted(set(rows[1]))[:count]
    chosen = [number for number, label in enumerate(rows[1]) if label in wanted]
    return [rows[0][number] for number in chosen], [rows[1][number] for number in chosen]


def test_classification_scores_are_those_of_mteb(
    embed: Remembering, real_data: Path, tmp_path: Path
) -> None:
    train, test = (
        of_intents(read_labelled(real_data / "banking77" / f"{name}.csv"), count=20)
        for name in ("train", "test")
    )
    test = test[0][::5], test[1][::5]
    number = {label: place for place, label in enumerate(sorted(set(train[1])))}
    splits = {
        name: Dataset.from_dict({"text": texts, "label": [number[label] for label in labels]})
        for name, (texts, labels) in (("train", train), ("test", test))
    }
    theirs = by_mteb(with_data(LocalIntents(), DatasetDict(splits)), embed, tmp_path)
    ours = ClassificationTask(train, test, samples_per_label=8, experiments=3).scores(embed)
    assert ours["accuracy"] == pytest.approx(theirs["accuracy"], abs=1e-6)
    assert ours["macro F1"] == pytest.approx(theirs["f1"], abs=1e-6)
    assert 3 / 20 < ours["accuracy"] < 1.0


def test_clustering_scores_are_those_of_mteb(
    embed: Remembering, real_data: Path, tmp_path: Path
) -> None:
    texts, labels = read_labelled(real_data / "banking77" / "test.csv")
    texts, labels = texts[:ROWS], labels[:ROWS]  # the first ten intents
    dataset = Dataset.from_dict({"sentences": texts, "labels": labels})
    theirs = by_mteb(with_data(LocalClusters(), {"test": dataset}), embed, tmp_path)
    ours = ClusteringTask(texts, labels).scores(embed)
    assert ours["V-measure"] == pytest.approx(theirs["v_measure"], abs=1e-6)
    assert 0.1 < ours["V-measure"] < 1.0


def test_pair_classification_scores_are_those_of_mteb(
    embed: Remembering, real_data: Path, tmp_path: Path
) -> None:
    """Also where it would be best to call no pair a match, which no threshold of theirs does."""
    first, second, matches = read_entailment(real_data, rows=ROWS)
    columns = {"sentence1": first, "sentence2": second, "labels": matches}
    task = with_data(LocalEntailment(), {"test": Dataset.from_dict(columns)})
    theirs = by_mteb(task, embed, tmp_path)
    ours = PairTask(first, second, np.array(matches)).scores(embed)
    assert ours["AP"] == pytest.approx(theirs["cosine_ap"], abs=1e-6)
    assert ours["accuracy"] == pytest.approx(theirs["cosine_accuracy"], abs=1e-6)


Texts = dict[str, str]


def some_of_cranfield(real_data: Path) -> tuple[Texts, Texts, Grades]:
    documents, queries, grades = read_cranfield(real_data)
    documents = dict(itertools.islice(documents.items(), 500))
    grades = {
        query: {name: grade for name, grade in graded.items() if name in documents}
        for query, graded in grades.items()
        if any(grade for name, grade in graded.items() if name in documents)
    }
    return documents, {query: queries[query] for query in grades}, grades


def cranfield_task(documents: Texts, queries: Texts, grades: Grades) -> Any:
    split = {
        "corpus": Dataset.from_list([{"id": i, "text": t} for i, t in documents.items()]),
        "queries": Dataset.from_list([{"id": i, "text": t} for i, t in queries.items()]),
        "relevant_docs": {name: dict(graded) for name, graded in grades.items()},
        "top_ranked": None,
    }
    return with_data(LocalCranfield(), {"default": {"test": split}})


def test_retrieval_scores_are_those_of_mteb(
    embed: Remembering, real_data: Path, tmp_path: Path
) -> None:
    """500 documents of Cranfield, and the queries that they answer, with an instruction; each text
    is embedded once for both ways."""
    documents, queries, grades = some_of_cranfield(real_data)
    theirs = by_mteb(cranfield_task(documents, queries, grades), embed, tmp_path)
    rows = embed.rows
    ours = RetrievalTask(Judged(queries, grades), list(documents), list(documents.values())).scores(
        embed
    )
    assert embed.rows == rows
    names = {"nDCG@10": "ndcg_at_10", "R@100": "recall_at_100", "MRR@10": "mrr_at_10"}
    for name, theirs_name in names.items():
        # MTEB rounds these to five digits.
        assert ours[name] == pytest.approx(theirs[theirs_name], abs=5.1e-6), name
    assert 0.02 < ours["nDCG@10"] < 0.6


def test_its_documents_are_embedded_into_a_corpus_that_other_tasks_find(
    tiny_model: Path, real_data: Path, tmp_path: Path
) -> None:
    """The score of a worker that shares nothing; queries, with an instruction, are in no corpus."""
    encoder = Encoder(EncoderSettings(model=str(tiny_model), max_tokens=32))
    documents, queries, grades = some_of_cranfield(real_data)
    task = cranfield_task(documents, queries, grades)
    given = {"kind": "evaluate", "output_dir": str(tmp_path), "encoders": {"x": {"model": "m"}}}
    recipe = parse_recipe(given, source="test")
    assert isinstance(recipe, EvaluateRecipe)
    for is_stopped, folder in ((False, "one"), (True, "two")):  # the second needs none of its own
        corpora = Corpora(recipe, should_stop=lambda is_stopped=is_stopped: is_stopped)
        shared = Embedder(encoder, name="x", instruction="Find it.", corpora=corpora)
        alone = Embedder(encoder, name="x", instruction="Find it.")
        scores = MtebTask(task, tmp_path / folder).scores(shared)
        wanted = MtebTask(task, tmp_path / folder / "alone").scores(alone)
        assert scores["main score"] == pytest.approx(wanted["main score"], abs=1e-6)
        (corpus,) = (tmp_path / "corpora").iterdir()
        assert VectorStore(corpus).num_rows == len(set(documents.values()))


def test_what_is_scored_is_not_scored_again(
    embed: Remembering, real_data: Path, tmp_path: Path
) -> None:
    task = pairs_task(real_data)
    first = MtebTask(task, tmp_path).scores(embed)
    rows = embed.rows
    assert MtebTask(task, tmp_path).scores(embed) == first
    assert embed.rows == rows


def pairs_task(real_data: Path) -> Any:
    pairs = read_pairs(real_data / "stsbenchmark_en" / "stsb-en-dev.csv")
    columns = {"sentence1": pairs.first, "sentence2": pairs.second, "score": pairs.grades_P}
    return with_data(LocalSTS(), {"test": Dataset.from_dict(columns).select(range(100))})


def test_mteb_takes_no_other_encoders_result_for_ours(
    tiny_model: Path, real_data: Path, tmp_path: Path
) -> None:
    """The same weights with other settings, another instruction, another name of which MTEB keeps
    nothing: all in one folder, each with the score of its own vectors."""
    task, found = pairs_task(real_data), {}
    for name, causal, instruction in (
        ("双向", False, ""),
        ("双向", True, ""),
        ("双向", False, "Find it."),
        ("因果", True, ""),
    ):
        settings = EncoderSettings(model=str(tiny_model), max_tokens=32, causal=causal)
        embed = Remembering(Embedder(Encoder(settings), name=name, instruction=instruction))
        (score,) = MtebTask(task, tmp_path).scores(embed).values()
        pairs = task.dataset["test"]
        grades_P = np.array(pairs["score"])
        vectors = [embed(list(pairs[column])) for column in ("sentence1", "sentence2")]
        cosine_P = cosines(vectors[0], second_PD=vectors[1])
        assert score == pytest.approx(spearman(cosine_P, grades_P=grades_P), abs=1e-6)
        found[name, causal, instruction] = score
    assert len(set(found.values())) == 3  # the causal ones are one


def test_a_score_does_not_depend_on_who_was_scored_before(
    embed: Remembering, real_data: Path, tmp_path: Path
) -> None:
    texts, labels = read_labelled(real_data / "banking77" / "test.csv")
    dataset = Dataset.from_dict({"sentences": texts[:ROWS], "labels": labels[:ROWS]})
    task = with_data(MoreClusters(), {"test": dataset})
    scores = [MtebTask(task, tmp_path / name).scores(embed) for name in ("a", "b")]
    assert scores[0] == scores[1]


def test_an_aggregate_reads_the_data_of_its_tasks() -> None:
    """MTEB(eng, v1) has one: the mean over twelve tasks, without data of its own."""
    (found,) = (task for task in tasks_of(Mteb(benchmark="MTEB(eng, v1)")) if task.is_aggregate)
    read = []
    for one in found.tasks:
        one.load_data = lambda name=one.metadata.name: read.append(name)
    load_data(found)
    assert len(read) == 12 and read[0] == "CQADupstackAndroidRetrieval"
    assert paths_of(found)[0] == "mteb/CQADupstackAndroidRetrieval"


def test_our_model_is_what_mteb_asks_for(embed: Remembering) -> None:
    model = MtebModel(embed)
    assert isinstance(model, mteb.EncoderProtocol)
    assert model.mteb_model_meta.name == "toolkit/tiny-model"


def test_names_that_mteb_does_not_have_are_refused() -> None:
    subset = tasks_of(Mteb(benchmark="llm2vec-15"))
    assert len(subset) == 15
    assert {tuple(task.eval_splits) for task in subset} == {("test",)}
    (task,) = tasks_of(Mteb(tasks=("STS17",)))
    assert task.hf_subsets == ["en-en"]
    with pytest.raises(BadInput, match=r"'STS77' not found. Did you mean: 'STS17'"):
        tasks_of(Mteb(tasks=("STS77",)))
    with pytest.raises(BadInput, match=r"mteb\.benchmark='MTEB\(klingon\)': MTEB has no such"):
        tasks_of(Mteb(benchmark="MTEB(klingon)"))
    with pytest.raises(BadInput, match=r"languages=\['fin'\]: STSBenchmark has nothing"):
        tasks_of(Mteb(tasks=("STSBenchmark",), languages=("fin",)))
    with pytest.raises(BadInput, match=r"languages=\['eng'\]: MTEB\(deu, v1\) itself chooses"):
        tasks_of(Mteb(benchmark="MTEB(deu, v1)", languages=("eng",)))


def test_data_that_is_not_here_is_named(
    embed: Remembering, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (task,) = tasks_of(Mteb(tasks=("STSBenchmark",)))
    with pytest.raises(
        BadInput, match=r"STSBenchmark: its data is neither in the cache .*prefetch"
    ):
        MtebTask(task, tmp_path).scores(embed)


def test_data_that_is_not_here_is_named_before_any_work(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of all tasks, also where local ones would come first."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    recipe = {
        "kind": "evaluate",
        "output_dir": str(tmp_path / "out"),
        "encoders": {"one": {"model": str(tiny_model), "max_tokens": 8}},
        "sts": {"pairs": str(QUICKSTART / "sts_dev.tsv")},
        "mteb": {"tasks": ["STSBenchmark", "SICK-R"]},
    }
    parsed = parse_recipe(recipe, source="test")
    assert isinstance(parsed, EvaluateRecipe)
    message = "mteb: 2 of 2 tasks have no data here: STSBenchmark, SICK-R; .*toolkit.prefetch"
    with pytest.raises(BadInput, match=message):
        evaluate.run(parsed, environ={"HF_HUB_OFFLINE": "1"})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("prompt", "told"),
    [
        ("Find it", "Find it"),
        ({"query": "Find it", "document": "Read it"}, "Find it"),
        ({"document": "Read it"}, ""),
        (None, ""),
    ],
)
def test_the_instruction_of_a_task_is_that_of_its_queries(prompt: Any, told: str) -> None:
    task = mteb.get_task("Banking77Classification")
    task.metadata = task.metadata.model_copy(update={"prompt": prompt})
    assert instruction_of(task) == told
