"""Samples for training, in a deterministic global order.

Knows shards and their order. Refuses to know ranks: it deals row ranges of a global batch.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from toolkit.files import BadInput
from toolkit.text.order import BlockShuffle
from toolkit.text.shards import ShardSet
from toolkit.text.token_shards import TokenSet

Content = TypeVar("Content", covariant=True)
Pieces = Sequence[NDArray[np.int64]]


@dataclasses.dataclass(frozen=True)
class Sample(Generic[Content]):
    """One training sample. (epoch, index) names it, whatever rank or restart reads it."""

    epoch: int
    index: int
    content: Content


class Source(Protocol[Content]):
    """Samples in their stored order, any of them at any time."""

    @property
    def num_samples(self) -> int:
        """How many samples there are."""

    def content(self, index: int) -> Content:
        """The sample at a place."""

    def name(self, index: int) -> str:
        """Where the sample stands in the shards, for people."""


class Samples(Protocol):
    """An endless sequence of samples, read by rows of global batches."""

    num_samples: int

    def batch(self, step: int, *, global_rows: int, start: int, stop: int) -> Sequence[Sample[Any]]:
        """Rows start..stop of the global batch of `step` (from 0)."""

    def name(self, index: int) -> str:
        """Where the sample of that index stands in the data, for people."""


class Sentences:
    """Every kept sentence of the shards."""

    def __init__(self, shards: ShardSet) -> None:
        self._shards = shards
        self._ends = np.cumsum(shards.num_sentences, dtype=np.int64)
        self.num_samples = int(self._ends[-1]) if len(self._ends) else 0

    def content(self, index: int) -> str:
        """The text of a sentence."""
        return self._shards.sentence(*self._place(index))

    def name(self, index: int) -> str:
        """The document's id and the sentence's number in it, from 0."""
        row, k = self._place(index)
        return f"document {self._shards.record(row)['id']}, sentence {k}"

    def _place(self, index: int) -> tuple[int, int]:
        row = int(np.searchsorted(self._ends, index, side="right"))
        return row, index - (int(self._ends[row - 1]) if row else 0)


class Blocks:
    """Packed blocks of tokens: several documents with their boundaries, or, when documents may
    cross blocks, one run of tokens (the reference's, see `TokenSet.crossing_block`)."""

    def __init__(self, tokens: TokenSet, *, crossing: bool) -> None:
        self._block = tokens.crossing_block if crossing else tokens.block
        self._rows = functools.partial(tokens.rows_of_block, crossing=crossing)
        self.num_samples = tokens.num_crossing_blocks if crossing else tokens.num_blocks

    def content(self, index: int) -> Pieces:
        """The pieces of a block: token ids, special tokens included. None is empty."""
        return self._block(index)

    def name(self, index: int) -> str:
        """The shard, and the rows of its documents that the block holds, from 0."""
        shard, rows = self._rows(index)
        return f"{shard}, rows {', '.join(map(str, rows))}"


class Stream(Generic[Content]):
    """The endless sequence of a source's samples, epoch after epoch, each in another order.

    The last `num_held_out` of the source are never in it. Raises `BadInput` when none is left.
    """

    def __init__(self, source: Source[Content], *, seed: int, num_held_out: int = 0) -> None:
        if source.num_samples == 0:
            raise BadInput("the shards hold no text to train on")
        if num_held_out >= source.num_samples:
            raise BadInput(
                f"{num_held_out} samples held out of {source.num_samples} leave none to train on"
            )
        self._source = source
        self.num_samples = source.num_samples - num_held_out
        self.num_held_out = num_held_out
        self._order = BlockShuffle(num_samples=self.num_samples, seed=seed)

    def batch(self, step: int, *, global_rows: int, start: int, stop: int) -> list[Sample[Content]]:
        """Rows start..stop of the global batch of `step` (from 0)."""
        positions = np.arange(start, stop, dtype=np.int64) + step * global_rows
        epochs, indices = self._order.at(positions)
        return [
            Sample(epoch=epoch, index=index, content=self._source.content(index))
            for epoch, index in zip(epochs.tolist(), indices.tolist(), strict=True)
        ]

    def held_out(self, start: int, stop: int) -> list[Sample[Content]]:
        """Samples start..stop of those that are held out, in their stored order."""
        return [
            Sample(epoch=0, index=index, content=self._source.content(index))
            for index in range(self.num_samples + start, self.num_samples + stop)
        ]

    def name(self, index: int) -> str:
        """Where the sample of that index stands in the data, for people."""
        return self._source.name(index)
