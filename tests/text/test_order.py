"""The global order: a permutation per epoch, the same for every number of ranks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toolkit.text.order import BlockShuffle, Ints, sample_at, sample_seed

SEEDS = st.integers(0, 2**31)


@st.composite
def shuffles(draw: st.DrawFn) -> BlockShuffle:
    return BlockShuffle(
        num_samples=draw(st.integers(1, 700)),
        seed=draw(SEEDS),
        chunk_samples=draw(st.integers(1, 80)),
        window_chunks=draw(st.integers(1, 9)),
    )


def span(start: int, stop: int) -> Ints:
    return np.arange(start, stop, dtype=np.int64)


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 3000), SEEDS, st.integers(0, 5))
def test_each_epoch_holds_each_sample_once(num_samples: int, seed: int, epoch: int) -> None:
    positions = span(epoch * num_samples, (epoch + 1) * num_samples)
    found = sample_at(positions, num_samples=num_samples, seed=seed)
    assert sorted(found.tolist()) == list(range(num_samples))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_position_alone_equals_the_whole(data: st.DataObject) -> None:
    num_samples = data.draw(st.integers(1, 500))
    seed = data.draw(SEEDS)
    positions = span(0, 3 * num_samples)
    whole = sample_at(positions, num_samples=num_samples, seed=seed)
    part = data.draw(st.lists(st.sampled_from(positions.tolist()), min_size=1))
    found = sample_at(np.array(part, dtype=np.int64), num_samples=num_samples, seed=seed)
    assert found.tolist() == whole[part].tolist()


@settings(max_examples=300, deadline=None)
@given(shuffles(), st.data())
def test_block_shuffle_is_one_sequence_for_any_world_size_and_restart(
    shuffle: BlockShuffle, data: st.DataObject
) -> None:
    """Read by W ranks, then from any step by V ranks: the sequence of one reader, nothing lost."""
    global_rows = data.draw(st.sampled_from([12, 24, 60]))
    num_steps = -(-2 * shuffle.num_samples // global_rows)
    epochs, samples = shuffle.at(span(0, num_steps * global_rows))
    for epoch in (0, 1):
        assert sorted(samples[epochs == epoch]) == list(range(shuffle.num_samples))
    restart = data.draw(st.integers(0, num_steps))
    before, after = (data.draw(st.sampled_from([1, 2, 3, 4, 6, 12])) for _ in range(2))
    found: list[int] = []
    for step in range(num_steps):
        ranks = before if step < restart else after
        local = global_rows // ranks
        reader = BlockShuffle(**vars(shuffle)) if step == restart else shuffle  # a new process
        for rank in range(ranks):
            start = step * global_rows + rank * local
            found.extend(reader.at(span(start, start + local))[1].tolist())
    assert found == samples.tolist()


def test_block_shuffle_reads_one_window_at_a_time() -> None:
    shuffle = BlockShuffle(num_samples=100_000, seed=4, chunk_samples=100, window_chunks=10)
    _, samples = shuffle.at(span(0, 100_000))
    for window in samples.reshape(100, 1000):
        chunks, counts = np.unique(window // 100, return_counts=True)
        assert len(chunks) == 10
        assert set(counts) == {100}
    assert len({int(window[0]) // 100 for window in samples.reshape(100, 1000)}) > 50


def neighbours(samples: Ints) -> float:
    """The share of a batch of 256 that stands in the same 64 stored samples as another of it."""
    groups = np.sort(samples.reshape(-1, 256) // 64, axis=1)
    return float((np.diff(groups, axis=1) == 0).mean())


def test_block_shuffle_mixes_nearly_like_a_full_shuffle() -> None:
    """Of a million samples 0.008 in a full shuffle; a batch of the default window holds 0.03."""
    positions = span(0, 2**20)
    full = sample_at(positions, num_samples=2**20, seed=2)
    assert neighbours(full) == pytest.approx(0.008, abs=0.002)
    default = BlockShuffle(num_samples=2**20, seed=2)
    assert neighbours(default.at(positions)[1]) == pytest.approx(0.030, abs=0.005)
    narrow = BlockShuffle(num_samples=2**20, seed=2, window_chunks=16)
    assert neighbours(narrow.at(positions)[1]) > 0.3


def test_epochs_and_seeds_differ_and_the_order_is_no_stripe() -> None:
    positions = span(0, 2000)
    first = BlockShuffle(num_samples=2000, seed=1).at(positions)[1]
    second_epoch = BlockShuffle(num_samples=2000, seed=1).at(positions + 2000)[1]
    other_seed = BlockShuffle(num_samples=2000, seed=2).at(positions)[1]
    for other in (second_epoch, other_seed):
        assert (first == other).mean() < 0.01
    # Neighbours of a good shuffle are as far apart as random ones: a third of the range.
    assert abs(np.abs(np.diff(first)).mean() / 2000 - 1 / 3) < 0.03
    assert abs(np.corrcoef(positions, first)[0, 1]) < 0.1


def test_a_sample_has_its_own_randomness_in_every_epoch() -> None:
    """Masks are drawn anew when a block comes again."""
    places = [(seed, epoch, sample) for seed in (0, 7) for epoch in range(3) for sample in range(3)]
    drawn = {
        np.random.default_rng(sample_seed(seed=seed, epoch=epoch, sample=sample)).random()
        for seed, epoch, sample in places
    }
    assert len(drawn) == len(places)


def test_samples_of_a_single_chunk_are_shuffled_by_the_seed_too() -> None:
    found = {
        tuple(BlockShuffle(num_samples=50, seed=seed).at(span(0, 50))[1].tolist())
        for seed in range(9)
    }
    assert len(found) == 9
