"""Mixtures of streams against a naive walk over all rows, and whoever reads them."""

import dataclasses
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toolkit.text.mixture import Mixture
from toolkit.text.stream import Sample, Stream

WEIGHTS = st.lists(st.integers(1, 40), min_size=1, max_size=5)


@dataclasses.dataclass(frozen=True)
class Numbers:
    """Samples that tell their source and their number."""

    source: str
    num_samples: int

    def content(self, index: int) -> str:
        assert 0 <= index < self.num_samples
        return f"{self.source}{index}"

    def name(self, index: int) -> str:
        return f"number {index}"


def mixture(
    sizes: list[int], *, shares: list[float], seed: int = 3, held_out: list[int] | None = None
) -> Mixture[str]:
    streams = {
        name: Stream(
            Numbers(name, size),
            seed=seed + n,
            held_out=Numbers(name.upper(), kept) if kept else None,
        )
        for n, (name, size, kept) in enumerate(
            zip("abcde", sizes, held_out or [0] * len(sizes), strict=False)
        )
    }
    return Mixture(streams, shares=shares)


def naive_turns(shares: list[Fraction], *, num_rows: int) -> list[int]:
    """The source of each row, row by row: the first source takes the row as soon as that brings its
    count nearer to its share of all rows; the others do the same with the rows that it leaves."""
    if len(shares) == 1:
        return [0] * num_rows
    mine, turns, taken = shares[0] / sum(shares), [], 0
    for row in range(1, num_rows + 1):
        # It is the nearer for the count that is larger by one; a tie goes to it.
        takes = abs(mine * row - (taken + 1)) <= abs(mine * row - taken)
        taken += takes
        turns.append(0 if takes else -1)
    others = iter(naive_turns(shares[1:], num_rows=num_rows - taken))
    return [turn if turn == 0 else next(others) + 1 for turn in turns]


@settings(max_examples=100, deadline=None)
@given(WEIGHTS, st.data())
def test_rows_are_those_of_the_naive_walk(weights: list[int], data: st.DataObject) -> None:
    """Also their order within a source, which is that of the source alone, epoch after epoch."""
    sizes = data.draw(st.lists(st.integers(1, 9), min_size=len(weights), max_size=len(weights)))
    num_rows, seed = 60, data.draw(st.integers(0, 2**31))
    shares = [weight / sum(weights) for weight in weights]
    mixed = mixture(sizes, shares=shares, seed=seed)
    found = mixed.batch(0, global_rows=num_rows, start=0, stop=num_rows)
    # Shares are decimals, as they are written.
    turns = naive_turns([Fraction(str(share)) for share in shares], num_rows=num_rows)
    alone = [Stream(Numbers("abcde"[n], size), seed=seed + n) for n, size in enumerate(sizes)]
    given = [0] * len(sizes)
    for sample, number in zip(found, turns, strict=True):
        place = given[number]
        (expected,) = alone[number].batch(place, global_rows=1, start=0, stop=1)
        assert sample.content == expected.content
        assert (sample.epoch, sample.index) == (
            place // sizes[number],
            sum(sizes[:number]) + expected.index,
        )
        given[number] += 1
    assert mixed.counts(num_rows) == given
    names = "abcde"[: len(sizes)]
    assert mixed.epochs(num_rows) == {
        name: pytest.approx(count / size)
        for name, count, size in zip(names, given, sizes, strict=True)
    }


@settings(max_examples=100, deadline=None)
@given(WEIGHTS, st.integers(0, 10**15))
def test_counts_are_exact_at_any_distance(weights: list[int], rows: int) -> None:
    shares = [weight / sum(weights) for weight in weights]
    mixed = mixture([5] * len(shares), shares=shares)
    before, after = mixed.counts(rows), mixed.counts(rows + 1)
    assert sum(before) == rows
    assert sorted(b - a for a, b in zip(before, after, strict=True)) == [0] * (len(shares) - 1) + [
        1
    ]
    exact = [Fraction(str(share)) for share in shares]
    for count, share in zip(before, exact, strict=True):
        assert abs(count - rows * share / sum(exact)) <= Fraction(len(shares) - 1, 2)
    if len(shares) == 2:  # in any window the shares are exact, to a row
        window = [b - a for a, b in zip(before, mixed.counts(rows + 1000), strict=True)]
        assert abs(window[0] - 1000 * exact[0] / sum(exact)) <= 1


@settings(max_examples=50, deadline=None)
@given(WEIGHTS, st.data())
def test_one_sequence_for_any_world_size_and_restart(
    weights: list[int], data: st.DataObject
) -> None:
    sizes = data.draw(st.lists(st.integers(1, 9), min_size=len(weights), max_size=len(weights)))
    rows = data.draw(st.sampled_from([4, 12]))
    before, after = (data.draw(st.sampled_from([1, 2, 4])) for _ in range(2))
    restart = data.draw(st.integers(0, 5))
    shares = [weight / sum(weights) for weight in weights]
    found: list[Sample[str]] = []
    for step in range(5):
        reader = mixture(sizes, shares=shares)  # nothing is kept from step to step
        local = rows // (after if step >= restart else before)
        for start in range(0, rows, local):
            found += reader.batch(step, global_rows=rows, start=start, stop=start + local)
    whole = mixture(sizes, shares=shares)
    assert found == whole.batch(0, global_rows=5 * rows, start=0, stop=5 * rows)


def test_a_mixture_of_one_source_is_that_source() -> None:
    alone: Any = Stream(Numbers("a", 7), seed=3)
    mixed = mixture([7], shares=[1.0])
    for step in (0, 5, 10**12):
        batches = [s.batch(step, global_rows=8, start=2, stop=6) for s in (alone, mixed)]
        assert batches[0] == batches[1]


def test_every_sample_has_a_name_and_an_index_of_its_own() -> None:
    """Those held out as well: they stand behind all others, whichever of them are asked for."""
    mixed = mixture([5, 3, 4], shares=[0.2, 0.5, 0.3], held_out=[2, 0, 3])
    epoch = mixed.batch(0, global_rows=100, start=0, stop=100)
    whole = mixed.held_out(0, mixed.num_held_out)
    assert [one.content for one in whole] == ["A0", "A1", "C0", "C1", "C2"]
    assert [mixed.held_out(n, n + 1)[0] for n in range(5)] == whole
    assert mixed.held_out(1, 4) == whole[1:4]
    names = {one.index: one.content for one in (*epoch, *whole)}
    assert sorted(names) == list(range(5 + 3 + 4 + 5)) and mixed.num_samples == 12
    for index, content in names.items():
        source, number = content[0], content[1:]
        assert mixed.name(index) == f"{source.lower()}: number {number}"
