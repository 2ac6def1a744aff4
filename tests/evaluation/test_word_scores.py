"""Scores of word tasks worked out by hand, and a real task from its file to its scores."""

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from toolkit import evaluate
from toolkit.base.errors import BadInput
from toolkit.encoding.encoder import Encoder
from toolkit.evaluation.linear_probe import load_probe
from toolkit.evaluation.tagging import read_tagging
from toolkit.evaluation.word_features import word_features
from toolkit.evaluation.word_scores import tag_scores, word_scores
from toolkit.evaluation.words import Tagged, read_word_data
from toolkit.settings.recipes import load_recipe
from toolkit.settings.schema import EncoderSettings, EvaluateRecipe
from toolkit.settings.task_schema import WordTask


def scores(gold: Sequence[str], predicted: str, *, scheme: str) -> dict[str, float]:
    tags = [row.split() for row in gold]
    part = Tagged("x", [["w"] * len(row) for row in tags], tags)
    return tag_scores(part, predicted_W=predicted.split(), scheme=scheme)


@pytest.mark.parametrize(
    ("gold", "predicted", "scheme", "accuracy", "f1"),
    [
        # Two of three spans found, and one that is none: precision 2/3, recall 2/3.
        (["B-A I-A O B-B", "B-A"], "B-A I-A O B-A B-A", "conlleval", 4 / 5, 2 / 3),
        # A span of which a word is missing is no span: nothing is right but a tag.
        (["B-A I-A O"], "B-A O O", "conlleval", 2 / 3, 0.0),
        # conlleval lets an I begin a span; strictly it begins none: precision 1, recall 1/2.
        (["B-A I-A O B-B"], "I-A I-A O B-B", "conlleval", 3 / 4, 1.0),
        (["B-A I-A O B-B"], "I-A I-A O B-B", "iob2", 3 / 4, 2 / 3),
        # IOB1: a B parts spans of one type that touch. Two in gold, one long one is found.
        (["I-A B-A O"], "I-A B-A O", "conlleval", 1.0, 1.0),
        (["I-A B-A O"], "I-A I-A O", "conlleval", 2 / 3, 0.0),
        (["I-A B-A O"], "I-A B-A O", "iob1", 1.0, 1.0),
        # A span ends with its sentence.
        (["O B-A", "I-A O"], "O B-A I-A O", "conlleval", 1.0, 1.0),
        (["S-A B-B E-B"], "S-A B-B I-B", "iobes", 2 / 3, 2 / 3),
        (["U-A B-B L-B O"], "U-A B-B L-B U-B", "bilou", 3 / 4, 4 / 5),
        (["O B-A"], "O O", "conlleval", 1 / 2, 0.0),
    ],
)
def test_spans_worked_out_by_hand(
    gold: list[str], predicted: str, scheme: str, accuracy: float, f1: float
) -> None:
    found = scores(gold, predicted, scheme=scheme)
    assert found == {"accuracy": pytest.approx(accuracy), "F1": pytest.approx(f1)}


def test_tags_worked_out_by_hand() -> None:
    """F1 of A is 2 * 1 / (2 + 1), of B 1, and of C, which is never right, 0: the mean of three."""
    found = scores(["A A B", "B"], "A C B B", scheme="none")
    assert found == {
        "accuracy": pytest.approx(3 / 4),
        "macro F1": pytest.approx((2 / 3 + 1 + 0) / 3),
    }


@pytest.fixture(scope="module")
def encoder(tiny_model: Path) -> Encoder:
    return Encoder(EncoderSettings(model=str(tiny_model), max_tokens=32, batch_tokens=512))


def column_file(path: Path, rows: Sequence[tuple[str, str]]) -> str:
    """A sentence of every three words."""
    lines = [f"{word}\t{tag}\n" + "\n" * (n % 3 == 2) for n, (word, tag) in enumerate(rows)]
    path.write_text("".join(lines))
    return str(path)


