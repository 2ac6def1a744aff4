"""Scores of an encoder on real tasks, with the score of every single item:

    python -m tests.benchmarks.real.scoring MODEL OUT.json [--causal [--echo]] [--tasks STS-B EWT]

Items are what a paired bootstrap draws from: the cosine of each pair of STS-B; nDCG@10 of each
query; how many of ten classifiers label a text rightly; whether each word has the right tag.
"""

import argparse
import base64
import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.benchmarks.bench_cranfield import documents as read_documents
from tests.benchmarks.harness import REAL_DATA
from tests.evaluation.real_sets import read_cranfield
from toolkit.base.console import say
from toolkit.base.files import write_json
from toolkit.encoding.encoder import Encoder
from toolkit.evaluation.classes import read_classification, read_clustering
from toolkit.evaluation.linear_probe import train_probe
from toolkit.evaluation.ranking import Ranking
from toolkit.evaluation.retrieval import Judged, RetrievalTask
from toolkit.evaluation.sts import cosines, read_pairs, spearman
from toolkit.evaluation.task import Embed, EmbedTokens, checked
from toolkit.evaluation.word_features import word_features
from toolkit.evaluation.words import WordData, read_word_data
from toolkit.settings.schema import EncoderSettings
from toolkit.settings.task_schema import WordTask

MAX_TOKENS = 256
NUM_PASSAGES = 1000  # of BoolQ: the first, each with its question
BITS = "bits:"  # begins items that are yes or no, packed and in base64
NUM_SENTENCES = 2000  # of EWT that the probe is trained on


@dataclasses.dataclass(frozen=True)
class Scored:
    """The scores of a task by name, and its items by the name of their score, as text."""

    scores: dict[str, float]
    items: dict[str, str]


def sts(embed: Embed, *, data: Path, part: str) -> Scored:
    """STS-B: the items are cosines, since a rank correlation is no mean."""
    pairs = read_pairs(data / "stsbenchmark_en" / f"stsb-en-{part}.csv")
    first_PD, second_PD = (
        checked(embed(texts), texts=texts) for texts in (pairs.first, pairs.second)
    )
    cosine_P = cosines(first_PD, second_PD=second_PD)
    score = spearman(cosine_P, grades_P=pairs.grades_P)
    return Scored({"Spearman": score}, {"cosine": rounded(cosine_P)})


def retrieval(embed: Embed, *, task: RetrievalTask) -> Scored:
    """The scores of a task's rankings."""
    return ranked(task.rankings(embed))


def ranked(rankings: Sequence[Ranking]) -> Scored:
    """nDCG@10, R@100 and recall@3 of every query."""
    items = {
        "nDCG@10": [ranking.ndcg(10) for ranking in rankings],
        "R@100": [ranking.recall(100) for ranking in rankings],
        "recall@3": [ranking.recall(3) for ranking in rankings],
    }
    scores = {name: float(np.mean(values)) for name, values in items.items()}
    return Scored(scores, {name: rounded(values) for name, values in items.items()})


def classification(embed: Embed, *, data: Path) -> Scored:
    """banking77: the share of ten classifiers, of eight texts per intent, that are right."""
    task = read_classification(
        "banking77",
        train=data / "banking77" / "train.csv",
        test=data / "banking77" / "test.csv",
        samples_per_label=8,
        experiments=10,
    )
    right = [np.asarray(labels) == np.array(task.test[1]) for labels in task.predictions(embed)]
    share_N = np.mean(right, axis=0)
    return Scored({"accuracy": float(share_N.mean())}, {"accuracy": rounded(share_N)})


def clustering(embed: Embed, *, data: Path) -> Scored:
    """banking77's test part, as MTEB clusters; it has no items."""
    return Scored(read_clustering(data / "banking77" / "test.csv").scores(embed), {})


def words(embed: EmbedTokens, *, data: Path) -> Scored:
    """Parts of speech of EWT, with the vector of a word's tokens and of one token earlier."""
    folder = data / "ud_english_ewt"
    task = WordTask(
        train=str(next(folder.glob("*train.conllu*"))),
        test=str(next(folder.glob("*test.conllu*"))),
    )
    known = read_word_data(task)
    some = dataclasses.replace(
        known.train,
        sentences=known.train.sentences[:NUM_SENTENCES],
        tags=known.train.tags[:NUM_SENTENCES],
    )
    scores, items = {}, {}
    for name, right_W in _tagged(embed, WordData(some, known.test, known.scheme), task=task):
        scores[name] = float(right_W.mean())
        items[name] = f"{BITS}{base64.b64encode(np.packbits(right_W)).decode()}"
    return Scored(scores, items)


