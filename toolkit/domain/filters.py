"""Which questions are worth keeping: rules with names, each of which can leave a question out.

Knows words. Refuses to know where questions come from, and other documents than a question's own
(but for `not_found_again`).
"""

import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterable, Sequence

from toolkit.domain.writing import Question
from toolkit.settings.questions_schema import QuestionFilters
from toolkit.text.bm25 import Bm25, words
from toolkit.text.duplicates import normalized
from toolkit.text.filters import is_clearly_not, language_of

NOTHING, UNFINISHED = "nothing written", "unfinished"
SHORT, LONG = "too short", "too long"
LOOPS, COPIED, LANGUAGE = "loops", "copied", "other language"
REPEATED, NOT_FOUND = "repeated", "not found again"
REASONS = (NOTHING, UNFINISHED, SHORT, LONG, LOOPS, COPIED, LANGUAGE, REPEATED, NOT_FOUND)
RUN_WORDS = 3  # a loop is a run of so many words that comes again
LOOP_LETTERS = 4  # a shorter word may follow itself ("had had")
QUERIES_AT_ONCE = 1024


def words_of(text: str) -> list[str]:
    """The words of a text, without case and punctuation. Of a script without spaces, pairs of
    characters."""
    return words(text.casefold())


@dataclasses.dataclass(frozen=True)
class Source:
    """A document as the filters read it. `words` are its own, with a blank around each."""

    words: str
    language: str

    @classmethod
    def of(cls, text: str, *, filters: QuestionFilters) -> "Source":
        """The source of a text; its language is found only where a filter asks for it."""
        language = language_of(text) if filters.language == "same" else filters.language
        return cls(f" {' '.join(words_of(text))} ", language)


def fault_of(question: Question, *, source: Source, filters: QuestionFilters) -> str:
    """The name of the first rule that leaves a question out, by itself and its document; empty if
    all keep it."""
    words = words_of(question.question)
    if not words:
        return NOTHING
    if is_loop(words, max_repeats=filters.max_repeats):
        return LOOPS  # before `UNFINISHED`: a loop seldom ends
    if not question.ended and not filters.unfinished:
        return UNFINISHED
    if len(words) < filters.min_words:
        return SHORT
    if len(words) > filters.max_words:
        return LONG
    run = longest_run(words, within=source.words)
    if run > filters.max_copied_words and run > filters.max_copied_share * len(words):
        return COPIED
    if filters.language != "any" and is_clearly_not(question.question, language=source.language):
        return LANGUAGE
    return ""


def is_loop(words: Sequence[str], *, max_repeats: int) -> bool:
    """Whether three words in a row come again more than `max_repeats` times, or a word follows
    itself."""
    runs = Counter(zip(*(words[start:] for start in range(RUN_WORDS)), strict=False))
    if any(count > 1 + max_repeats for count in runs.values()):
        return True
    pairs = itertools.pairwise(words)
    return any(one == other and len(one) >= LOOP_LETTERS for one, other in pairs)


def longest_run(words: Sequence[str], *, within: str) -> int:
    """The length of the longest run of these words that stands in `within`, a text of words with a
    blank around each."""
    longest = start = 0
    for end in range(1, len(words) + 1):
        while start < end and f" {' '.join(words[start:end])} " not in within:
            start += 1
        longest = max(longest, end - start)
    return longest


def repeated(questions: Sequence[str]) -> list[bool]:
    """For each question, whether an earlier one is the same but for case, white space and signs."""
    seen: set[str] = set()
    found = []
    for question in questions:
        key = " ".join(words_of(normalized(question)))
        found.append(key in seen)
        seen.add(key)
    return found


def not_found_again(
    questions: Sequence[str], *, rows: Sequence[int], texts: Iterable[str], top: int
) -> list[bool]:
    """For each question, whether its document's row is missing among the `top` texts that BM25
    finds for it."""
    index = Bm25(texts)
    found: list[bool] = []
    for start in range(0, len(questions), QUERIES_AT_ONCE):
        best_QK, _ = index.search(questions[start : start + QUERIES_AT_ONCE], top=top)
        pairs = zip(best_QK, rows[start : start + QUERIES_AT_ONCE], strict=True)
        found += [bool((best_K != row).all()) for best_K, row in pairs]
    return found