def test_words_that_are_out_of_the_ordinary_are_counted(
    encoder: Encoder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Unknown tags count as wrong; words without tokens and of long sentences are not lost."""
    known = [("dog", "N"), ("runs", "V"), ("cat", "N"), ("sits", "V")]
    train = column_file(tmp_path / "a.txt", known * 6)
    rows = [("dog", "N"), ("so", "ADV"), ("oh", "INTJ"), (" ", "N"), ("so", "ADV"), ("runs", "V")]
    rows += [("the supercalifragilistic " * 9, "V")]
    test = column_file(tmp_path / "b.txt", rows)
    asked = WordTask(train=train, test=test, column=2, steps=300, lr=0.01, shift=False)
    task = read_tagging("toy", asked, folder=tmp_path)
    said = capsys.readouterr().err
    assert said.startswith(f"warning: toy: 3 of 7 words of {test} have a tag that {train} does not")
    assert said.endswith("have, such as 'ADV' (2), 'INTJ' (1); each counts as wrong\n")
    found = word_scores(encoder, asked, data=task.data, name="toy")
    assert [line.partition("b.txt: ")[2] for line in capsys.readouterr().err.splitlines()] == [
        "1 words give no token: the zero vector stands for them",
        "1 sentences are longer than max_tokens=32 and were encoded in pieces",
    ]
    assert set(found) == {"accuracy", "macro F1"}
    assert 2 / 7 <= found["accuracy"] <= 4 / 7


def test_a_cache_on_the_disk_needs_a_folder(encoder: Encoder, tmp_path: Path) -> None:
    path = column_file(tmp_path / "a.txt", [("dog", "N"), ("runs", "V")])
    task = WordTask(train=path, test=path, column=2, cache="disk")
    with pytest.raises(BadInput, match="cache=disk: there is no folder"):
        word_scores(encoder, task, data=read_word_data(task), name="x")


def treebank(real_data: Path, folder: Path) -> dict[str, object]:
    """A task on 300 sentences of EWT's development part, tested on 100 others."""
    text = (real_data / "ud_english_ewt" / "en_ewt-ud-dev.conllu").read_text()
    sentences = [part + "\n\n" for part in text.strip().split("\n\n")]
    (folder / "train.conllu").write_text("".join(sentences[:300]))
    (folder / "test.conllu").write_text("".join(sentences[1000:1100]))
    return {"train": str(folder / "train.conllu"), "test": str(folder / "test.conllu")}


def run(recipe: dict[str, object], path: Path) -> dict[str, dict[str, float]]:
    path.write_text(json.dumps(recipe))
    loaded = load_recipe(str(path))
    assert isinstance(loaded, EvaluateRecipe)
    return evaluate.run(loaded, environ={})


def test_a_real_task_by_its_recipe(
    tiny_model: Path, real_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both alignments; the probes that are left tag the test part as the scores say."""
    task = {**treebank(real_data, tmp_path), "steps": 400, "cache": "disk", "cache_dtype": "fp16"}
    settings = {"model": str(tiny_model), "max_tokens": 256}
    recipe = {
        "kind": "evaluate",
        "output_dir": str(tmp_path / "out"),
        "encoders": {"both_ways": settings},
        "words": {"POS": task},
    }
    found = run(recipe, tmp_path / "words.yaml")["both ways"]
    assert json.loads((tmp_path / "out" / "scores.json").read_text()) == {"both ways": found}
    said = capsys.readouterr().out
    assert re.search(r"POS: the vectors of [0-9,]+ words took [0-9.]+ s; 21\.3 epochs", said)
    # By the same seed on the vectors that lie on the disk: the same to the last bit.
    shutil.rmtree(tmp_path / "out" / "parts")
    assert run(recipe, tmp_path / "words.yaml")["both ways"] == found
    assert "words were on the disk" in capsys.readouterr().out
    ends = ("accuracy", "macro F1", "accuracy, shifted", "macro F1, shifted")
    assert set(found) == {f"POS {end}" for end in ends}
    parts = read_word_data(WordTask.model_validate(task))
    gold = np.array(parts.test.all_tags)
    encoder = Encoder(EncoderSettings.model_validate(settings))
    vectors_AWD = word_features(encoder, parts.test.sentences, shifts=(0, 1)).vectors_AWD
    for place, name in enumerate(("POS", "POS_shifted")):
        probe = load_probe(tmp_path / "out" / "words" / "both_ways" / name)
        tags = np.array(probe.labels)[probe.predict(vectors_AWD[place])]
        # Those were in half precision, these are not.
        said_accuracy = found["POS accuracy" + ", shifted" * place]
        assert (tags == gold).mean() == pytest.approx(said_accuracy, abs=0.005)
    majority = max(np.mean(gold == tag) for tag in set(gold))
    assert found["POS accuracy"] > 2 * majority
    # A model that has seen no MNTP says little of a word a token before it.
    assert majority < found["POS accuracy, shifted"] < found["POS accuracy"]


def test_a_recipe_takes_overrides_of_a_task(tmp_path: Path) -> None:
    recipe = {
        "kind": "evaluate",
        "output_dir": "o",
        "encoders": {"e": {"model": "m"}},
        "words": {"ner": {"train": "a.txt", "test": "b.txt"}},
    }
    (tmp_path / "r.yaml").write_text(json.dumps(recipe))
    given = ["words.ner.column=4", "words.ner.shift=true", "words.ner.scheme=iob1"]
    loaded = load_recipe(str(tmp_path / "r.yaml"), overrides=given)
    assert isinstance(loaded, EvaluateRecipe)
    task = loaded.words["ner"]
    assert (task.column, task.shift, task.scheme) == (4, True, "iob1")
    for wrong in ("words.ner.column=0", "words.ner.shift=2", "words.ner.colum=ner"):
        with pytest.raises(BadInput, match=wrong.partition("=")[0].rpartition(".")[2]):
            load_recipe(str(tmp_path / "r.yaml"), overrides=[wrong])


def test_a_bad_file_is_named_before_a_model_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a X\nb\n")
    task = {"train": str(tmp_path / "a.txt"), "test": "b.txt", "column": 2}
    recipe = {
        "kind": "evaluate",
        "output_dir": str(tmp_path / "out"),
        "encoders": {"none": {"model": str(tmp_path / "no_model")}},
        "words": {"x": task},
    }
    with pytest.raises(BadInput, match=r"a\.txt, line 2: 1 columns instead of 2: 'b'"):
        run(recipe, tmp_path / "r.yaml")
    (tmp_path / "a.txt").write_text("a X\nb Y\n")
    task["test"] = task["train"]
    with pytest.raises(BadInput, match=r"instructions\.x: a task on words takes no instruction"):
        run({**recipe, "instructions": {"x": "Tag it."}}, tmp_path / "r.yaml")
    assert not (tmp_path / "out").exists()
