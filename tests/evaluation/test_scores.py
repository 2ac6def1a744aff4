"""Scores against cases worked out by hand and against scipy; files that cannot be scored."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tests.conftest import QUICKSTART
from toolkit import evaluate
from toolkit.config import load_recipe
from toolkit.evaluation.retrieval import Judged, read_queries, recall_at
from toolkit.evaluation.sts import cosines, read_pairs, spearman
from toolkit.evaluation.tables import table
from toolkit.files import BadInput
from toolkit.schema import EvaluateRecipe


def test_spearman_of_cases_worked_out_by_hand() -> None:
    grades = np.array([0.0, 1.0, 2.0, 3.0, 4.0])
    assert spearman(np.array([-0.9, 0.0, 0.1, 0.2, 0.9]), grades_P=grades) == pytest.approx(1.0)
    assert spearman(-grades, grades_P=grades) == pytest.approx(-1.0)
    # Ranks 2 1 3 5 4: the squared differences sum to 4, so 1 - 6 * 4 / (5 * 24) = 0.8.
    assert spearman(np.array([0.2, 0.1, 0.3, 0.5, 0.4]), grades_P=grades) == pytest.approx(0.8)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(-9, 9)), min_size=3, max_size=30))
def test_spearman_is_pearson_of_average_ranks(pairs: list[tuple[int, int]]) -> None:
    """Ties share the mean of their ranks; order within them says nothing."""
    grades, cosine = (np.array(column, dtype=float) for column in zip(*pairs, strict=True))
    if len(set(grades)) < 2 or len(set(cosine)) < 2:
        return
    expected = np.corrcoef(stats.rankdata(cosine), stats.rankdata(grades))[0, 1]
    assert spearman(cosine, grades_P=grades) == pytest.approx(expected, abs=1e-9)


def test_cosines_of_cases_worked_out_by_hand() -> None:
    first = np.array([[1, 0], [3, 4], [0, 0], [1, 1]], dtype=np.float32)
    second = np.array([[5, 0], [4, 3], [1, 1], [-2, -2]], dtype=np.float32)
    found = cosines(first, second_PD=second)
    assert found.tolist() == pytest.approx([1.0, 0.96, 0.0, -1.0])


def recall(
    scores: Sequence[Sequence[float]], relevant: Sequence[set[str]], *, top: int, titles: str
) -> float:
    judged = Judged(queries=["?"] * len(relevant), relevant=list(relevant))
    scores_QN = np.array(scores, dtype=np.float32)
    return recall_at(scores_QN, titles=list(titles), judged=judged, top=top)


@pytest.mark.parametrize(
    ("scores", "relevant", "top", "expected"),
    [
        ([[0.1, 0.9, 0.5, 0.2]], [{"b"}], 1, 1.0),
        ([[0.1, 0.9, 0.5, 0.2]], [{"c"}], 1, 0.0),
        ([[0.1, 0.9, 0.5, 0.2]], [{"c", "a"}], 3, 0.5),
        ([[0.1, 0.9, 0.5, 0.2]], [{"a", "b", "c", "d"}], 2, 0.5),
        ([[0.1, 0.9, 0.5, 0.2]], [{"d"}], 99, 1.0),
        ([[0.5, 0.5, 0.5, 0.5]], [{"b"}], 2, 1.0),  # ties come in corpus order
        ([[0.5, 0.5, 0.5, 0.5]], [{"c"}], 2, 0.0),
        ([[9, 0, 0, 0], [0, 9, 0, 0], [0, 0, 9, 1]], [{"a"}, {"c"}, {"c", "d"}], 1, 0.5),
    ],
)
def test_recall_of_cases_worked_out_by_hand(
    scores: list[list[float]], relevant: list[set[str]], top: int, expected: float
) -> None:
    assert recall(scores, relevant, top=top, titles="abcd") == pytest.approx(expected)


def test_a_title_of_several_rows_is_found_once() -> None:
    assert recall([[3, 2, 1]], [{"a", "b"}], top=2, titles="aab") == 0.5


def test_a_judged_title_that_is_nowhere_is_named() -> None:
    with pytest.raises(BadInput, match=r"judged title 'x' is not in the corpus \(2 such\)"):
        recall([[1, 0], [1, 0]], [{"a", "x"}, {"x"}], top=1, titles="ab")


def test_the_real_sts_benchmark(real_data: Path) -> None:
    """Quoted commas among them; grades from 0 to 5."""
    pairs = read_pairs(real_data / "stsbenchmark_en" / "stsb-en-test.csv")
    assert len(pairs.first) == len(pairs.second) == len(pairs.grades_P) == 1379
    assert (pairs.first[0], pairs.grades_P[0]) == ("A girl is styling her hair.", 2.5)
    assert pairs.second[0] == "A girl is brushing her hair."
    assert (pairs.grades_P.min(), pairs.grades_P.max()) == (0.0, 5.0)
    assert any("," in text for text in pairs.first)


def test_tabs_separate_a_tsv(tmp_path: Path) -> None:
    path = tmp_path / "pairs.tsv"
    path.write_text('4.5\tHe said "yes".\tHe agreed, at last.\r\n0\tÄpfel\t"Birnen\n')
    pairs = read_pairs(path)
    assert pairs.first == ['He said "yes".', "Äpfel"]
    assert pairs.second == ["He agreed, at last.", '"Birnen']
    assert pairs.grades_P.tolist() == [4.5, 0.0]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.tsv", b"1\ta\tb\n2\ta\n", r"p\.tsv, line 2: 2 fields instead of 3"),
        ("p.tsv", b"1\ta\tb\n\n2\ta\tb\n", r"line 2: 0 fields instead of 3"),
        ("p.tsv", b"score\ta\tb\n", r"line 1: 'score' is no score"),
        ("p.tsv", b"1\ta\tb\nnan\ta\tb\n", r"line 2: 'nan' is no finite score"),
        ("p.csv", b"a,b,1\na,b,c,2\n", r"p\.csv, line 2: 4 fields instead of 3"),
        ("p.csv", b'"a\nb",b,1\na,b,\n', r"line 3: '' is no score"),
        ("p.csv", b"a,b,1\n" + b"x" * 200_000 + b",b,2\n", r"p\.csv: cannot be read \(field"),
        ("p.csv", b"\xff\xfe,b,1\n", r"p\.csv: cannot be read"),
        ("p.csv", b"a,b,1\nc,d,1\n", r"2 pairs of one grade have no order"),
        ("p.csv", b"", r"0 pairs of one grade have no order"),
        ("p.json", b"[]", r"graded pairs are a \.tsv \(score first\) or a \.csv \(score last\)"),
    ],
)
def test_pairs_that_cannot_be_read_are_named(
    name: str, content: bytes, message: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadInput, match=message):
        read_pairs(tmp_path / name)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"p\.tsv: cannot be read"):
        read_pairs(tmp_path / "p.tsv")
    with pytest.raises(BadInput, match=r"q\.jsonl: cannot be read"):
        read_queries(tmp_path / "q.jsonl")


def test_queries_are_one_json_a_line(tmp_path: Path) -> None:
    """A line separator of Unicode inside of a text ends no line."""
    path = tmp_path / "q.jsonl"
    rows = [{"query": "two\u2028lines", "relevant": ["A", "B"]}, {"query": "Ä", "relevant": ["C"]}]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    judged = read_queries(path)
    assert judged.queries == ["two\u2028lines", "Ä"]
    assert judged.relevant == [{"A", "B"}, {"C"}]


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
    path.write_text("")
    with pytest.raises(BadInput, match="no queries"):
        read_queries(path)


def test_the_table_marks_the_best_of_each_column() -> None:
    found = table({"base": {"STS": 0.25, "recall@3": 0.5}, "after SimCSE": {"STS": 0.75}})
    assert found.splitlines() == [
        "encoder           STS  recall@3",
        "-------------------------------",
        "base           0.250     0.500*",
        "after SimCSE   0.750*         -",
    ]


def test_two_encoders_side_by_side(
    shards: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The shipped sets: the model as it is, causal and in both directions."""
    task = {"corpus": str(shards), "queries": str(QUICKSTART / "queries_dev.jsonl")}
    common = {"model": str(tiny_model), "max_tokens": 32}
    recipe = {
        "kind": "evaluate",
        "output_dir": str(tmp_path / "scores"),
        "encoders": {"base_causal": {**common, "causal": True}, "both": common},
        "sts": {
            "dev": str(QUICKSTART / "sts_dev.tsv"),
            "test": str(QUICKSTART / "sts_test.tsv"),
        },
        "retrieval": {"articles": task},
    }
    (tmp_path / "two.yaml").write_text(json.dumps(recipe))
    loaded = load_recipe(str(tmp_path / "two.yaml"))
    assert isinstance(loaded, EvaluateRecipe)
    scores = evaluate.run(loaded)
    assert json.loads((tmp_path / "scores" / "scores.json").read_text()) == scores
    assert capsys.readouterr().out == table(scores) + "\n"
    columns = {"dev Spearman", "test Spearman", "articles recall@3"}
    assert {name: set(row) for name, row in scores.items()} == {
        "base causal": columns,
        "both": columns,
    }
    for name in columns:
        assert scores["both"][name] != scores["base causal"][name]
        assert all(-1 < row[name] < 1 for row in scores.values())
    assert scores["both"]["articles recall@3"] > 3 / 170  # better than chance
