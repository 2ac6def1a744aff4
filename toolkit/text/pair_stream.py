"""Training pairs in a deterministic global order, each global batch from one data set.

Knows the order. Refuses to know ranks: callers ask for ranges of rows of a global batch.
"""

import dataclasses
import functools

import numpy as np
from numpy.typing import NDArray

from toolkit.text.order import BlockShuffle, sample_at
from toolkit.text.pairs import Pair, PairSet, PairTask
from toolkit.text.stream import Sample

Ints = NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class TaskPair:
    """A pair with the task of its data set, which has the instructions."""

    pair: Pair
    task: PairTask


class PairStream:
    """The endless sequence of batches, in rounds. In each round every data set gets as many batches
    as its pairs fill, at least one; the order of the batches differs from round to round.

    The pairs of a data set follow its own shuffle, batch after batch, across rounds: every pair
    comes once before any comes again, for any batch size.
    """

    def __init__(self, pairs: PairSet, *, seed: int) -> None:
        self._pairs, self._seed = pairs, seed
        self.num_samples = int(pairs.num_rows.sum())
        self._first_row = np.cumsum([0, *pairs.num_rows[:-1]], dtype=np.int64)
        self._orders = [
            BlockShuffle(num_samples=int(rows), seed=seed + number)
            for number, rows in enumerate(pairs.num_rows)
        ]

    def batch(
        self, step: int, *, global_rows: int, start: int, stop: int
    ) -> list[Sample[TaskPair]]:
        """Rows `start` to `stop` (exclusive) of the global batch of `step` (from 0)."""
        number, turn = self.turn(step, global_rows=global_rows)
        positions = np.arange(start, stop, dtype=np.int64) + turn * global_rows
        epochs, rows = self._orders[number].at(positions)
        first, task = int(self._first_row[number]), self._pairs.tasks[number]
        return [
            Sample(
                epoch=epoch,
                index=first + row,
                content=TaskPair(self._pairs.pair(number, row), task),
            )
            for epoch, row in zip(epochs.tolist(), rows.tolist(), strict=True)
        ]

    def name(self, index: int) -> str:
        """The data set of a pair and the pair's number in it, from 0, for people."""
        number = int(np.searchsorted(self._first_row, index, side="right")) - 1
        return f"{self._pairs.tasks[number].name}, pair {index - self._first_row[number]}"

    def turn(self, step: int, *, global_rows: int) -> tuple[int, int]:
        """The data set of a step, and how many batches that data set has had before."""
        counts = np.maximum(1, self._pairs.num_rows // global_rows)
        done, place = divmod(step, int(counts.sum()))
        number_B, before_B = self._round(done, tuple(counts.tolist()))
        number = int(number_B[place])
        return number, done * int(counts[number]) + int(before_B[place])

    @functools.lru_cache(maxsize=4)  # noqa: B019 (a run has one, as long as it runs)
    def _round(self, done: int, counts: tuple[int, ...]) -> tuple[Ints, Ints]:
        """For each batch of round `done`: its data set, and how many batches of the same data set
        precede it in this round."""
        whole = np.repeat(np.arange(len(counts), dtype=np.int64), counts)
        places = np.arange(len(whole), dtype=np.int64) + done * len(whole)
        number_B = whole[sample_at(places, num_samples=len(whole), seed=self._seed)]
        before_B = np.zeros_like(number_B)
        for number in range(len(counts)):
            here = number_B == number
            before_B[here] = np.arange(int(here.sum()))
        return number_B, before_B
