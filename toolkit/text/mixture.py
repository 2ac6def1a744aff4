"""Several streams of samples as one, each with its share of the rows.

Knows shares and counts. Refuses to know ranks, and what a sample is.
"""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Generic, TypeVar

from toolkit.text.stream import Sample, Stream

Content = TypeVar("Content", covariant=True)


class Mixture(Generic[Content]):
    """The endless sequence of samples of several streams, by name, in a fixed order.

    Which stream gives a row is a function of the row's number alone, without chance: so many rows
    of each as are nearest to its share (see `counts`). A stream gives its samples in the order in
    which it gives them alone. Indices are those of the streams one after another: first of all
    samples that are trained on, then of those held out.
    """

    def __init__(self, streams: Mapping[str, Stream[Content]], *, shares: Sequence[float]) -> None:
        self._names, self._streams = list(streams), list(streams.values())
        # As they are written: of 0.7, seven in ten, and not the nearest binary number.
        exact = [Fraction(str(share)) for share in shares]
        common = math.lcm(*(share.denominator for share in exact))
        self._parts = [int(share * common) for share in exact]
        self.sizes = dict(zip(streams, (one.num_samples for one in self._streams), strict=True))
        sizes = [*self.sizes.values(), *(one.num_held_out for one in self._streams)]
        self._firsts = list(itertools.accumulate(sizes, initial=0))
        self.num_samples = self._firsts[len(self._streams)]

    def counts(self, num_rows: int) -> list[int]:
        """How many of the first `num_rows` rows each stream gives.

        Each stream in turn takes its share of the rows that those before it have left, rounded to
        the nearest (for two streams the line of Bresenham 1965). With one more row one stream has
        one more. The error of n streams is at most half a row for each but one of them.
        """
        counts, left, parts = [], num_rows, sum(self._parts)
        for part in self._parts:
            counts.append((2 * left * part + parts) // (2 * parts))
            left, parts = left - counts[-1], parts - part
        return counts

    def epochs(self, num_rows: int) -> dict[str, float]:
        """How often each stream's samples have been given in the first `num_rows` rows."""
        counts = self.counts(num_rows)
        return {
            name: count / size
            for (name, size), count in zip(self.sizes.items(), counts, strict=True)
        }

    def batch(self, step: int, *, global_rows: int, start: int, stop: int) -> list[Sample[Content]]:
        """Rows `start` to `stop` (exclusive) of the global batch of `step` (from 0)."""
        rows = range(step * global_rows + start, step * global_rows + stop + 1)
        counts = [self.counts(row) for row in rows]
        # The rows of one stream in a range are neighbours in that stream.
        given = [
            iter(stream.batch(0, global_rows=0, start=first, stop=last))
            for stream, first, last in zip(self._streams, counts[0], counts[-1], strict=True)
        ]
        samples = []
        for before, after in itertools.pairwise(counts):
            (number,) = (n for n, count in enumerate(before) if after[n] > count)
            samples.append(_moved(next(given[number]), by=self._firsts[number]))
        return samples

    @property
    def num_held_out(self) -> int:
        """The number of samples that are held out."""
        return self._firsts[-1] - self.num_samples

    def held_out(self, start: int, stop: int) -> list[Sample[Content]]:
        """Held-out samples `start` to `stop` (exclusive), stream after stream."""
        samples = []
        for stream, first in zip(self._streams, self._firsts[len(self._streams) :], strict=False):
            before = first - self.num_samples
            inside = stream.held_out(
                max(start - before, 0), min(stop - before, stream.num_held_out)
            )
            samples += [_moved(one, by=first - stream.num_samples) for one in inside]
        return samples

    def name(self, index: int) -> str:
        """Where in the data the sample at `index` is, for people."""
        place = next(n for n, end in enumerate(self._firsts[1:]) if index < end)
        number = place % len(self._streams)
        stream, inside = self._streams[number], index - self._firsts[place]
        if index >= self.num_samples:
            inside += stream.num_samples
        return f"{self._names[number]}: {stream.name(inside)}"


def _moved(sample: Sample[Content], *, by: int) -> Sample[Content]:
    return dataclasses.replace(sample, index=sample.index + by)
