"""The global order of samples: a pure function of (seed, epoch, position).

Knows integers only. Position p of an epoch is one sample, each sample stands at one position, and
any position is found without the others: a restart needs no state but the step.
"""

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NUM_ROUNDS = 6
CHUNK_SAMPLES = 1024
WINDOW_CHUNKS = 256

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class BlockShuffle:
    """A shuffle that reads mostly sequentially, of `num_samples` samples in their stored order.

    The samples are cut into chunks of neighbours, the chunks are permuted, and each run of
    `window_chunks` permuted chunks is permuted within: like the shuffle buffer of a streaming
    loader, but a function of the position alone. At any time only one window of the data is read,
    from `window_chunks` places. Any position costs the same; an epoch's chunk order is computed
    once, in num_samples / chunk_samples steps.
    """

    num_samples: int
    seed: int
    chunk_samples: int = CHUNK_SAMPLES
    window_chunks: int = WINDOW_CHUNKS

    def at(self, positions: Ints) -> tuple[Ints, Ints]:
        """The epoch and the sample at each position of the endless sequence."""
        epochs, offsets = np.divmod(positions, self.num_samples)
        samples = np.empty_like(offsets)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            samples[here] = self._samples(offsets[here], epoch=int(epoch))
        return epochs, samples

    def _samples(self, offsets: Ints, *, epoch: int) -> Ints:
        starts, ends, window_ends = self._chunks(epoch)
        windows = np.searchsorted(window_ends, offsets, side="right")
        window_starts = np.where(windows > 0, window_ends[windows - 1], 0)
        # A key per window, and one that no chunk order has: bit 63 is never in an epoch's number.
        names = (np.uint64(epoch) << np.uint64(32)) ^ windows.astype(np.uint64)
        keys = _mix(np.uint64(self.seed) ^ _mix(names ^ np.uint64(1 << 63)))
        inside = _walk(
            offsets - window_starts, limits=window_ends[windows] - window_starts, keys=keys
        )
        places = window_starts + inside
        chunks = np.searchsorted(ends, places, side="right")
        return starts[chunks] + places - np.where(chunks > 0, ends[chunks - 1], 0)

    @functools.lru_cache(maxsize=4)  # noqa: B019 (a run has one or two of these, as long as it runs)
    def _chunks(self, epoch: int) -> tuple[Ints, Ints, Ints]:
        """First sample and end position of each chunk, and end position of each window."""
        num_chunks = -(-self.num_samples // self.chunk_samples)
        bounds = np.arange(num_chunks + 1, dtype=np.int64) * self.num_samples // num_chunks
        order = sample_at(
            np.arange(num_chunks, dtype=np.int64) + epoch * num_chunks,
            num_samples=num_chunks,
            seed=self.seed,
        )
        ends = np.cumsum((bounds[1:] - bounds[:-1])[order])
        last = np.append(
            np.arange(self.window_chunks - 1, num_chunks - 1, self.window_chunks), num_chunks - 1
        )
        return bounds[order], ends, ends[last]


def sample_at(positions: Ints, *, num_samples: int, seed: int) -> Ints:
    """The (epoch-wise shuffled) sample at each position of the endless sequence.

    Position p lies in epoch p // num_samples. A Feistel network over the next power of four, walked
    until it lands inside, permutes each epoch in O(1) memory (Black and Rogaway 2002).
    """
    epochs, offsets = np.divmod(positions, num_samples)
    keys = _mix(np.uint64(seed) ^ _mix(epochs.astype(np.uint64) + np.uint64(1)))
    return _walk(offsets, limits=np.full_like(offsets, num_samples), keys=keys)


def sample_seed(*, seed: int, epoch: int, sample: int) -> tuple[int, int, int]:
    """The entropy of one sample's own randomness, for `numpy.random.default_rng`.

    Drawn from the sample and not from the rank, so that no number of ranks changes a mask.
    """
    return (seed, epoch, sample)


def _walk(offsets: Ints, *, limits: Ints, keys: NDArray[np.uint64]) -> Ints:
    """Permute each offset within 0 <= offset < limit, by the permutation that its key names."""
    # From each limit itself: with the largest one's bits, a permutation would depend on the others.
    half_bits = np.maximum(1, (_bit_length(limits - 1) + 1) // 2).astype(np.uint64)
    values = offsets.astype(np.uint64)
    bounds = limits.astype(np.uint64)
    pending = np.ones(len(values), dtype=bool)
    while pending.any():
        values[pending] = _feistel(
            values[pending], keys=keys[pending], half_bits=half_bits[pending]
        )
        pending[pending] = values[pending] >= bounds[pending]
    return values.astype(np.int64)


def _bit_length(numbers: Ints) -> Ints:
    # frexp gives the exponent e of x = m * 2**e with 0.5 <= m < 1: the bit length, exact here,
    # since it is taken of a double and no array is near 2**53 long.
    return np.frexp(numbers.astype(np.float64))[1].astype(np.int64)


def _feistel(
    values: NDArray[np.uint64], *, keys: NDArray[np.uint64], half_bits: NDArray[np.uint64]
) -> NDArray[np.uint64]:
    mask = (np.uint64(1) << half_bits) - np.uint64(1)
    left, right = values >> half_bits, values & mask
    for number in range(NUM_ROUNDS):
        left, right = right, left ^ (_mix(right ^ keys ^ np.uint64(number << 56)) & mask)
    return (left << half_bits) | right


def _mix(values: NDArray[np.uint64] | np.uint64) -> NDArray[np.uint64]:
    """The finaliser of splitmix64 (Steele et al. 2014): each input bit reaches all output bits."""
    mixed = np.atleast_1d(np.asarray(values, dtype=np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(mixed ^ (mixed >> np.uint64(31)))