def _tagged(embed: EmbedTokens, known: WordData, *, task: WordTask) -> Any:
    labels = sorted(set(known.train.all_tags))
    number = {label: place for place, label in enumerate(labels)}
    label_W = np.array([number[tag] for tag in known.train.all_tags])
    gold_W = np.array([number.get(tag, -1) for tag in known.test.all_tags])
    train, test = (
        word_features(embed.encoder, part.sentences, shifts=(0, 1)).vectors_AWD
        for part in (known.train, known.test)
    )
    lengths = [len(row) for row in known.train.sentences]
    for place, name in enumerate(("accuracy", "accuracy, shifted")):
        probe = train_probe(
            train[place], label_W=label_W, labels=labels, lengths=lengths, task=task
        )
        yield name, probe.predict(test[place]) == gold_W


def cranfield(data: Path) -> RetrievalTask:
    """Cranfield's documents that are not empty, each with its title."""
    _, queries, grades = read_cranfield(data)
    documents = [one for one in read_documents(data / "cranfield") if one.text]
    texts = [f"{document.title}\n{document.text}" for document in documents]
    return RetrievalTask(Judged(queries, grades), [document.id for document in documents], texts)


def boolq(data: Path) -> RetrievalTask:
    """The passages of BoolQ; the question of each finds its passage."""
    texts, queries = [], {}
    for line in (data / "boolq_passages" / "boolq.jsonl").open(encoding="utf-8"):
        passage, _, question = json.loads(line)["query"].partition("\nQuestion: ")
        queries[str(len(texts))] = question.partition("\n")[0]
        texts.append(passage.removeprefix("Passage: "))
        if len(texts) == NUM_PASSAGES:
            break
    grades = {name: {name: 1} for name in queries}
    return RetrievalTask(Judged(queries, grades), list(queries), texts)


TASKS: dict[str, Callable[[Any, Path], Scored]] = {
    "STS-B dev": lambda embed, data: sts(embed, data=data, part="dev"),
    "STS-B": lambda embed, data: sts(embed, data=data, part="test"),
    "EWT": lambda embed, data: words(embed, data=data),
    "banking77": lambda embed, data: classification(embed, data=data),
    "clustering": lambda embed, data: clustering(embed, data=data),
    "Cranfield": lambda embed, data: retrieval(embed, task=cranfield(data)),
    "BoolQ": lambda embed, data: retrieval(embed, task=boolq(data)),
}


def score(embed: Any, *, data: Path, out: Path, tasks: Sequence[str]) -> None:
    """Write the scores of all `tasks` into `out`, each at once; what is there stays."""
    kept: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {}
    for name in tasks:
        if name not in kept:
            began = time.monotonic()
            scored = TASKS[name](embed, data)
            kept[name] = dataclasses.asdict(scored)
            write_json(out, kept)
            told = ", ".join(f"{what} {value:.4f}" for what, value in scored.scores.items())
            say(f"{out.stem} on {name}: {told} ({time.monotonic() - began:.0f} s)")


def main(argv: Sequence[str] | None = None) -> None:
    """Score an encoder of ours."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("out", type=Path)
    parser.add_argument("--causal", action="store_true")
    parser.add_argument("--echo", action="store_true", help="each text is read twice")
    parser.add_argument("--dtype", default="fp32")
    parser.add_argument("--data", type=Path, default=REAL_DATA)
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    given = parser.parse_args(argv)
    settings = EncoderSettings(
        model=given.model,
        max_tokens=MAX_TOKENS,
        causal=given.causal,
        echo=given.echo,
        dtype=given.dtype,
    )
    embed = Plain(Encoder(settings, device=torch.device("cpu")), name=given.out.stem)
    score(embed, data=given.data, out=given.out, tasks=given.tasks)


@dataclasses.dataclass(frozen=True)
class Plain:
    """An encoder without instructions, as tasks ask for it."""

    encoder: Encoder
    name: str

    @property
    def revision(self) -> str:
        """The digest of the weights."""
        return self.encoder.digest()

    def __call__(self, texts: Sequence[str], *, instructed: bool = True) -> Any:
        """Vectors (N, D)."""
        return self.encoder.vectors_of(texts)


def rounded(values: Any) -> str:
    """Items as they are kept: numbers in one line."""
    return " ".join(f"{float(value):.4g}" for value in values)


if __name__ == "__main__":
    main()
