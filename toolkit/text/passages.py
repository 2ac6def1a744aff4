"""Long texts as passages of about equal size, which end where a paragraph or a sentence ends.

Knows texts. Refuses to know documents and tokens: sizes are in characters, which mean about the
same in every language that is written with spaces.
"""

import itertools
import re
from collections.abc import Iterator, Sequence

from toolkit.text.sentences import sentence_spans


def passages(text: str, *, max_chars: int, language: str = "en") -> list[str]:
    """The text as the fewest passages of at most `max_chars` characters, of about equal size.

    A passage ends with a paragraph where one ends near by, else with a sentence, else between two
    words, else anywhere. Nothing but white space between passages is lost.
    """
    pieces = list(_pieces(text, max_chars=max_chars, language=language))
    num_chars = sum(len(piece) for piece in pieces)
    for number in range(-(-num_chars // max_chars), len(pieces) + 1):
        made = [passage.strip() for passage in _dealt(pieces, number=number)]
        if all(len(passage) <= max_chars for passage in made):
            return [passage for passage in made if passage]
    return [passage for passage in _filled(pieces, max_chars=max_chars) if passage]


def _dealt(pieces: Sequence[str], *, number: int) -> list[str]:
    """The pieces joined to `number` passages, each piece to the one in which its middle lies when
    all are as long as each other."""
    num_chars = sum(len(piece) for piece in pieces)
    made = [""] * number
    begun = 0
    for piece in pieces:
        made[(2 * begun + len(piece)) * number // (2 * num_chars)] += piece
        begun += len(piece)
    return made


def _filled(pieces: Sequence[str], *, max_chars: int) -> list[str]:
    """The pieces joined to passages that are as full as they can be, one after another."""
    made = [""]
    for piece in pieces:
        joined = made[-1] + piece
        if len(joined.strip()) <= max_chars:
            made[-1] = joined
        else:
            made.append(piece)
    return [passage.strip() for passage in made]


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
    while len(sentence) > max_chars:
        blank = sentence.rfind(" ", 0, max_chars)
        end = blank + 1 if blank > 0 else max_chars
        yield sentence[:end]
        sentence = sentence[end:]
    yield sentence
