"""Samples: nothing lost, nothing twice, whoever reads them."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.text.making import shard_articles
from toolkit.base.errors import BadInput
from toolkit.text.records import Article
from toolkit.text.shards import open_shards
from toolkit.text.stream import Sample, Sentences, Stream


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


@dataclasses.dataclass(frozen=True)
class Split:
    """Rows with a number of sentences each, in shards of any sizes."""

    num_sentences: np.ndarray

    def sentence(self, row: int, k: int) -> str:
        assert 0 <= k < self.num_sentences[row]
        return f"{row}.{k}"


@settings(max_examples=1000, deadline=None)
@given(st.data())
def test_one_sequence_for_any_world_size_split_and_restart(data: st.DataObject) -> None:
    """W ranks, then from any step V ranks, on the same documents in other shards: the same global
    sequence; in an epoch no sample comes twice and none is missing."""
    counts = data.draw(st.lists(st.integers(0, 4), min_size=1, max_size=12).filter(any))
    seed, rows = data.draw(st.integers(0, 2**31)), data.draw(st.sampled_from([4, 12]))
    before, after = (data.draw(st.sampled_from([1, 2, 4])) for _ in range(2))
    cut = data.draw(st.integers(0, len(counts)))

    def stream(*shards: list[int]) -> Stream[str]:
        together: Any = Split(np.array([n for shard in shards for n in shard], dtype=np.int32))
        return Stream(Sentences(together), seed=seed)

    whole = stream(counts)
    num_steps = -(-2 * whole.num_samples // rows)
    restart = data.draw(st.integers(0, num_steps))
    found: list[Sample[str]] = []
    reader, ranks = whole, before
    for step in range(num_steps):
        if step == restart:
            reader, ranks = stream(counts[:cut], counts[cut:]), after
        local = rows // ranks
        for rank in range(ranks):
            found += reader.batch(
                step, global_rows=rows, start=rank * local, stop=(rank + 1) * local
            )
    assert found == whole.batch(0, global_rows=num_steps * rows, start=0, stop=num_steps * rows)
    everything = sorted(f"{row}.{k}" for row, count in enumerate(counts) for k in range(count))
    for epoch in (0, 1):
        inside = found[epoch * whole.num_samples : (epoch + 1) * whole.num_samples]
        assert {sample.epoch for sample in inside} == {epoch}
        assert sorted(sample.content for sample in inside) == everything


@pytest.mark.parametrize("rows_per_shard", [3, 50])
def test_real_shards_of_another_split_give_the_same_sentences(
    rows_per_shard: int, shards: Path, tmp_path: Path
) -> None:
    opened = open_shards(shards)
    articles = [Article(**record) for record in opened.records(0, 40)]
    one, other = (
        Stream(
            Sentences(
                open_shards(
                    shard_articles(
                        articles, output=tmp_path / f"{size}" / "shards", rows_per_shard=size
                    )
                )
            ),
            seed=5,
        )
        for size in (1000, rows_per_shard)
    )
    for step in (0, 3, 10**6):
        left, right = (s.batch(step, global_rows=16, start=0, stop=16) for s in (one, other))
        assert left == right
