"""Samples: nothing lost, nothing twice, whoever reads them."""

from pathlib import Path

import numpy as np
import pytest

from toolkit.files import BadInput
from toolkit.text.shards import open_shards
from toolkit.text.stream import Sentences, Stream


def test_an_epoch_holds_all_sentences_once(shards: Path) -> None:
    opened = open_shards(shards)
    stream = Stream(Sentences(opened), seed=3)
    samples = stream.batch(0, global_rows=stream.num_samples, start=0, stop=stream.num_samples)
    assert {sample.epoch for sample in samples} == {0}
    assert [s.content for s in sorted(samples, key=lambda sample: sample.index)] == [
        opened.sentence(row, k)
        for row in range(opened.num_rows)
        for k in range(int(opened.num_sentences[row]))
    ]


def test_ranks_share_a_batch_in_order(shards: Path) -> None:
    stream = Stream(Sentences(open_shards(shards)), seed=3)
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


def test_no_text_is_refused() -> None:
    class Nothing:
        num_samples = 0

        def content(self, index: int) -> str:
            raise IndexError(index)

    with pytest.raises(BadInput, match="no text to train on"):
        Stream(Nothing(), seed=0)


def test_a_far_step_is_found_at_once(shards: Path) -> None:
    stream = Stream(Sentences(open_shards(shards)), seed=3)
    far = stream.batch(1_000_000_000, global_rows=8, start=0, stop=8)
    assert {sample.epoch for sample in far} == {8_000_000_000 // stream.num_samples}
    assert len(np.unique([sample.index for sample in far])) == 8
