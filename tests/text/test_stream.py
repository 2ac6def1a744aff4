"""Samples: nothing lost, nothing twice, whoever reads it."""

from pathlib import Path

import pytest

from toolkit.text.shards import open_shards
from toolkit.text.stream import SampleStream, snap


@pytest.mark.parametrize("unit", ["documents", "sentences"])
def test_an_epoch_holds_all_text_once(unit: str, shards: Path) -> None:
    opened = open_shards(shards)
    stream = SampleStream(opened, unit=unit, passage_chars=128, seed=3)
    samples = stream.batch(0, global_rows=stream.num_samples, start=0, stop=stream.num_samples)
    assert {sample.epoch for sample in samples} == {0}
    by_index = [s.text for s in sorted(samples, key=lambda sample: sample.index)]
    if unit == "sentences":
        wanted = [
            opened.sentence(row, k)
            for row in range(opened.num_rows)
            for k in range(int(opened.num_sentences[row]))
        ]
        assert by_index == wanted
    else:
        assert all(by_index), "no passage is empty"
        words = " ".join(by_index).split()
        assert words == [w for row in range(opened.num_rows) for w in opened.text(row).split()]


def test_ranks_share_a_batch_in_order(shards: Path) -> None:
    stream = SampleStream(open_shards(shards), unit="sentences", passage_chars=128, seed=3)
    whole = stream.batch(5, global_rows=12, start=0, stop=12)
    for ranks in (1, 2, 3, 4):
        local = 12 // ranks
        parts = [
            sample
            for rank in range(ranks)
            for sample in stream.batch(
                5, global_rows=12, start=rank * local, stop=(rank + 1) * local
            )
        ]
        assert parts == whole


def test_snap_finds_word_starts_and_cuts_text_without_spaces() -> None:
    text = "alpha beta gamma"
    assert [snap(text, at=at, limit=64) for at in (0, 1, 6, 8, 13, 99)] == [0, 1, 6, 6, 11, 16]
    assert snap("字" * 500, at=100, limit=64) == 100
    assert snap(text, at=10, limit=2) == 10
