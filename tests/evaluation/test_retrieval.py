"""Retrieval and reranking against cases worked out by hand; files that cannot be scored."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from toolkit.base.errors import BadInput
from toolkit.evaluation.retrieval import (
    Judged,
    RerankingTask,
    RetrievalTask,
    check_corpus,
    read_judged,
    read_queries,
    read_reranking,
)


def scored(
    scores: Sequence[Sequence[float]], grades: Sequence[dict[str, int]], *, names: str
) -> dict[str, float]:
    """Of the task, with vectors that give these scores: queries are directions."""
    length = 1 + max(abs(score) for row in scores for score in row)
    directions = np.eye(len(scores) + 1)
    vectors = {f"q{number}": [*directions[number]] for number in range(len(scores))}
    for name, column in zip(range(len(names)), zip(*scores, strict=True), strict=True):
        short = np.array(column) / length / len(scores)
        vectors[f"d{name}"] = [*short, np.sqrt(1 - (short**2).sum())]
    queries = {str(number): f"q{number}" for number in range(len(scores))}
    judged = Judged(queries, {str(number): graded for number, graded in enumerate(grades)})
    texts = [f"d{name}" for name in range(len(names))]
    return RetrievalTask(judged, list(names), texts).scores(Table(vectors))


@pytest.mark.parametrize(
    ("scores", "grades", "metric", "expected"),
    [
        ([[0.1, 0.9, 0.5, 0.2]], [{"b": 1}], "MRR@10", 1.0),
        ([[0.1, 0.9, 0.5, 0.2]], [{"c": 1}], "MRR@10", 0.5),
        ([[0.1, 0.9, 0.5, 0.2]], [{"c": 1, "a": 1}], "recall@3", 0.5),
        ([[0.1, 0.9, 0.5, 0.2]], [{"c": 1, "a": 1}], "R@100", 1.0),
        ([[0.1, 0.9, 0.5, 0.2]], [{"b": 1}], "nDCG@10", 1.0),
        ([[0.1, 0.9, 0.5, 0.2]], [{"d": 1}], "nDCG@10", 1 / np.log2(4)),
        # Grades 2 at rank 2 and 1 at rank 1, where the other way round is best.
        (
            [[0.1, 0.9, 0.5, 0.2]],
            [{"b": 1, "c": 2}],
            "nDCG@10",
            (1 + 2 / np.log2(3)) / (2 + 1 / np.log2(3)),
        ),
        # A judged document that is not in the corpus is one that is not found.
        ([[0.1, 0.9, 0.5, 0.2]], [{"b": 1, "x": 1}], "R@100", 0.5),
        ([[9, 0, 0, 0], [1, 9, 0, 0]], [{"a": 1}, {"a": 1}], "MRR@10", 0.75),
        # Equal scores stand in no order: each place has the same chance.
        ([[0.5, 0.5, 0.5, 0.5]], [{"d": 1}], "MRR@10", (1 + 1 / 2 + 1 / 3 + 1 / 4) / 4),
        ([[0.9, 0.5, 0.5, 0.5]], [{"d": 1}], "recall@3", 2 / 3),
    ],
)
def test_measures_of_cases_worked_out_by_hand(
    scores: list[list[float]], grades: list[dict[str, int]], metric: str, expected: float
) -> None:
    assert scored(scores, grades, names="abcd")[metric] == pytest.approx(expected)


def test_a_title_of_several_rows_is_found_once() -> None:
    for grades, place in (({"a": 1}, 1), ({"b": 1}, 2), ({"c": 1}, 3)):
        for scores in ([1, 3, 2, 0], [3, 1, 2, 0]):
            found = scored([scores], [grades], names="aabc")
            assert found["MRR@10"] == pytest.approx(1 / place)


class Table:
    """Vectors by text; remembers what came with an instruction."""

    def __init__(self, vectors: dict[str, Sequence[float]]) -> None:
        self._vectors, self.instructed = vectors, set[str]()

    def __call__(self, texts: Sequence[str], *, instructed: bool = True) -> NDArray[np.float32]:
        self.instructed |= set(texts) if instructed else set()
        return np.array([self._vectors[text] for text in texts], dtype=np.float32)


def test_queries_carry_the_instruction_and_documents_do_not() -> None:
    table = Table({"q": [1, 0], "r": [0, 1], "near": [2, 1], "far": [0, 3]})
    judged = Judged({"1": "q", "2": "r", "3": "q"}, {"1": {"A": 1}, "2": {"A": 2}, "3": {"B": 0}})
    found = RetrievalTask(judged, ["A", "B"], ["near", "far"]).scores(table)
    assert table.instructed == {"q", "r"}
    # The third query has no relevant document, and does not count.
    assert found["MRR@10"] == pytest.approx(0.75)


def test_reranking_of_a_case_worked_out_by_hand() -> None:
    table = Table({"q": [1, 0], "a": [1, 0.1], "b": [1, 1], "c": [0, 1]})
    found = RerankingTask(["q"], [["b"]], [["a", "c"]]).scores(table)
    assert found == {
        "MAP": pytest.approx(0.5),
        "nDCG@10": pytest.approx(1 / np.log2(3)),
        "MRR@10": pytest.approx(0.5),
    }
    assert table.instructed == {"q"}


def test_vectors_that_are_not_finite_are_named() -> None:
    table = Table({"q": [1, 0], "a": [1, float("nan")], "c": [0, 1]})
    with pytest.raises(BadInput, match=r"1 of 2 vectors are not finite, the first that of 'a'"):
        RerankingTask(["q"], [["a"]], [["c"]]).scores(table)


def test_judged_documents_that_are_nowhere_are_counted(
    capsys: pytest.CaptureFixture[str],
) -> None:
    judged = Judged({"1": "q"}, {"1": {"x": 1, "a": 1, "y": 1}})
    check_corpus("mine", judged, names=["a", "b"])
    assert capsys.readouterr().err == (
        "warning: mine: judged id 'x' is not in the corpus (2 of 3): never found\n"
    )
    with pytest.raises(BadInput, match="mine: no judged id is in the corpus, such as 'a'"):
        check_corpus("mine", judged, names=["b"])


def test_queries_are_one_json_a_line(tmp_path: Path) -> None:
    """A line separator of Unicode inside of a text ends no line."""
    path = tmp_path / "q.jsonl"
    rows = [{"query": "two\u2028lines", "relevant": ["A", "B"]}, {"query": "Ä", "relevant": ["C"]}]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    judged = read_queries(path)
    assert list(judged.queries.values()) == ["two\u2028lines", "Ä"]
    assert list(judged.grades.values()) == [{"A": 1, "B": 1}, {"C": 1}]
    assert judged.by_title


@pytest.mark.parametrize(
    "line",
    [
        "",
        "{",
        "[]",
        "3",
        '{"query": "a"}',
        '{"relevant": ["A"]}',
        '{"query": null, "relevant": ["A"]}',
        '{"query": "a", "relevant": "Helium"}',
        '{"query": "a", "relevant": []}',
    ],
)
def test_a_query_that_cannot_be_read_is_named(line: str, tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text('{"query": "a", "relevant": ["A"]}\n' + line + "\n")
    with pytest.raises(BadInput, match=r'q\.jsonl, line 2: is not like \{"query"'):
        read_queries(path)
    path.write_text('{"query": "a", "relevant": ["A"], "query": "b"}\n')
    with pytest.raises(BadInput, match=r"q\.jsonl, line 1: a name twice in a JSON object"):
        read_queries(path)
    path.write_text("")
    with pytest.raises(BadInput, match="no queries"):
        read_queries(path)
    with pytest.raises(BadInput, match=r"none\.jsonl: cannot be read"):
        read_queries(tmp_path / "none.jsonl")


def judged_files(folder: Path, *, judgements: str, name: str = "qrels.trec") -> tuple[Path, Path]:
    (folder / "queries.jsonl").write_text(
        '{"_id": "1", "text": "wings"}\n{"id": 2, "text": "flutter"}\n'
    )
    (folder / name).write_text(judgements)
    return folder / "queries.jsonl", folder / name


@pytest.mark.parametrize(
    "line",
    ['{"_id": "2"}', '{"text": "a"}', '{"_id": null, "text": "a"}', '{"_id": "2", "text": 2}'],
)
def test_a_judged_query_that_cannot_be_read_is_named(line: str, tmp_path: Path) -> None:
    queries, qrels = judged_files(tmp_path, judgements="1 0 a 1\n")
    queries.write_text('{"_id": "1", "text": "wings"}\n' + line + "\n")
    with pytest.raises(BadInput, match=r'line 2: is not like \{"_id": "...", "text": "..."\}'):
        read_judged(queries, judgements=qrels)


@pytest.mark.parametrize(
    ("name", "judgements"),
    [
        ("qrels.trec", "1 0 184 3\n1 0 29 -1\n2 0 31 1\n"),
        ("test.tsv", "query-id\tcorpus-id\tscore\n1\t184\t3\n1\t29\t-1\n2\t31\t1\n"),
    ],
)
def test_judgements_are_those_of_trec_and_of_beir(
    name: str, judgements: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    queries, qrels = judged_files(tmp_path, judgements=judgements, name=name)
    judged = read_judged(queries, judgements=qrels)
    assert judged.queries == {"1": "wings", "2": "flutter"}
    assert judged.grades == {"1": {"184": 3, "29": 0}, "2": {"31": 1}}
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("judgements", "grades"),
    [
        ("1\t184\t3\n2\t31\t1\n", {"1": {"184": 3}, "2": {"31": 1}}),  # without a header
        ('1\t"184\t3\n2\t31\t1\n', {"1": {'"184': 3}, "2": {"31": 1}}),
        ("\ufeff1\t184\t3\n", {"1": {"184": 3}}),
    ],
)
def test_no_judgement_is_lost(
    judgements: str, grades: dict[str, dict[str, int]], tmp_path: Path
) -> None:
    queries, qrels = judged_files(tmp_path, judgements=judgements, name="test.tsv")
    assert read_judged(queries, judgements=qrels).grades == grades


def test_judgements_that_find_nothing_relevant_are_refused(tmp_path: Path) -> None:
    queries, qrels = judged_files(tmp_path, judgements="1 0 184 0\n2 0 31 -1\n")
    with pytest.raises(BadInput, match="no judgement is above 0"):
        read_judged(queries, judgements=qrels)


def test_judgements_of_other_queries_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Cranfield's trap: numbers that look alike and are not the same."""
    queries, qrels = judged_files(tmp_path, judgements="1 0 a 1\n7 0 b 1\n8 0 b 1\n")
    assert read_judged(queries, judgements=qrels).grades == {"1": {"a": 1}}
    assert "2 of 3 judgements belong to no query" in capsys.readouterr().err
    queries, qrels = judged_files(tmp_path, judgements="7 0 b 1\n")
    with pytest.raises(
        BadInput, match=r"none of 1 judgements belongs to a query .* '7' there and '1'"
    ):
        read_judged(queries, judgements=qrels)


