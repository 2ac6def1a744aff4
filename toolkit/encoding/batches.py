"""Rows of token ids as batches, each for one forward pass.

Knows how much a pass may hold, and which tokens make which vector. Refuses to know texts and the
model.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from toolkit.batching.batch import PackedRows, Rows, Slices, lay_out
from toolkit.encoding.late_chunks import Window
from toolkit.text.tokens import Ids, TextTokenizer


@dataclasses.dataclass(frozen=True)
class PreparedBatch:
    """The rows of one forward pass, the numbers of their vectors among all vectors, and their
    number of tokens. With `slices` a vector is not that of a row, but of some tokens of one."""

    numbers: Sequence[int]
    rows: Rows
    num_tokens: int
    slices: Slices | None = None


@dataclasses.dataclass(frozen=True)
class Prepared:
    """Texts as batches: only the model is still to be run. `num_rows` is the number of vectors."""

    batches: Sequence[PreparedBatch]
    num_rows: int

    @property
    def num_tokens(self) -> int:
        """The tokens of all rows, including those that begin and end a text."""
        return sum(batch.num_tokens for batch in self.batches)


@dataclasses.dataclass(frozen=True)
class Batching:
    """How rows become batches: packed or padded, and of how many tokens."""

    tokenizer: TextTokenizer
    packed: bool
    batch_tokens: int

    def of_rows(
        self,
        rows: Sequence[Ids],
        *,
        owns: Sequence[NDArray[np.bool_]] | None = None,
        max_rows: int | None = None,
    ) -> Prepared:
        """A vector for each row, in batches of at most `max_rows` rows. `owns` marks the tokens
        that are pooled; None: all but special ones."""
        batches = list(self._laid(rows, owns=owns, max_rows=max_rows))
        return Prepared(batches, num_rows=len(rows))

    def of_windows(self, windows: Sequence[Window]) -> Prepared:
        """A vector for each chunk of the windows."""
        batches = []
        for batch in self._laid([window.ids for window in windows]):
            some = [windows[number] for number in batch.numbers]
            chunks = [chunk for window in some for chunk, _ in window.chunks]
            slices = _slices(some, batch.rows)
            batches.append(dataclasses.replace(batch, numbers=chunks, slices=slices))
        return Prepared(batches, num_rows=sum(len(window.chunks) for window in windows))

    def _laid(
        self,
        rows: Sequence[Ids],
        *,
        owns: Sequence[NDArray[np.bool_]] | None = None,
        max_rows: int | None = None,
    ) -> Iterator[PreparedBatch]:
        # Sorted by length, so that the rows of a batch need little padding.
        order = sorted(range(len(rows)), key=lambda number: (-len(rows[number]), number))
        for numbers in token_batches(
            order, rows=rows, batch_tokens=self.batch_tokens, max_rows=max_rows
        ):
            some = [rows[number] for number in numbers]
            marks = [owns[number] for number in numbers] if owns else None
            laid = lay_out(some, tokenizer=self.tokenizer, packed=self.packed, owns=marks)
            yield PreparedBatch(numbers, laid, num_tokens=sum(map(len, some)))


def _slices(windows: Sequence[Window], laid: Rows) -> Slices:
    """The tokens of the chunks of windows that are laid out."""
    none = np.zeros(0, dtype=np.int64)
    cells, vectors = [none], [none]
    for row, window in enumerate(windows):
        begin = laid.bounds[row] if isinstance(laid, PackedRows) else row * laid.ids_BT.shape[1]
        for _, places_G in window.chunks:
            vectors.append(np.full(len(places_G), len(vectors) - 1))
            cells.append(begin + places_G)
    return Slices(
        cell_G=torch.from_numpy(np.concatenate(cells)),
        vector_G=torch.from_numpy(np.concatenate(vectors)),
        num_vectors=len(vectors) - 1,
    )


def token_batches(
    order: Sequence[int],
    *,
    rows: Sequence[NDArray[np.int64]],
    batch_tokens: int,
    max_rows: int | None = None,
) -> list[list[int]]:
    """Cut `order` (longest first) into batches of at most `batch_tokens` cells and `max_rows` rows,
    each of at least one row."""
    batches: list[list[int]] = []
    for number in order:
        longest = len(rows[batches[-1][0]]) if batches else 0
        fits = bool(batches) and (len(batches[-1]) + 1) * max(longest, 1) <= batch_tokens
        if fits and (max_rows is None or len(batches[-1]) < max_rows):
            batches[-1].append(number)
        else:
            batches.append([number])
    return batches
