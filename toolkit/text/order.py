"""The global order of samples: a pure function of (seed, epoch, position).

Knows integers only. Position p of an epoch is one sample, each sample stands at one position, and
any position is found without the others: a restart needs no state but the step.
"""

import numpy as np
from numpy.typing import NDArray

NUM_ROUNDS = 6


def sample_at(positions: NDArray[np.int64], *, num_samples: int, seed: int) -> NDArray[np.int64]:
    """The (epoch-wise shuffled) sample at each position of the endless sequence.

    Position p lies in epoch p // num_samples. A Feistel network over the next power of four, walked
    until it lands inside, permutes each epoch in O(1) memory (Black and Rogaway 2002).
    """
    epochs, offsets = np.divmod(positions, num_samples)
    half_bits = max(1, ((num_samples - 1).bit_length() + 1) // 2)
    values = offsets.astype(np.uint64)
    pending = np.ones(len(values), dtype=bool)
    keys = _mix(np.uint64(seed) ^ _mix(epochs.astype(np.uint64) + np.uint64(1)))
    while pending.any():
        values[pending] = _feistel(values[pending], keys=keys[pending], half_bits=half_bits)
        pending[pending] = values[pending] >= num_samples
    return values.astype(np.int64)


def sample_seed(*, seed: int, epoch: int, sample: int) -> tuple[int, int, int]:
    """The entropy of one sample's own randomness, for `numpy.random.default_rng`.

    Drawn from the sample and not from the rank, so that no number of ranks changes a mask.
    """
    return (seed, epoch, sample)


def _feistel(
    values: NDArray[np.uint64], *, keys: NDArray[np.uint64], half_bits: int
) -> NDArray[np.uint64]:
    bits = np.uint64(half_bits)
    mask = np.uint64((1 << half_bits) - 1)
    left, right = values >> bits, values & mask
    for number in range(NUM_ROUNDS):
        left, right = right, left ^ (_mix(right ^ keys ^ np.uint64(number << 56)) & mask)
    return (left << bits) | right


def _mix(values: NDArray[np.uint64] | np.uint64) -> NDArray[np.uint64]:
    """The finaliser of splitmix64 (Steele et al. 2014): each input bit reaches all output bits."""
    mixed = np.atleast_1d(np.asarray(values, dtype=np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(mixed ^ (mixed >> np.uint64(31)))
