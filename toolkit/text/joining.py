"""Several inputs as one sequence of rows, so that small files share parts and shards.

Knows which inputs go together, and how reading continues from one to the next. Refuses to know what
a row is used for (`sharding`).
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from toolkit.text.readers import Columns, Source
from toolkit.text.records import Damaged
from toolkit.text.shards import ShardRules
from toolkit.text.sources import Input, is_packed, open_source, stamp

LIKELY_RATIO = 4  # how much smaller gzip and similar formats make prose
# A group of one-row files is large enough for this many shards, so that the last one, which is
# seldom full, matters little.
LEAST_SHARDS = 4


@dataclass(frozen=True)
class Row:
    """A raw row with its file; `number` counts the rows of that file, from 0."""

    raw: Any
    source: Source
    file: int
    number: int


@dataclass(frozen=True)
class Break:
    """The place from which a file cannot be read: before its row `number`, because of `why`."""

    file: int
    number: int
    why: str


def grouped(inputs: Sequence[Input], *, rules: ShardRules) -> tuple[int, ...]:
    """How many consecutive inputs each group has; it depends on their sizes and `rules` only.

    A group is one large file, or it holds at most as many decompressed bytes as one shard may. Tiny
    files are grouped only up to the number that fills `LEAST_SHARDS` shards, because the worker
    that makes the last part of a group must open all of its files. A data set, whose size is
    unknown, is a group of its own.
    """
    least = rules.bytes_per_shard // (LEAST_SHARDS * rules.rows_per_shard)
    counts: list[int] = []
    room = 0
    for given in inputs:
        if not given.is_file:
            counts.append(1)
            room = 0
            continue
        size = max(least, stamp(given)[0] * (LIKELY_RATIO if is_packed(given) else 1))
        if size <= room:
            counts[-1] += 1
        else:
            counts.append(1)
            room = rules.bytes_per_shard
        room -= size
    return tuple(counts)


class JoinedRows:
    """The rows of a group of inputs, as one sequence. `take` continues where the last call ended,
    so that a file without random access is read only once if the ranges ascend."""

    def __init__(
        self, inputs: Mapping[int, Input], *, columns: Columns, limit: int | None = None
    ) -> None:
        self._inputs, self._columns, self._limit = inputs, columns, limit
        self._items: Iterator[Row | Break] = iter(())
        self._next = -1
        self._only: Source | None = None  # the source of a group of one input, opened once

    def take(self, start: int, stop: int) -> Iterator[Row | Break]:
        """Rows start .. stop - 1 of the sequence, fewer if it ends, and every break that comes
        after row start - 1 and before row stop - 1, so that each break is in exactly one range."""
        seeks = self._only is not None and self._only.seeks
        if self._next < 0 or start < self._next or (start > self._next and seeks):
            self._items, self._next = self._read(start), start
        while self._next < stop:
            if (item := next(self._items, None)) is None:
                # Start anew next time: a later range may ask for a break at the very end.
                self._next = -1
                return
            wanted = self._next >= start
            self._next += isinstance(item, Row)
            if wanted:
                yield item

    def _read(self, start: int) -> Iterator[Row | Break]:
        """All rows and breaks from row `start` on. Only a group of one input starts there directly:
        how many rows a damaged file gives is known only after reading it, and all workers must
        count the same."""
        skipped = start
        for file, given in self._inputs.items():
            number = 0
            try:
                source = self._only or open_source(given, columns=self._columns)
                if len(self._inputs) == 1:
                    self._only = source
                    number, skipped = start, 0
                stop = None if self._limit is None else max(0, self._limit - number)
                for raw in itertools.islice(source.rows(number), stop):
                    if skipped:
                        skipped -= 1
                    else:
                        yield Row(raw, source, file, number)
                    number += 1
            except Damaged as error:
                if not skipped:
                    yield Break(file, number, str(error))
