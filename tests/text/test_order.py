"""The global order: a permutation per epoch, the same for every number of ranks."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from toolkit.text.order import sample_at


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 3000), st.integers(0, 2**31), st.integers(0, 5))
def test_each_epoch_holds_each_sample_once(num_samples: int, seed: int, epoch: int) -> None:
    positions = np.arange(num_samples, dtype=np.int64) + epoch * num_samples
    found = sample_at(positions, num_samples=num_samples, seed=seed)
    assert sorted(found.tolist()) == list(range(num_samples))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_position_alone_equals_the_whole(data: st.DataObject) -> None:
    num_samples = data.draw(st.integers(1, 500))
    seed = data.draw(st.integers(0, 2**31))
    positions = np.arange(3 * num_samples, dtype=np.int64)
    whole = sample_at(positions, num_samples=num_samples, seed=seed)
    part = data.draw(st.lists(st.sampled_from(positions.tolist()), min_size=1))
    found = sample_at(np.array(part, dtype=np.int64), num_samples=num_samples, seed=seed)
    assert found.tolist() == whole[part].tolist()


def test_epochs_and_seeds_differ_and_the_order_is_no_stripe() -> None:
    positions = np.arange(2000, dtype=np.int64)
    first = sample_at(positions, num_samples=2000, seed=1)
    second_epoch = sample_at(positions + 2000, num_samples=2000, seed=1)
    other_seed = sample_at(positions, num_samples=2000, seed=2)
    for other in (second_epoch, other_seed):
        assert (first == other).mean() < 0.01
    # Neighbours of a good shuffle are as far apart as random ones: a third of the range.
    assert abs(np.abs(np.diff(first)).mean() / 2000 - 1 / 3) < 0.03
    assert abs(np.corrcoef(positions, first)[0, 1]) < 0.1
