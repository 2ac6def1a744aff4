"""Scores against cases worked out by hand and against scipy; files that cannot be scored."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tests.conftest import QUICKSTART
from toolkit import evaluate
from toolkit.base.errors import BadInput
from toolkit.evaluation import program
from toolkit.evaluation.corpora import Corpora
from toolkit.evaluation.labelled import read_labelled
from toolkit.evaluation.parts import Part, Scores
from toolkit.evaluation.sts import cosines, geometry, read_pairs, spearman
from toolkit.evaluation.tables import table
from toolkit.evaluation.task import Outcome
from toolkit.parallel import comm
from toolkit.settings.recipes import load_recipe
from toolkit.settings.schema import EvaluateRecipe


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


def test_the_real_sts_benchmark(real_data: Path) -> None:
    """Quoted commas among them; grades from 0 to 5."""
    pairs = read_pairs(real_data / "stsbenchmark_en" / "stsb-en-test.csv")
    assert len(pairs.first) == len(pairs.second) == len(pairs.grades_P) == 1379
    assert (pairs.first[0], pairs.grades_P[0]) == ("A girl is styling her hair.", 2.5)
    assert pairs.second[0] == "A girl is brushing her hair."
    assert (pairs.grades_P.min(), pairs.grades_P.max()) == (0.0, 5.0)
    assert any("," in text for text in pairs.first)


def test_a_mark_before_a_file_is_no_part_of_its_text(tmp_path: Path) -> None:
    """As spreadsheets write it; and a text longer than csv reads unless told."""
    long = "long " * 40_000
    path = tmp_path / "pairs.csv"
    path.write_text(f"One,{long},1\nTwo,Three,2\n", encoding="utf-8-sig")
    pairs = read_pairs(path)
    assert (pairs.first, pairs.second[0]) == (["One", "Two"], long)
    path.write_text("text,label\na,b\n", encoding="utf-8-sig")
    assert read_labelled(path) == (["a"], ["b"])


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
        ("p.tsv", b"score\ta\tb\n", r"line 1: 'score' is not a score"),
        ("p.tsv", b"1\ta\tb\nnan\ta\tb\n", r"line 2: 'nan' is not a finite score"),
        ("p.csv", b"a,b,1\na,b,c,2\n", r"p\.csv, line 2: 4 fields instead of 3"),
        ("p.csv", b'"a\nb",b,1\na,b,\n', r"line 3: '' is not a score"),
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


def test_the_table_marks_the_best_of_each_line() -> None:
    rows = {
        "base": {"STS": 0.25, "recall@3": 0.5, "STS uniformity": -1.0},
        "after SimCSE": {"STS": 0.75, "STS uniformity": -2.0},
    }
    assert table(rows).splitlines() == [
        "                   base  after SimCSE",
        "-------------------------------------",
        "STS              0.250         0.750*",
        "recall@3         0.500*             -",
        "STS uniformity  -1.000        -2.000*",
    ]


def test_the_order_of_measures_is_that_of_scores_read_again(tmp_path: Path) -> None:
    part = Part("one", "law", {"main": "nDCG@10"})
    kept = Scores(tmp_path)
    kept.keep(part, Outcome({"R@3": 0.1, "nDCG@10": 0.2, "R@100": 0.3, "MRR@10": 0.4}))
    names = [f"law {measure}" for measure in ("nDCG@10", "MRR@10", "R@100", "R@3")]
    for scores in (kept, Scores(tmp_path)):
        found = scores.of_all([part])
        assert found
        assert list(program._by_encoder(found)["one"]) == names


def test_geometry_of_a_case_worked_out_by_hand() -> None:
    """Four directions of the plane: two pairs, one alike and one not."""
    first = np.array([[2, 0], [0, 1]], dtype=np.float32)
    second = np.array([[-1, 0], [0, -3]], dtype=np.float32)
    found = geometry(first, second_PD=second, grades_P=np.array([5.0, 0.0]))
    assert found["alignment"] == pytest.approx(4.0)  # opposite: the distance is 2
    # Of six pairs four are at a squared distance of 2, two at 4.
    assert found["uniformity"] == pytest.approx(np.log((4 * np.exp(-4) + 2 * np.exp(-8)) / 6))
    assert found["isotropy"] == pytest.approx(1.0)
    # Of grades from 0 to 5 those from 4 on are alike.
    third, fourth = np.array([[1, 1], *first]), np.array([[1, 1], *second])
    graded = geometry(third, second_PD=fourth, grades_P=np.array([5.0, 3.9, 0.0]))
    assert graded["alignment"] == pytest.approx(0.0)
    one_way = np.array([[1, 0.01], [1, -0.01]], dtype=np.float32)
    crowded = geometry(one_way, second_PD=one_way, grades_P=np.array([5.0, 0.0]))
    assert crowded["alignment"] == 0.0
    assert crowded["uniformity"] > found["uniformity"]
    assert crowded["isotropy"] < 0.5


def test_an_encoder_that_tells_nothing_apart_has_no_score() -> None:
    with pytest.raises(BadInput, match=r"all 2 cosines are 1\.0000: nothing to rank"):
        spearman(np.ones(2), grades_P=np.array([0.0, 1.0]))


def test_two_encoders_side_by_side(
    shards: Path,
    tiny_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
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
    scores = evaluate.run(loaded, environ={})
    assert json.loads((tmp_path / "scores" / "scores.json").read_text()) == scores
    assert capsys.readouterr().out.endswith(table(scores) + "\n")
    geometries = ("Spearman", "alignment", "uniformity", "isotropy")
    columns = {f"{name} {metric}" for name in ("dev", "test") for metric in geometries}
    columns |= {f"articles {name}" for name in ("nDCG@10", "R@100", "recall@3", "MRR@10")}
    assert {name: set(row) for name, row in scores.items()} == {
        "base causal": columns,
        "both": columns,
    }
    for name in columns:
        assert scores["both"][name] != scores["base causal"][name]
    assert scores["both"]["articles recall@3"] > 3 / 170  # better than chance
    # A rank has the device of its place on the node.
    asked: list[int] = []
    monkeypatch.setattr(comm, "device_of", lambda rank: asked.append(rank) or torch.device("cpu"))
    corpora = Corpora(loaded, should_stop=lambda: False)
    scorer = program._Scorer(loaded, tasks=[], local_rank=3, corpora=corpora)
    scorer.load(Part("both", "dev", {}))
    assert asked == [3]
    # Two names that tables show alike are refused.
    alike = dict.fromkeys(("base_causal", "base causal"), loaded.encoders["both"])
    with pytest.raises(BadInput, match="encoders: two are shown as 'base causal'"):
        evaluate.run(loaded.model_copy(update={"encoders": alike}), environ={})
    # Again: nothing is scored twice, until an input is another.
    again = evaluate.run(loaded, environ={})
    assert again == scores
    assert "is scored" not in capsys.readouterr().out
    other = load_recipe(str(tmp_path / "two.yaml"), overrides=["encoders.both.max_tokens=8"])
    assert isinstance(other, EvaluateRecipe)
    changed = evaluate.run(other, environ={})
    assert capsys.readouterr().out.count("is scored") == 3
    assert changed["base causal"] == scores["base causal"]
    assert changed["both"] != scores["both"]
