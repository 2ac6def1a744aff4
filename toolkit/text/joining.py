"""Several inputs as one sequence of rows, so that small files share parts and shards.

Knows which inputs go together, and how reading goes on from one to the next. Refuses to know what
becomes of a row (`sharding`).
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from toolkit.text.readers import Columns, Source
from toolkit.text.records import Damaged
from toolkit.text.shards import ShardRules
from toolkit.text.sources import Input, is_packed, open_source, stamp

LIKELY_RATIO = 4  # of compression: what gzip and its like make of prose
LEAST_SHARDS = 4  # of a group of one-row files: the last shard, which is seldom full, counts little


@dataclass(frozen=True)
class Row:
    """A raw row, and where it stands: `number` is that within its file, from 0."""

    raw: Any
    source: Source
    file: int
    number: int


@dataclass(frozen=True)
class Break:
    """A place where a file cannot be read on: before its row `number`."""

    file: int
    number: int
    why: str


def grouped(inputs: Sequence[Input], *, rules: ShardRules) -> tuple[int, ...]:
    """How many consecutive inputs are in each group, by their sizes and `rules` alone.

    A group holds at most what one shard may hold, unpacked, or it is one larger file; and of files
    that are tiny, at most a number that gives `LEAST_SHARDS` shards: whoever makes the last part of
    a group opens all of its files. A data set, whose size is not known, is a group of its own.
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
    """The rows of a group of inputs, by their numbers among all inputs. It goes on where it ended,
    so that files that cannot be sought in are read once, if ranges come in ascending order."""

    def __init__(
        self, inputs: Mapping[int, Input], *, columns: Columns, limit: int | None = None
    ) -> None:
        self._inputs, self._columns, self._limit = inputs, columns, limit
        self._items: Iterator[Row | Break] = iter(())
        self._next = -1
        self._only: Source | None = None  # of a group of one: opened once

    def take(self, start: int, stop: int) -> Iterator[Row | Break]:
        """Rows start .. stop - 1 of the sequence, fewer where it ends, and every break that comes
        after row start - 1 and before row `stop` - 1: each break is in one range."""
        seeks = self._only is not None and self._only.seeks
        if self._next < 0 or start < self._next or (start > self._next and seeks):
            self._items, self._next = self._read(start), start
        while self._next < stop:
            if (item := next(self._items, None)) is None:
                self._next = -1  # a break at the very end, passed over, may be asked for yet
                return
            wanted = self._next >= start
            self._next += isinstance(item, Row)
            if wanted:
                yield item

    def _read(self, start: int) -> Iterator[Row | Break]:
        """All from row `start` on. Only a group of one is sought in: the rows before a place in a
        damaged file can be counted by reading them alone, and everybody must count the same."""
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
