"""Which documents are worth training on: rules with names, each of which can leave a document out.

Knows texts. The rules of `quality` are those of Gopher (Rae et al. 2021, arXiv 2112.11446, appendix
A.1.1), which most open corpora use; they are made for prose in languages with spaces.
"""

import re
from collections import Counter
from dataclasses import dataclass

# Enough to recognise a language, so that the time does not grow with the document.
LANGUAGE_CHARS = 2000
# In log-probability. Of 1,270 English questions none came nearer to another language by more than 5
# than to English; ten short ones in German, French, Spanish, Dutch and Italian did by 34 to 122.
CLEARLY = 10.0
# A longer word is none: it is base64, minified code, or a text whose spaces were lost.
MAX_WORD_CHARS = 4096
STOP_WORDS = frozenset({"the", "be", "to", "of", "and", "that", "have", "with"})
# Scripts without spaces between words: Thai to Myanmar, Khmer, kana, CJK ideographs.
_UNSPACED = re.compile(
    "[\u0e00-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\U00020000-\U0003ffff]"
)


@dataclass(frozen=True)
class Filters:
    """What a document must be to stay. Lengths are in characters; no `languages`: any language."""

    min_chars: int = 0
    max_chars: int | None = None
    languages: tuple[str, ...] = ()
    quality: bool = False

    def reason(self, text: str) -> str:
        """The name of the first rule that leaves the text out; empty if all keep it."""
        if len(text) < self.min_chars:
            return f"shorter than {self.min_chars} characters"
        if self.max_chars is not None and len(text) > self.max_chars:
            return f"longer than {self.max_chars} characters"
        if self.languages and language_of(text) not in self.languages:
            return f"not in {' or '.join(self.languages)}"
        return low_quality(text) if self.quality else ""


def has_no_spaces(text: str) -> bool:
    """Whether a run of more than `MAX_WORD_CHARS` characters has no space, in a script that has
    spaces."""
    return any(
        len(word) > MAX_WORD_CHARS and len(_UNSPACED.findall(word)) < len(word) // 4
        for word in text.split()
    )


def language_of(text: str) -> str:
    """The most likely language of a text, by its two-letter code (py3langid)."""
    from py3langid import classify  # here, because its model takes half a second to load

    code: str = classify(text[:LANGUAGE_CHARS])[0]
    return code


def is_clearly_not(text: str, *, language: str) -> bool:
    """Whether a text, however short, is much likelier to be in another language than in this one
    (py3langid). `language_of` guesses, where a text has few words."""
    from py3langid import rank

    scores: dict[str, float] = dict(rank(text[:LANGUAGE_CHARS]))
    return max(scores.values()) - scores.get(language, -float("inf")) > CLEARLY


def low_quality(text: str) -> str:
    """The name of the first rule of Gopher that a text breaks; empty if it breaks none."""
    words = text.split()
    if not 50 <= len(words) <= 100_000:
        return "quality: number of words"
    if not 3 <= sum(map(len, words)) / len(words) <= 10:
        return "quality: mean word length"
    symbols = text.count("#") + text.count("...") + text.count("…")
    if symbols > 0.1 * len(words):
        return "quality: symbols"
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    if sum(line.startswith(("•", "-", "*", "‣")) for line in lines) > 0.9 * len(lines):
        return "quality: bullet points"
    if sum(line.endswith(("...", "…")) for line in lines) > 0.3 * len(lines):
        return "quality: ellipses"
    if sum(any(map(str.isalpha, word)) for word in words) < 0.8 * len(words):
        return "quality: words without letters"
    if len({word.casefold() for word in words} & STOP_WORDS) < 2:
        return "quality: stop words"
    repeated = sum(count for count in Counter(lines).values() if count > 1)
    if repeated > 0.3 * len(lines):
        return "quality: repeated lines"
    return ""
