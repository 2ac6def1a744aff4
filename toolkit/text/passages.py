"""Long texts as passages of about equal size, which end where a paragraph or a sentence ends.

Knows texts. Refuses to know documents and tokens: sizes are in characters, which mean about the
same in every language that is written with spaces.

Shapes: P pieces of a text, in order and without gaps; S places between passages, those before the
first and after the last among them.
"""

import itertools
import re
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from toolkit.text.sentences import sentence_spans

NUM_STUBBORN = 256  # pieces of passages that were too long most recently, looked at first
NUM_WORST = 16  # of these, noted each time

Ints = NDArray[np.int64]


def passages(text: str, *, max_chars: int, language: str = "en") -> list[str]:
    """The text as the fewest passages of at most `max_chars` characters, of about equal size.

    A passage ends with a paragraph where one ends near by, else with a sentence, else between two
    words, else anywhere. Nothing but white space between passages is lost.
    """
    if not text:
        return []
    pieces = _Pieces.of(list(_pieces(text, max_chars=max_chars, language=language)))
    bounds_S = _even(pieces, max_chars=max_chars)
    if bounds_S is None:
        bounds_S = _filled(pieces, max_chars=max_chars)
    ends = pieces.bounds[bounds_S].tolist()
    made = [text[start:end].strip() for start, end in itertools.pairwise(ends)]
    return [passage for passage in made if passage]


@dataclass(frozen=True)
class _Pieces:
    """Where the pieces of a text are, in characters: `bounds` (P + 1,) before, between and after
    them; for each of these, `first` is the next character that is no white space, and `last` the
    place behind the last one before it."""

    bounds: Ints
    first: Ints
    last: Ints

    @classmethod
    def of(cls, pieces: Sequence[str]) -> "_Pieces":
        bounds = np.cumsum([0, *map(len, pieces)], dtype=np.int64)
        num_chars = bounds[-1]
        blank_P = np.array([piece.isspace() for piece in pieces], dtype=np.bool_)
        heads = np.array([len(piece) - len(piece.lstrip()) for piece in pieces], dtype=np.int64)
        tails = np.array([len(piece.rstrip()) for piece in pieces], dtype=np.int64)
        first_P = np.where(blank_P, num_chars, bounds[:-1] + heads)
        last_P = np.where(blank_P, 0, bounds[:-1] + tails)
        first = np.append(np.minimum.accumulate(first_P[::-1])[::-1], num_chars)
        last = np.concatenate([np.zeros(1, np.int64), np.maximum.accumulate(last_P)])
        return cls(bounds, first, last)

    def lengths(self, starts: Ints, stops: Ints) -> Ints:
        """The lengths of passages of the pieces from `starts` to `stops`, without white space at
        their ends."""
        lengths: Ints = np.maximum(self.last[stops] - self.first[starts], 0)
        return lengths


def _even(pieces: _Pieces, *, max_chars: int) -> Ints | None:
    """The bounds (S,) of the fewest passages that are short enough, each piece in the passage in
    which its middle lies when all are as long as each other; None if no number of them will do.

    Which number will do can only be tried. Most are given up at once: where a passage was too long,
    it mostly is with one more, too. From twice the least number on none is too long.
    """
    num_chars = int(pieces.bounds[-1])
    middles_P = pieces.bounds[:-1] + pieces.bounds[1:]  # twice of them, so that they are whole

    def begin(passage: Ints, *, number: int) -> Ints:
        """The first piece whose middle lies in this passage of so many, or after it."""
        return np.searchsorted(middles_P, -(-passage * (2 * num_chars) // number))

    stubborn: deque[int] = deque(maxlen=NUM_STUBBORN)
    for number in range(-(-num_chars // max_chars), len(middles_P) + 1):
        among = middles_P[list(stubborn)] * number // (2 * num_chars)
        starts, stops = begin(among, number=number), begin(among + 1, number=number)
        if (pieces.lengths(starts, stops) > max_chars).any():
            continue
        bounds_S = begin(np.arange(number + 1), number=number)
        lengths = pieces.lengths(bounds_S[:-1], bounds_S[1:])
        too_long = np.flatnonzero(lengths > max_chars)
        if not len(too_long):
            return bounds_S
        worst = too_long[np.argsort(lengths[too_long])[-NUM_WORST:]]
        stubborn.extend(((bounds_S[worst] + bounds_S[worst + 1]) // 2).tolist())
    return None


def _filled(pieces: _Pieces, *, max_chars: int) -> Ints:
    """The bounds (S,) of passages that are as full as they can be, one after another."""
    first, last = pieces.first.tolist(), pieces.last.tolist()
    bounds = [0]
    for piece in range(len(first) - 1):
        if last[piece + 1] - first[bounds[-1]] > max_chars:
            bounds.append(piece)
    return np.array([*bounds, len(first) - 1])


def _pieces(text: str, *, max_chars: int, language: str) -> Iterator[str]:
    """The text cut at the ends of its paragraphs, and paragraphs that are too long further."""
    for paragraph in re.findall(r"[^\n]*\n|[^\n]+", text):
        if len(paragraph) <= max_chars:
            yield paragraph
            continue
        spans = sentence_spans(paragraph, language=language, min_chars=0, min_words=0)
        starts = [0, *(start for start, _ in spans[1:]), len(paragraph)]
        for start, end in itertools.pairwise(starts):
            yield from _cut(paragraph[start:end], max_chars=max_chars)


def _cut(sentence: str, *, max_chars: int) -> Iterator[str]:
    start = 0
    while len(sentence) - start > max_chars:
        blank = sentence.rfind(" ", start, start + max_chars)
        end = blank + 1 if blank > start else start + max_chars
        yield sentence[start:end]
        start = end
    yield sentence[start:]
