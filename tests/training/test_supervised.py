"""Supervised pairs as batches: instructions, fillers, scales; and a whole run."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import QUICKSTART
from toolkit import train
from toolkit.base.errors import BadInput
from toolkit.batching.tokenizer import text_tokenizer
from toolkit.encoding.encoder import Encoder
from toolkit.model.losses import FILLER
from toolkit.model.weights import model_digest
from toolkit.runs.records import read_metrics
from toolkit.settings.model_source import resolve_model
from toolkit.settings.schema import Supervised
from toolkit.text.pair_stream import PairStream, TaskPair
from toolkit.text.pairs import Pair, PairTask, open_pairs, write_pairs
from toolkit.text.stream import Sample
from toolkit.text.tokens import TextTokenizer
from toolkit.training.supervised import SupervisedObjective

TINY = QUICKSTART / "tiny-mistral"
BOS = 1


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return text_tokenizer(resolve_model(str(TINY)), max_tokens=32)


def samples_of(
    folder: Path, pairs: list[Pair], *, task: PairTask | None = None
) -> list[Sample[TaskPair]]:
    """The pairs as the stream gives them, in their order."""
    sets = [(task or PairTask("one"), pairs)]
    write_pairs(sets, output=folder / "pairs", sources=[], quarantine=[])
    stream = PairStream(open_pairs(folder / "pairs"), seed=0)
    batch = stream.batch(0, global_rows=len(pairs), start=0, stop=len(pairs))
    return sorted(batch, key=lambda sample: sample.index)


def objective(tokenizer: TextTokenizer, **settings: Any) -> SupervisedObjective:
    asked = Supervised(scale=20.0, **settings)
    return SupervisedObjective(asked, tokenizer=tokenizer, packed=True)


def test_the_instruction_is_read_and_never_pooled(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    task = PairTask("one", query_instruction="Find the answer", document_instruction="")
    samples = samples_of(tmp_path, [Pair("who built it", "the masons did")], task=task)
    (found,) = objective(tokenizer).encode(samples)
    (query, own), (document, document_own) = found.rows
    assert query.tolist() == tokenizer.encode(["Find the answer; who built it"])[0].tolist()
    alone = tokenizer.encode(["who built it"])[0]
    assert own.sum() == len(alone) - 1
    assert own[-own.sum() :].all()
    assert document.tolist() == tokenizer.encode(["the masons did"])[0].tolist()
    assert document_own.tolist() == [False] + [True] * (len(document) - 1)


def test_a_symmetric_task_asks_both_sides_and_a_format_is_ones_own(
    tmp_path: Path, tokenizer: TextTokenizer
) -> None:
    task = PairTask("one", query_instruction="Same", document_instruction="Same")
    samples = samples_of(tmp_path, [Pair("a b", "b a", ("c d",))], task=task)
    form = "Instruct: {instruction}\nQuery: "
    (found,) = objective(tokenizer, instruction_format=form).encode(samples)
    texts = ["a b", "b a", "c d"]
    for (ids, _), text in zip(found.rows, texts, strict=True):
        whole = tokenizer.encode([f"Instruct: Same\nQuery: {text}"])[0]
        assert ids.tolist() == whole.tolist()


def test_a_text_that_is_cut_never_leaks_its_instruction(tokenizer: TextTokenizer) -> None:
    """The reference counts tokens from the end, and a cut text ends elsewhere (its defect D9)."""
    prefix = "Find it; "
    length = len(tokenizer.encode([prefix])[0])
    ((ids, own),) = tokenizer.encode_after(prefix, ["word " * 100])
    assert len(ids) == 32
    assert not own[: length - 1].any()
    assert own[length:].all()


def test_an_instruction_that_fills_the_row_is_refused(
    tmp_path: Path, tokenizer: TextTokenizer
) -> None:
    task = PairTask("one", query_instruction="word " * 60)
    samples = samples_of(tmp_path, [Pair("a", "b")], task=task)
    with pytest.raises(BadInput, match=r"data.max_tokens=32: the instruction .* leaves no room"):
        objective(tokenizer).encode(samples)


@pytest.mark.parametrize("wanted", [0, 1, 3, 9])
def test_every_pair_brings_the_same_number_of_texts(
    wanted: int, tmp_path: Path, tokenizer: TextTokenizer
) -> None:
    """A pair without negatives brings a token instead, which is a negative of nobody."""
    pairs = [Pair("q1", "p1"), Pair("q2", "p2", ("n1",)), Pair("q3", "p3", ("n2", "n3", "n4"))]
    samples = samples_of(tmp_path, pairs)
    encoded = objective(tokenizer, num_hard_negatives=wanted).encode(samples)
    used = min(wanted, 3)
    batch = objective(tokenizer).collate(encoded)
    hashes = batch.hash_KB.numpy()
    assert hashes.shape == (2 + used, 3)
    opened = [sample.content.pair for sample in samples]
    assert hashes[:2].tolist() == [
        [pair.query_hash for pair in opened],
        [pair.positive_hash for pair in opened],
    ]
    for column, pair in zip(hashes[2:].T, opened, strict=True):
        given = pair.negative_hashes[:used]
        assert column.tolist() == [*given, *[FILLER] * (used - len(given))]
    bounds = batch.rows.bound_S.tolist()
    assert len(bounds) == 3 * (2 + used) + 1
    ids = batch.rows.ids_BT[0].numpy()
    rows = [ids[a:b] for a, b in itertools.pairwise(bounds)]
    assert np.array_equal(rows[1], tokenizer.encode(["q2"])[0])
    assert np.array_equal(rows[3], tokenizer.encode(["p1"])[0])
    if used:
        assert rows[6].tolist() == [BOS]


def test_a_data_set_may_have_a_scale_of_its_own(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    samples = samples_of(tmp_path, [Pair("a", "b")])
    for scales, wanted in (({}, 20.0), ({"one": 3.0}, 3.0), ({"other": 3.0}, 20.0)):
        (found,) = objective(tokenizer, scales=scales).encode(samples)
        assert found.scale == wanted


def test_a_run_learns_and_leaves_an_encoder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    subjects = ("The old bridge", "A grey cat", "My neighbour", "The long winter", "Our engine")
    verbs = ("crosses", "follows", "remembers", "repairs", "hides")
    things = ("the river", "a mouse", "the harvest", "an old clock", "every secret")
    pairs = [
        Pair(f"{subject} {verb} {thing}.", f"{thing} and {subject.lower()}", (f"{verb} nothing",))
        for subject in subjects
        for verb in verbs
        for thing in things
    ]
    write_pairs([(PairTask("one"), pairs)], output=tmp_path / "pairs", sources=[], quarantine=[])
    run = tmp_path / "run"
    arguments = [f"run_dir={run}", f"data.train={tmp_path / 'pairs'}", f"model.base={TINY}"]
    form = 'supervised.instruction_format="Instruct: {instruction} Query: "'
    assert train.main(["tiny_supervised", *arguments, "supervised.scales={two: 5.0}"]) == 2
    assert "'two' is not a data set of" in capsys.readouterr().err
    code = train.main(["tiny_supervised", *arguments, form, "train.steps=12"])
    assert code == 0
    rows = read_metrics(run)
    assert [row["step"] for row in rows] == list(range(1, 13))
    assert sum(row["loss"] for row in rows[-3:]) < 0.9 * sum(row["loss"] for row in rows[:3])
    assert all(0 <= row["accuracy"] <= 1 and row["alignment"] >= 0 for row in rows)
    assert model_digest(run / "encoder") != model_digest(TINY)
    encoder = Encoder.from_pretrained(str(run))
    assert encoder.before_text("Find it.") == "Instruct: Find it. Query: "
    assert encoder.before_text("") == ""
    assert Encoder.from_pretrained(str(TINY)).before_text("Find it") == "Find it; "


def test_shards_are_no_pairs(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [f"run_dir={tmp_path}/run", f"data.train={shards}", f"model.base={TINY}"]
    assert train.main(["tiny_supervised", *arguments]) == 2
    assert "is not a manifest of the format toolkit-pairs/2" in capsys.readouterr().err
    for text in ("no field", "{other}", "{0}", "{"):
        given = f"supervised.instruction_format='{text}'"
        assert train.main(["tiny_supervised", *arguments, given]) == 2
        assert "write a text with {instruction} in it" in capsys.readouterr().err
