"""What people would pick instead, scored on the same tasks from the same files:

    python -m tests.benchmarks.real.peers tf-idf OUT.json
    python -m tests.benchmarks.real.peers bm25 OUT.json
    python -m tests.benchmarks.real.peers wordllama OUT.json --table TABLE.safetensors

TABLE is `l2_supercat_256.safetensors` of the package wordllama (its wheel is unzipped; nothing of
it runs); a text's vector is the mean of the rows of its tokens (Llama 2's, from the real data).
"""

import argparse
import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file
from sklearn.feature_extraction.text import TfidfVectorizer

from tests.benchmarks.harness import REAL_DATA
from tests.benchmarks.real.bm25 import BM25
from tests.benchmarks.real.scoring import boolq, cranfield, ranked, score
from tests.text.tokenizers_at_hand import mistral
from toolkit.base.files import read_json, write_json
from toolkit.evaluation.labelled import read_labelled
from toolkit.evaluation.ranking import Ranking, best_rows, ranking_of
from toolkit.evaluation.retrieval import RetrievalTask
from toolkit.evaluation.sts import read_pairs

SENTENCES = ("STS-B dev", "STS-B", "banking77", "clustering")
VOCABULARY = Path("tokenizer_llama2") / "tokenizer.model"  # in the real data
RETRIEVAL = {"Cranfield": cranfield, "BoolQ": boolq}


class WordLlama:
    """The mean of a static table's rows over the tokens of a text."""

    name, revision = "WordLlama", "0.4.0"

    def __init__(self, table: Path, *, vocabulary: Path) -> None:
        (stored_VD,) = load_file(table).values()
        self._table_VD = stored_VD.astype(np.float32)
        self._tokenizer = mistral(vocabulary)  # Llama 2's pieces are merged by the same rules

    def __call__(self, texts: Sequence[str], *, instructed: bool = True) -> NDArray[np.float32]:
        """Vectors (N, D); zero for a text without tokens."""
        rows = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        none_D = np.zeros(self._table_VD.shape[1], dtype=np.float32)
        return np.stack([self._table_VD[row.ids].mean(0) if row.ids else none_D for row in rows])


class TfIdf:
    """Words, weighted by how rare they are among the texts of a task (not by its labels)."""

    name, revision = "TF-IDF", "scikit-learn"

    def __init__(self, texts: Sequence[str]) -> None:
        self._known = TfidfVectorizer().fit(texts)

    def __call__(self, texts: Sequence[str], *, instructed: bool = True) -> NDArray[np.float32]:
        """Vectors (N, D)."""
        return self._known.transform(texts).toarray().astype(np.float32)


def bm25(task: RetrievalTask) -> list[Ranking]:
    """Robertson's BM25 over lower-case words: the ranking of every query."""
    scored = BM25(task.texts)
    number = {name: place for place, name in enumerate(task.names)}
    rankings = []
    for name, grades in task.judged.grades.items():
        if max(grades.values()) == 0:
            continue
        grade_N = np.zeros(len(task.texts), dtype=np.int64)
        for document, grade in grades.items():
            if document in number:
                grade_N[number[document]] = grade
        score32_N = scored.scores(task.judged.queries[name]).astype(np.float32)
        rows = best_rows(score32_N, depth=100)
        wanted = [grade for grade in grades.values() if grade > 0]
        rankings.append(ranking_of(score32_N[rows], grade_N=grade_N[rows], wanted=wanted))
    return rankings


def _texts(task: str, *, data: Path) -> list[str]:
    """The texts of a task on sentences."""
    if task.startswith("STS-B"):
        part = "dev" if task.endswith("dev") else "test"
        pairs = read_pairs(data / "stsbenchmark_en" / f"stsb-en-{part}.csv")
        return [*pairs.first, *pairs.second]
    return read_labelled(data / "banking77" / "train.csv")[0]


def main(argv: Sequence[str] | None = None) -> None:
    """Score one of them, and write it like a run of the study."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("peer", choices=("bm25", "tf-idf", "wordllama"))
    parser.add_argument("out", type=Path)
    parser.add_argument("--table", type=Path)
    parser.add_argument("--data", type=Path, default=REAL_DATA)
    given = parser.parse_args(argv)
    if given.peer == "bm25":
        name = "BM25"
        read = {task: ranked(bm25(of(given.data))) for task, of in RETRIEVAL.items()}
        tasks = {task: dataclasses.asdict(scored) for task, scored in read.items()}
    else:
        with tempfile.TemporaryDirectory() as folder:
            scratch = Path(folder) / f"{given.peer}.json"
            for task in (*SENTENCES, *(RETRIEVAL if given.peer == "wordllama" else ())):
                if given.peer == "tf-idf":
                    embed: Any = TfIdf(_texts(task, data=given.data))
                else:
                    embed = WordLlama(given.table, vocabulary=given.data / VOCABULARY)
                score(embed, data=given.data, out=scratch, tasks=[task])
            name, tasks = embed.name, read_json(scratch)
    write_json(given.out, {"state": name, "kind": "peer", "seed": 0, "tasks": tasks})


if __name__ == "__main__":
    main()
