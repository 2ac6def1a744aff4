"""The global order of samples: a pure function of (seed, epoch, position).

Knows integers only. In each epoch every sample stands at exactly one position, and the sample at
any position is computed without the others. So a restart needs no state but the step.
"""

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Rounds of the Feistel network; four are the least for a good one (Luby and Rackoff 1988).
NUM_ROUNDS = 6
CHUNK_SAMPLES = 1024  # neighbours that stay in one window, so that most reads are sequential
WINDOW_CHUNKS = 256  # chunks that are mixed with each other: 262,144 samples

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class BlockShuffle:
    """A shuffle of `num_samples` stored samples that reads mostly sequentially.

    The stored order is cut into chunks of neighbours, and the chunks are permuted. Each window of
    `window_chunks` consecutive permuted chunks is then permuted inside, sample by sample. It works
    like the shuffle buffer of a streaming loader, but it is a function of the position alone. At
    any time only one window of the data is read, from `window_chunks` places. Every position costs
    the same; the chunk order of an epoch is computed once, in num_samples / chunk_samples steps.
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
        # Chunks differ in length by one sample, so windows do too, and division cannot find them.
        windows = np.searchsorted(window_ends, offsets, side="right")
        window_starts = np.where(windows > 0, window_ends[windows - 1], 0)
        # One key per window. Bit 63, which no epoch number has, keeps these keys apart from the key
        # of the chunk order (`sample_at`), so that the two permutations are independent.
        names = (np.uint64(epoch) << np.uint64(32)) ^ windows.astype(np.uint64)
        keys = _mix(np.uint64(self.seed) ^ _mix(names ^ np.uint64(1 << 63)))
        inside = _walk(
            offsets - window_starts, limits=window_ends[windows] - window_starts, keys=keys
        )
        # From a place in the order of permuted chunks back to the stored order: find the chunk, and
        # add its stored start to the distance from its permuted start.
        places = window_starts + inside
        chunks = np.searchsorted(ends, places, side="right")
        return starts[chunks] + places - np.where(chunks > 0, ends[chunks - 1], 0)

    # Cached for several epochs, because a batch may cross from one epoch into the next.
    @functools.lru_cache(maxsize=4)  # noqa: B019 (a run has one or two of these, as long as it runs)
    def _chunks(self, epoch: int) -> tuple[Ints, Ints, Ints]:
        """First sample and end position of each chunk, and end position of each window."""
        num_chunks = -(-self.num_samples // self.chunk_samples)
        # Equal steps, so that the last chunk is not much shorter than the others.
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
    """The sample at each position of the endless sequence, in which each epoch is shuffled anew.

    Position p lies in epoch p // num_samples. Each epoch is permuted in O(1) memory by cycle
    walking: a Feistel network permutes the numbers below the next power of four, and is applied
    again until its result is below `num_samples` (Black and Rogaway 2002).
    """
    epochs, offsets = np.divmod(positions, num_samples)
    keys = _mix(np.uint64(seed) ^ _mix(epochs.astype(np.uint64) + np.uint64(1)))
    return _walk(offsets, limits=np.full_like(offsets, num_samples), keys=keys)


def sample_seed(*, seed: int, epoch: int, sample: int) -> tuple[int, int, int]:
    """The entropy for a sample's own random numbers, for `numpy.random.default_rng`.

    It depends on the sample and not on the rank, so that the number of ranks changes no mask.
    """
    return (seed, epoch, sample)


def _walk(offsets: Ints, *, limits: Ints, keys: NDArray[np.uint64]) -> Ints:
    """Permute each offset within 0 <= offset < limit, by the permutation that its key selects."""
    # The number of bits comes from each offset's own limit. Bits of the largest limit would make a
    # permutation depend on which other positions are asked for in the same call.
    half_bits = np.maximum(1, (_bit_length(limits - 1) + 1) // 2).astype(np.uint64)
    values = offsets.astype(np.uint64)
    bounds = limits.astype(np.uint64)
    # The network permutes the numbers below 4 ** half_bits, which is at most four times the limit,
    # so a walk takes at most four steps on average. It always ends, because the cycle that it
    # follows comes back to the offset, which is below the limit.
    pending = np.ones(len(values), dtype=bool)
    while pending.any():
        values[pending] = _feistel(
            values[pending], keys=keys[pending], half_bits=half_bits[pending]
        )
        pending[pending] = values[pending] >= bounds[pending]
    return values.astype(np.int64)


def _bit_length(numbers: Ints) -> Ints:
    # frexp gives the exponent e of x = m * 2**e with 0.5 <= m < 1, which is the bit length. It is
    # exact for numbers below 2**53, and no array is that long.
    return np.frexp(numbers.astype(np.float64))[1].astype(np.int64)


def _feistel(
    values: NDArray[np.uint64], *, keys: NDArray[np.uint64], half_bits: NDArray[np.uint64]
) -> NDArray[np.uint64]:
    # Each round can be undone, since it changes one half by a function of the other; so the network
    # is a permutation whatever `_mix` is. The number of the round goes into the top byte, which no
    # half of a position reaches.
    mask = (np.uint64(1) << half_bits) - np.uint64(1)
    left, right = values >> half_bits, values & mask
    for number in range(NUM_ROUNDS):
        left, right = right, left ^ (_mix(right ^ keys ^ np.uint64(number << 56)) & mask)
    return (left << half_bits) | right


def _mix(values: NDArray[np.uint64] | np.uint64) -> NDArray[np.uint64]:
    """The finaliser of splitmix64 (Steele et al. 2014): every input bit affects all output bits."""
    mixed = np.atleast_1d(np.asarray(values, dtype=np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(mixed ^ (mixed >> np.uint64(31)))
