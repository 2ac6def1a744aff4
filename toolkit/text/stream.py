"""Samples for training, in a deterministic global order.

Knows shards and their order. Refuses to know ranks: callers ask for ranges of rows of a global
batch.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from toolkit.base.errors import BadInput
from toolkit.text.held_out import HeldOut
from toolkit.text.order import BlockShuffle
from toolkit.text.packing import Packing, pack_documents
from toolkit.text.shards import ShardSet
from toolkit.text.token_shards import TokenSet

Content = TypeVar("Content", covariant=True)
Pieces = Sequence[NDArray[np.int64]]


@dataclasses.dataclass(frozen=True)
class Sample(Generic[Content]):
    """One training sample. (epoch, index) identifies it on every rank and after every restart."""

    epoch: int
    index: int
    content: Content


class Source(Protocol[Content]):
    """Samples in their stored order; any of them can be read at any time."""

    @property
    def num_samples(self) -> int:
        """The number of samples in one epoch."""

    def content(self, index: int) -> Content:
        """The sample at `index` in the stored order."""

    def name(self, index: int) -> str:
        """Where in the shards the sample at `index` is, for people."""


class Samples(Protocol):
    """An endless sequence of samples, read as rows of global batches."""

    num_samples: int

    def batch(self, step: int, *, global_rows: int, start: int, stop: int) -> Sequence[Sample[Any]]:
        """Rows `start` to `stop` (exclusive) of the global batch of `step` (from 0)."""

    def name(self, index: int) -> str:
        """Where in the data the sample at `index` is, for people."""


class Sentences:
    """Every kept sentence of the shards, except those of documents that are held out."""

    def __init__(self, shards: ShardSet, *, held_out: HeldOut | None = None) -> None:
        self._shards = shards
        counts = np.array(shards.num_sentences)
        if held_out:  # without sentences no position of `_ends` leads to these documents
            counts[held_out.rows(len(counts))] = 0
        self._ends = np.cumsum(counts, dtype=np.int64)
        self.num_samples = int(self._ends[-1]) if len(self._ends) else 0

    def content(self, index: int) -> str:
        """The text of the sentence at `index`."""
        return self._shards.sentence(*self._place(index))

    def name(self, index: int) -> str:
        """The id of its document and its number there, from 0, for people."""
        row, k = self._place(index)
        return f"document {self._shards.record(row)['id']}, sentence {k}"

    def _place(self, index: int) -> tuple[int, int]:
        row = int(np.searchsorted(self._ends, index, side="right"))
        return row, index - (int(self._ends[row - 1]) if row else 0)


class Blocks:
    """Packed blocks of tokens. A block holds several documents with their boundaries or, if
    `crossing`, one run of tokens without boundaries (as the reference has it, see
    `TokenSet.crossing_block`)."""

    def __init__(self, tokens: TokenSet, *, crossing: bool) -> None:
        self._block = tokens.crossing_block if crossing else tokens.block
        self._rows = functools.partial(tokens.rows_of_block, crossing=crossing)
        self.num_samples = tokens.num_crossing_blocks if crossing else tokens.num_blocks

    def content(self, index: int) -> Pieces:
        """The token ids of each piece of a block, special tokens included. No piece is empty."""
        return self._block(index)

    def name(self, index: int) -> str:
        """The shard, and the rows (from 0) of its documents that are in the block, for people."""
        shard, rows = self._rows(index)
        return f"{shard}, rows {', '.join(map(str, rows))}"


class HeldOutBlocks:
    """The documents that are held out, packed among themselves like those that are trained on.

    All of them are read when the first block is asked for.
    """

    def __init__(self, tokens: TokenSet, *, crossing: bool) -> None:
        self._tokens, self._crossing = tokens, crossing

    @property
    def num_samples(self) -> int:
        """The number of blocks of documents that are held out."""
        return len(self._packing.block_offsets) - 1

    def content(self, index: int) -> Pieces:
        """The token ids of each piece of a block, special tokens included. No piece is empty."""
        spans = self._spans(index)
        pieces = [self._ids[start : start + length] for start, length in spans]
        return pieces if self._crossing else [self._tokens.wrapped(piece) for piece in pieces]

    def name(self, index: int) -> str:
        """The shards and rows (from 0) of the documents that are in the block, for people."""
        documents = []
        for start, length in self._spans(index):
            first, last = np.searchsorted(self._offsets, [start, start + length - 1], "right") - 1
            documents += self._documents[first : last + 1]
        return "; ".join(f"{self._tokens.shard_name(shard)}, row {row}" for shard, row in documents)

    def _spans(self, index: int) -> Iterator[tuple[int, int]]:
        pieces = slice(*self._packing.block_offsets[index : index + 2].tolist())
        starts, lengths = self._packing.starts[pieces], self._packing.lengths[pieces]
        return zip(starts.tolist(), lengths.tolist(), strict=True)

    @functools.cached_property
    def _documents(self) -> list[tuple[int, int]]:
        tokens = self._tokens
        return [place for place in tokens.held_out() if len(tokens.document(*place))]

    @functools.cached_property
    def _rows(self) -> list[NDArray[np.int64]]:
        if not self._documents:
            raise BadInput("the documents that are held out hold no text: hold out more of them")
        bare = (self._tokens.document(*place) for place in self._documents)
        # A crossing block is cut from one run that holds the special tokens already; a piece of a
        # packed block gets its own (`content`), even if it is the middle of a document.
        if self._crossing:
            return [self._tokens.wrapped(ids) for ids in bare]
        return [ids.astype(np.int64) for ids in bare]

    @functools.cached_property
    def _ids(self) -> NDArray[np.int64]:
        return np.concatenate(self._rows)

    @functools.cached_property
    def _offsets(self) -> NDArray[np.int64]:
        return np.cumsum([0, *map(len, self._rows)], dtype=np.int64)

    @functools.cached_property
    def _packing(self) -> Packing:
        room = self._tokens.block_tokens
        if self._crossing:
            starts = np.arange(0, len(self._ids), room, dtype=np.int64)
            lengths = np.minimum(room, len(self._ids) - starts)
            return Packing(starts, lengths, block_offsets=np.arange(len(starts) + 1))
        cuts = [self._tokens.cuts(*place) for place in self._documents]
        return pack_documents(self._offsets, cuts=cuts, room=room, wrap=self._tokens.wrap)


class Stream(Generic[Content]):
    """The endless sequence of a source's samples: epoch after epoch, each in a different order.

    `held_out` is a source of samples that are not trained on. Raises `BadInput` when there is
    nothing to train on.
    """

    def __init__(
        self, source: Source[Content], *, seed: int, held_out: Source[Content] | None = None
    ) -> None:
        if source.num_samples == 0:
            raise BadInput("the shards hold no text to train on")
        self._source, self._held_out = source, held_out
        self.num_samples = source.num_samples
        self._order = BlockShuffle(num_samples=self.num_samples, seed=seed)

    def batch(self, step: int, *, global_rows: int, start: int, stop: int) -> list[Sample[Content]]:
        """Rows `start` to `stop` (exclusive) of the global batch of `step` (from 0)."""
        # Positions follow from the step alone: ranks ask for disjoint ranges, and a restart or
        # another number of ranks continues at the same sample.
        positions = np.arange(start, stop, dtype=np.int64) + step * global_rows
        epochs, indices = self._order.at(positions)
        return [
            Sample(epoch=epoch, index=index, content=self._source.content(index))
            for epoch, index in zip(epochs.tolist(), indices.tolist(), strict=True)
        ]

    @property
    def num_held_out(self) -> int:
        """The number of samples that are held out."""
        return self._held_out.num_samples if self._held_out else 0

    def held_out(self, start: int, stop: int) -> list[Sample[Content]]:
        """Held-out samples `start` to `stop` (exclusive). Their indices follow those of all other
        samples, so that no two samples share an index."""
        if self._held_out is None:
            return []
        return [
            Sample(epoch=0, index=self.num_samples + number, content=self._held_out.content(number))
            for number in range(start, stop)
        ]

    def name(self, index: int) -> str:
        """Where in the data the sample at `index` is, for people."""
        if self._held_out and index >= self.num_samples:
            return self._held_out.name(index - self.num_samples)
        return self._source.name(index)
