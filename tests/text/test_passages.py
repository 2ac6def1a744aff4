"""Long texts as passages: nothing is lost, none is too long, and they end where a sentence does."""

import re

from hypothesis import given
from hypothesis import strategies as st

from toolkit.text.passages import passages

WORDS = st.text(alphabet="abcdefgh", min_size=1, max_size=12)
SENTENCES = st.lists(WORDS, min_size=1, max_size=30).map(lambda ws: " ".join(ws).capitalize() + ".")
PARAGRAPHS = st.lists(SENTENCES, min_size=1, max_size=8).map(" ".join)
TEXTS = st.lists(PARAGRAPHS, min_size=1, max_size=8).map("\n".join)


@given(text=TEXTS | st.text(max_size=500), max_chars=st.integers(20, 400))
def test_nothing_but_white_space_is_lost_and_no_passage_is_too_long(
    text: str, max_chars: int
) -> None:
    made = passages(text, max_chars=max_chars)
    assert "".join("".join(made).split()) == "".join(text.split())
    assert all(0 < len(passage) <= max_chars for passage in made)


def test_passages_end_with_paragraphs_and_have_about_the_same_size() -> None:
    paragraph = "This is one sentence. This is another sentence of it."
    text = "\n".join([paragraph] * 12)
    made = passages(text, max_chars=300)
    assert all(passage.endswith("sentence of it.") for passage in made)
    assert [len(passage) for passage in made] == [4 * 54 - 1] * 3


def test_a_paragraph_that_is_too_long_ends_a_passage_with_a_sentence() -> None:
    text = " ".join(f"Sentence number {number} has some words in it." for number in range(30))
    made = passages(text, max_chars=400)
    assert len(made) == 4
    assert all(re.fullmatch(r"Sentence number .* in it\.", passage) for passage in made)


def test_a_text_without_blanks_is_cut_anywhere() -> None:
    assert passages("x" * 50, max_chars=20) == ["x" * 20, "x" * 20, "x" * 10]
    assert passages(" \n ", max_chars=20) == []
