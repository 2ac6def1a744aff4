"""Finds the sentences of a text and their positions.

Knows sentence ends (through sentencex) and which sentences are worth keeping. Refuses to know
documents and files.
"""

import re
from collections.abc import Iterator

import sentencex

MIN_CHARS = 20
MIN_WORDS = 4
# Longer lines are searched in pieces: sentencex scans from each opening quote to the end of what it
# gets, which takes quadratic time.
MAX_LINE_CHARS = 10_000
# White space of several bytes before a full stop ends sentencex 1.0 with a panic of Rust, no
# `Exception`; as a blank it means the same to it.
_WIDE_SPACE = re.compile(r"[^\S\x00-\x7f](?=\.)")
# Written without spaces between words, so that the number of words means nothing.
UNSPACED_LANGUAGES = frozenset({"bo", "ja", "km", "lo", "my", "th", "wuu", "yue", "zh"})


def sentence_spans(
    text: str, *, language: str = "en", min_chars: int = MIN_CHARS, min_words: int = MIN_WORDS
) -> list[tuple[int, int]]:
    """(start, end) in characters of each sentence that is kept, in order and without overlaps.

    A line never continues a sentence of the line before. Sentences with fewer than `min_chars`
    characters or `min_words` words are dropped: they are headings, list fragments, abbreviations
    cut in two. For a language that sentencex does not know, its English rules are used.
    """
    if language.partition("-")[0] in UNSPACED_LANGUAGES:
        min_words = 1
    spans = []
    line_start = 0
    for line in text.split("\n"):
        for first, last in _boundaries(line, language=language):
            start, end = _trimmed(line, start=first, end=last)
            long_enough = end - start >= max(min_chars, 1)
            if long_enough and len(line[start:end].split()) >= min_words:
                spans.append((line_start + start, line_start + end))
        line_start += len(line) + 1
    return spans


def split_sentences(
    text: str, *, language: str = "en", min_chars: int = MIN_CHARS, min_words: int = MIN_WORDS
) -> list[str]:
    """The kept sentences of a text, as `sentence_spans` finds them."""
    spans = sentence_spans(text, language=language, min_chars=min_chars, min_words=min_words)
    return [text[start:end] for start, end in spans]


def _boundaries(line: str, *, language: str) -> Iterator[tuple[int, int]]:
    """(start, end) of all sentences of a line. A long line is searched in pieces: the next piece
    begins with the last sentence of a piece, and a sentence that fills a whole piece is cut."""
    start = 0
    while start < len(line):
        piece = line[start : start + MAX_LINE_CHARS]
        is_last = start + len(piece) == len(line)
        if not is_last and (blank := piece.rfind(" ")) > 0:
            piece = piece[: blank + 1]
        spans = [
            (start + boundary["start_index"], start + boundary["end_index"])
            for boundary in sentencex.get_sentence_boundaries(language, _WIDE_SPACE.sub(" ", piece))
        ]
        kept = spans if is_last or len(spans) < 2 else spans[:-1]
        yield from kept
        start = start + len(piece) if kept is spans else spans[-1][0]


def _trimmed(line: str, *, start: int, end: int) -> tuple[int, int]:
    sentence = line[start:end]
    start += len(sentence) - len(sentence.lstrip())
    return start, max(start, start + len(sentence.strip()))
