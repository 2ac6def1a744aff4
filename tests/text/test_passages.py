"""Long texts as passages: nothing is lost, none is too long, and they end where a sentence does."""

import re
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolkit.text import passages as module
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


def naive(pieces: list[str], *, max_chars: int) -> list[str]:
    """By the definition: for each number of passages, each piece in the one where its middle lies;
    where no number will do, as full as they can be."""
    total = len("".join(pieces))
    for number in range(-(-total // max_chars), len(pieces) + 1):
        made, begun = [""] * number, 0
        for piece in pieces:
            made[int(Fraction(2 * begun + len(piece), 2 * total) * number)] += piece
            begun += len(piece)
        if all(len(passage.strip()) <= max_chars for passage in made):
            return [passage.strip() for passage in made if passage.strip()]
    made = [""]
    for piece in pieces:
        if len((made[-1] + piece).strip()) > max_chars:
            made.append("")
        made[-1] += piece
    return [passage.strip() for passage in made if passage.strip()]


UNEVEN = st.lists(st.sampled_from(["a\n", "   \n", "b" * 15 + "\n", " c d \n", "e" * 19 + "\n"]))


@given(pieces=UNEVEN.filter(bool), max_chars=st.sampled_from([20, 32, 64]))
def test_passages_are_those_of_the_definition(pieces: list[str], max_chars: int) -> None:
    assert passages("".join(pieces), max_chars=max_chars) == naive(pieces, max_chars=max_chars)


def test_no_text_takes_time_by_the_square_of_its_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted is at how many passages we look, before it is known how many there will be."""
    looked = [0]

    def lengths(self: module._Pieces, starts: module.Ints, stops: module.Ints) -> module.Ints:
        looked[0] += len(starts)
        return whole(self, starts, stops)

    whole = module._Pieces.lengths
    monkeypatch.setattr(module._Pieces, "lengths", lengths)
    counts = []
    for size in (1, 8):
        looked[0] = 0
        text = "ab cd.\n" * (10_000 * size) + ("y" * 1100 + "\n") * (60 * size)
        passages(text, max_chars=2000)
        counts.append(looked[0])
    assert counts[1] < 40 * counts[0]
