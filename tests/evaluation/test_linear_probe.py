"""The linear probe beside torch's own layer and optimiser, its seed, its dropout, and its file."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from toolkit.base.errors import BadInput
from toolkit.base.files import sha256_of
from toolkit.evaluation.linear_probe import (
    Probe,
    dropout_mask,
    load_probe,
    train_probe,
    word_batches,
)
from toolkit.settings.task_schema import WordTask

LABELS = ["A", "B", "C"]
LENGTHS = [3, 1, 7, 2, 5, 2] * 10
NUM_WORDS = sum(LENGTHS)
rng = np.random.default_rng(5)
LABEL_W = rng.integers(0, 3, NUM_WORDS)
# The first three numbers tell the label, with much noise.
VECTORS_WD = rng.standard_normal((NUM_WORDS, 8)).astype(np.float32)
VECTORS_WD[:, :3] += 2 * np.eye(3, dtype=np.float32)[LABEL_W]


def trained(**settings: object) -> Probe:
    task = WordTask.model_validate({"train": "a", "test": "b", "steps": 30, "lr": 0.05, **settings})
    return train_probe(VECTORS_WD, label_W=LABEL_W, labels=LABELS, lengths=LENGTHS, task=task)


@pytest.mark.parametrize("weight", ["weight_LD", "bias_L"])
def test_it_is_what_torch_trains(weight: str) -> None:
    """A batch of all sentences, whose order says nothing; no dropout; a rate that falls."""
    layer = torch.nn.Linear(8, 3)
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.05, weight_decay=0.0)
    falls = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / 30)
    for _ in range(30):
        logits = layer(torch.from_numpy(VECTORS_WD))
        loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(LABEL_W))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        falls.step()
    expected = {"weight_LD": layer.weight, "bias_L": layer.bias}[weight].detach().numpy()
    found = getattr(trained(dropout=0.0, batch_sentences=len(LENGTHS)), weight)
    assert np.abs(expected).max() > 0.1
    assert np.abs(found - expected).max() <= 1e-5


def test_a_seed_decides_all() -> None:
    first, again, other = trained(), trained(), trained(seed=43)
    assert np.array_equal(first.weight_LD, again.weight_LD)
    assert np.array_equal(first.bias_L, again.bias_L)
    assert not np.array_equal(first.weight_LD, other.weight_LD)
    assert not np.array_equal(first.weight_LD, trained(dropout=0.0).weight_LD)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.999])
def test_dropout_keeps_the_mean(rate: float) -> None:
    """So many numbers become zero, and the others grow."""
    mask = dropout_mask((1000, 300), rate=rate, random=np.random.default_rng(0))
    assert mask.dtype == np.float32
    assert (mask == 0).mean() == pytest.approx(rate, abs=0.005)
    assert np.unique(mask).tolist() == pytest.approx([0.0, 1 / (1 - rate)])
    # Independent of one another: each row and each column has its share.
    assert (mask == 0).mean(axis=0).std() == pytest.approx(
        (rate * (1 - rate) / 1000) ** 0.5, rel=0.2
    )


def test_nothing_is_dropped_in_the_test() -> None:
    """The reference tests with dropout on (D10)."""
    probe = trained(dropout=0.9)
    logits = VECTORS_WD.astype(np.float64) @ probe.weight_LD.T.astype(np.float64) + probe.bias_L
    assert np.array_equal(probe.predict(VECTORS_WD), logits.argmax(axis=1))
    assert probe.predict(VECTORS_WD[:0]).shape == (0,)


def test_every_sentence_once_in_an_epoch() -> None:
    batches = word_batches([2, 1, 3, 0, 1], size=2, random=np.random.default_rng(0))
    for _ in range(4):
        epoch = [next(batches).tolist() for _ in range(3)]
        assert sorted(word for batch in epoch for word in batch) == list(range(7))
    assert {tuple(next(batches)) for _ in range(60)} > {(0, 1, 2), (2, 0, 1)}


def test_long_training_says_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trained()
    assert capsys.readouterr().out == ""  # it is soon done
    monkeypatch.setattr("toolkit.evaluation.linear_probe.LINE_S", 0.0)
    trained()
    assert capsys.readouterr().out.startswith("word probe: 30/30 steps, ")


def test_half_precision_vectors_train_too() -> None:
    task = WordTask(train="a", test="b", steps=200, lr=0.05)
    half_WD = VECTORS_WD.astype(np.float16)
    probe = train_probe(half_WD, label_W=LABEL_W, labels=LABELS, lengths=LENGTHS, task=task)
    assert probe.weight_LD.dtype == np.float32
    assert (probe.predict(half_WD) == LABEL_W).mean() > 0.8


def test_a_file_that_others_can_read(tmp_path: Path) -> None:
    probe = trained()
    probe.save(tmp_path / "pos", about={"shift": True})
    found = load_probe(tmp_path / "pos")
    assert found.labels == LABELS
    assert np.array_equal(found.predict(VECTORS_WD), probe.predict(VECTORS_WD))
    tensors = load_file(tmp_path / "pos" / "probe.safetensors")
    assert torch.equal(tensors["weight"], torch.from_numpy(probe.weight_LD))
    assert torch.equal(tensors["bias"], torch.from_numpy(probe.bias_L))
    about = json.loads((tmp_path / "pos" / "probe.json").read_text())
    digest = sha256_of(tmp_path / "pos" / "probe.safetensors")
    assert about == {"labels": LABELS, "shift": True, "sha256": digest}


def test_a_probe_of_two_writers_is_refused_and_an_older_one_read(tmp_path: Path) -> None:
    """The weights of one and the labels of the other, as two evaluations at once may leave it."""
    trained().save(tmp_path / "a", about={})
    Probe(LABELS, -trained().weight_LD, trained().bias_L).save(tmp_path / "b", about={})
    mine, theirs = (tmp_path / name / "probe.safetensors" for name in ("a", "b"))
    mine.write_bytes(theirs.read_bytes())
    with pytest.raises(
        BadInput, match=r"probe\.safetensors: does not belong to probe\.json beside it"
    ):
        load_probe(tmp_path / "a")
    (tmp_path / "a" / "probe.json").write_text(json.dumps({"labels": LABELS}))
    assert load_probe(tmp_path / "a").labels == LABELS


def test_a_damaged_probe_is_named(tmp_path: Path) -> None:
    trained().save(tmp_path, about={})
    weights = tmp_path / "probe.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-4])
    with pytest.raises(BadInput, match=r"probe\.safetensors: is not a whole probe"):
        load_probe(tmp_path)
    weights.write_bytes(whole)
    (tmp_path / "probe.json").write_text('{"labels": ["A", "B"]}')
    with pytest.raises(BadInput, match="2 labels, 3 rows of weights"):
        load_probe(tmp_path)
    (tmp_path / "probe.json").write_text("{}")
    with pytest.raises(BadInput, match=r"probe\.json: has no labels"):
        load_probe(tmp_path)
