"""Where sentences begin and end, and which are kept."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolkit.text.sentences import MAX_LINE_CHARS, sentence_spans, split_sentences


def test_abbreviations_do_not_end_a_sentence() -> None:
    text = "Dr. J. R. Smith went home, e.g. by train. She isn’t here at all!  “Why not?” he asked."
    assert split_sentences(text) == [
        "Dr. J. R. Smith went home, e.g. by train.",
        "She isn’t here at all!",
        "“Why not?” he asked.",
    ]


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("A b c d.", []),  # four words, too few characters
        ("Extraordinarily long words.", []),  # three words
        ("Just long enough, it is.", ["Just long enough, it is."]),
        ("", []),
        (" \n\n ", []),
        ("This line has no full stop\nand neither has this one", 2),
    ],
)
def test_short_sentences_are_dropped(text: str, kept: list[str] | int) -> None:
    found = split_sentences(text)
    assert (len(found) if isinstance(kept, int) else found) == kept


def test_the_bounds_are_arguments() -> None:
    assert split_sentences("Yes. No.", min_chars=0, min_words=1) == ["Yes.", "No."]


def test_words_are_not_counted_where_no_spaces_are_written() -> None:
    sentence = "这是一个用来检查句子长度的相当长的中文句子。"
    assert split_sentences(sentence * 2, language="zh") == [sentence, sentence]
    assert split_sentences(sentence, language="en") == []


@given(st.text(alphabet="ab A.!?\n\r\t é🎉\u0301\u200d\x00“”。"))
def test_spans_are_ordered_trimmed_and_within_a_line(text: str) -> None:
    spans = sentence_spans(text, min_chars=0, min_words=1)
    ends = [0, *(end for _, end in spans)]
    assert all(end <= start for end, (start, _) in zip(ends, spans, strict=False))
    for start, end in spans:
        sentence = text[start:end]
        assert sentence and sentence == sentence.strip() and "\n" not in sentence


def test_a_long_line_has_the_sentences_that_its_parts_have() -> None:
    """It is looked at piece by piece; wherever a piece ends, no sentence is lost or cut."""
    sentences = [
        f"This is sentence number {n} of a text, {'and so on ' * (n % 7)}." for n in range(900)
    ]
    line = " ".join(sentences)
    assert len(line) > 4 * MAX_LINE_CHARS
    assert split_sentences(line) == sentences
    endless = "word " * MAX_LINE_CHARS
    spans = sentence_spans(endless + "The end of it is here.")
    assert spans[0][0] == 0 and all(stop - start <= MAX_LINE_CHARS for start, stop in spans)
    assert sum(stop - start for start, stop in spans) > 0.99 * len(endless)


@pytest.mark.parametrize("space", ["\u00a0", "\u2009", "\u2028", "\u202f", "\u3000", "\x85"])
def test_a_wide_space_before_a_full_stop_ends_no_program(space: str) -> None:
    """sentencex cut such a character in two, which is a panic of Rust."""
    assert split_sentences(f"See part A{space}. The end of it is here.", min_chars=0) == [
        f"See part A{space}.",
        "The end of it is here.",
    ]