@pytest.mark.parametrize(
    ("judgements", "message"),
    [
        (
            "1 0 a 1\n1 0 a 1\n1 0 a 2\n",
            r"qrels\.trec, line 3: document 'a' has grade 2 for query '1', and had 1 before",
        ),
        ("1 0 a 1\n1 0 a\n", r"qrels\.trec, line 2: is not like query 0 document grade"),
        ("1 0 a high\n", r"qrels\.trec, line 1: is not like query 0 document grade"),
        ("", r"qrels\.trec: no judgements"),
    ],
)
def test_judgements_that_cannot_be_read_are_named(
    judgements: str, message: str, tmp_path: Path
) -> None:
    queries, qrels = judged_files(tmp_path, judgements=judgements)
    with pytest.raises(BadInput, match=message):
        read_judged(queries, judgements=qrels)
    queries.write_text('{"_id": "1", "text": "a"}\n{"_id": "1", "text": "b"}\n')
    with pytest.raises(BadInput, match=r"line 2: the id '1' occurs twice"):
        read_judged(queries, judgements=qrels)


@pytest.mark.parametrize(
    "line",
    [
        '{"query": "a", "positive": ["b"]}',
        '{"query": "a", "positive": "b", "negative": ["c"]}',
        '{"query": "a", "positive": ["b"], "negative": [3]}',
        '{"query": "a", "positive": [], "negative": ["c"]}',
    ],
)
def test_candidates_that_cannot_be_read_are_named(line: str, tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text('{"query": "a", "positive": ["b"], "negative": ["c"]}\n')
    assert read_reranking(path).negative == [["c"]]
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(BadInput, match=r'r\.jsonl, line 2: is not like \{"query"'):
        read_reranking(path)
