"""Classification, clustering and pairs on cases worked out by hand; files that cannot be scored."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from toolkit.base.errors import BadInput
from toolkit.evaluation.classes import (
    ClassificationTask,
    ClusteringTask,
    PairTask,
    read_classification,
    read_clustering,
    read_pair_task,
)
from toolkit.evaluation.labelled import read_labelled


def embed(texts: Sequence[str], *, instructed: bool = True) -> NDArray[np.float32]:
    """A text of two numbers is its vector."""
    return np.array([[float(n) for n in text.split()] for text in texts], dtype=np.float32)


TRAIN = (["0 9", "1 9", "9 0", "9 1"], ["up", "up", "right", "right"])


def test_classes_that_can_be_told_apart_are() -> None:
    test = (["1 8", "8 1", "7 0", "0 7"], ["up", "right", "right", "right"])
    found = ClassificationTask(TRAIN, test, samples_per_label=None, experiments=1).scores(embed)
    # One of four is wrong by its label: F1 is 2/3 of "up" and 4/5 of "right".
    assert found == {"accuracy": 0.75, "macro F1": pytest.approx((2 / 3 + 4 / 5) / 2)}


def test_experiments_draw_other_texts_of_every_label() -> None:
    labels = [str(number % 3) for number in range(30)]
    task = ClassificationTask(([""] * 30, labels), ([], []), samples_per_label=2, experiments=3)
    draws = task._draws()
    assert len({tuple(sorted(rows)) for rows in draws}) == 3
    for rows in draws:
        assert sorted(labels[row] for row in rows) == ["0", "0", "1", "1", "2", "2"]
    assert draws == task._draws()


def test_labels_that_are_not_trained_on_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train, test = tmp_path / "train.csv", tmp_path / "test.csv"
    train.write_text("text,category\n0 9,up\n9 0,right\n")
    test.write_text("text,label\n0 8,up\n8 0,left\n")
    task = read_classification("mine", train=train, test=test, samples_per_label=8, experiments=2)
    assert "mine: 1 of 2 texts" in (told := capsys.readouterr().err)
    assert "such as 'left'; each counts as wrong" in told
    assert task.scores(embed)["accuracy"] == 0.5
    train.write_text("text,category\n0 9,up\n9 0,up\n")
    with pytest.raises(BadInput, match=r"train\.csv: all 2 texts have the label 'up'"):
        read_classification("mine", train=train, test=test, samples_per_label=8, experiments=1)


def test_clusters_that_are_apart_are_found() -> None:
    texts = [f"{x} {y}" for x, y in ((0, 9), (9, 0)) for _ in range(20)]
    labels = ["up"] * 20 + ["right"] * 20
    assert ClusteringTask(texts, labels).scores(embed)["V-measure"] == pytest.approx(1.0)
    mixed = ["up", "right"] * 20
    assert ClusteringTask(texts, mixed).scores(embed)["V-measure"] < 0.2


@pytest.mark.parametrize("labels", [["a", "a"], ["a", "b"]])
def test_labels_that_are_no_clusters_are_refused(labels: list[str], tmp_path: Path) -> None:
    (tmp_path / "c.tsv").write_text("text\tlabel\nx\t{}\ny\t{}\n".format(*labels))
    with pytest.raises(BadInput, match="of 2 texts make no clusters"):
        read_clustering(tmp_path / "c.tsv")


def test_pairs_of_a_case_worked_out_by_hand() -> None:
    """Cosines 1, 0.8, 0 of which the first and the last match."""
    task = PairTask(["1 0", "1 0", "1 0"], ["2 0", "4 3", "0 1"], np.array([1, 0, 1]))
    found = task.scores(embed)
    assert found["AP"] == pytest.approx((1 / 1 + 2 / 3) / 2)
    assert found["accuracy"] == pytest.approx(2 / 3)
    # A threshold parts cosines, so it calls a pair a match even where calling none is best.
    none = PairTask(["1 0"] * 3, ["2 0", "4 3", "0 1"], np.array([0, 0, 1]))
    assert none.scores(embed)["accuracy"] == pytest.approx(1 / 3)
    same = PairTask(["1 0"] * 4, ["2 0", "3 0", "4 0", "5 0"], np.array([1, 0, 0, 0]))
    assert same.scores(embed)["accuracy"] == 0.0


def test_pairs_are_read_by_their_columns(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(
        '{"sentence1": "a", "sentence2": "b", "label": 1}\n'
        '{"sentence1": "c", "sentence2": "d", "label": 0}\n'
    )
    task = read_pair_task(path)
    assert (task.first, task.second, task.matches_P.tolist()) == (["a", "c"], ["b", "d"], [1, 0])
    path.write_text('{"sentence1": "a", "sentence2": "b", "label": 2}\n')
    with pytest.raises(BadInput, match="the label '2' is neither 0 nor 1"):
        read_pair_task(path)
    path.write_text('{"sentence1": "a", "sentence2": "b", "label": 1}\n')
    with pytest.raises(BadInput, match="all 1 pairs have the label 1"):
        read_pair_task(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("l.csv", b"words,label\na,b\n", r"line 2: no column 'text'; there are words, label"),
        ("l.csv", b"text,label\na\n", r"line 2: 'label' is 'None', not a text"),
        ("l.csv", b"text,label\na,b,c\n", r"line 2: more fields than the header has"),
        ("l.csv", b"text,label\n", r"l\.csv: no rows"),
        ("l.csv", b'text,label\n"a,b\nc,d\n', r"l\.csv: cannot be read \(unexpected end of data"),
        ("l.csv", b"\xff\xfe", r"l\.csv: cannot be read"),
        ("l.jsonl", b'{"text": "a", "label": "b"}\n{\n', r"line 2: is not JSON"),
        ("l.csv", b"text,label,text\na,b,c\n", r"two of its columns are called 'text': rename one"),
        ("l.jsonl", b"[]\n", r"line 1: is not like"),
        (
            "l.jsonl",
            b'{"text": "a", "label": "b", "text": "c"}\n',
            r"line 1: is not JSON \(a name tw",
        ),
        ("l.jsonl", b'{"text": null, "label": "b"}\n', r"line 1: 'text' is 'None', not a text"),
        ("l.txt", b"a", r"is neither \.csv nor \.tsv"),
    ],
)
def test_labelled_texts_that_cannot_be_read_are_named(
    name: str, content: bytes, message: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadInput, match=message):
        read_labelled(tmp_path / name)


def test_real_intents_are_read_whole(real_data: Path) -> None:
    texts, labels = read_labelled(real_data / "banking77" / "train.csv")
    assert (len(texts), len(set(labels))) == (10003, 77)
    assert any("\n" in text or "," in text for text in texts)
