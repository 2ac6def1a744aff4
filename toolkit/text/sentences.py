"""Sentences of a text, and where they stand in it.

Knows sentence ends (through sentencex) and which sentences are worth keeping. Refuses to know
documents and files.
"""

import sentencex

MIN_CHARS = 20
MIN_WORDS = 4
# Written without spaces between words: the word count says nothing there.
UNSPACED_LANGUAGES = frozenset({"bo", "ja", "km", "lo", "my", "th", "wuu", "yue", "zh"})


def sentence_spans(
    text: str, *, language: str = "en", min_chars: int = MIN_CHARS, min_words: int = MIN_WORDS
) -> list[tuple[int, int]]:
    """Where the kept sentences stand: (start, end) in characters, in order, never overlapping.

    A line never continues a sentence of the line before. Sentences below `min_chars` characters
    or `min_words` words are dropped: headings, list fragments, abbreviations cut in two. For a
    language that sentencex does not know, its English rules are used.
    """
    if language.partition("-")[0] in UNSPACED_LANGUAGES:
        min_words = 1
    spans = []
    line_start = 0
    for line in text.split("\n"):
        for found in sentencex.get_sentence_boundaries(language, line):
            start, end = _trimmed(line, start=found["start_index"], end=found["end_index"])
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


def _trimmed(line: str, *, start: int, end: int) -> tuple[int, int]:
    sentence = line[start:end]
    start += len(sentence) - len(sentence.lstrip())
    return start, max(start, start + len(sentence.strip()))
