"""A long text is tokenised only as far as its first tokens need, and these are those of the whole.

The oracle tokenises everything and cuts the tokens.
"""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from tests.text.tokenizers_at_hand import MASK, TRAINED, as_ours, mistral
from toolkit.text import tokens as tokenizing
from toolkit.text.tokens import TextTokenizer

PREFIX = "Given a question, find passages that answer it; "
# Each part is repeated some number of times: blanks and words without end, what is folded or
# removed, and ordinary text between them.
PARTS = [
    *(" ", "\n", "\t", "\u00a0", "\u3000", "  x"),
    *("a", "ab", "=", "-", "7", "1234567", ".", "é", "e\u0301", "\u0301", "漢", "👩‍👩‍👧", "\u200b"),
    *("word ", "The canal joins two rivers, and boats go from the north to the south. "),
    *(MASK, f" {MASK}", "</s>", "<", "        return x\n", "Ünïcödé ", "ﬁ", "\u0000"),
]
runs = st.tuples(
    st.sampled_from(PARTS) | st.text(max_size=8),
    st.sampled_from([1, 1, 2, 3, 7, 40, 300]) | st.integers(1, 3000),
)
hostile = st.lists(runs, max_size=6).map(lambda some: "".join(part * n for part, n in some))


class Both:
    """A tokenizer, and ours that cut at so many tokens. Each of ours is made once: it copies the
    tokenizer, which takes longer than to tokenise a text."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._ours: dict[int, TextTokenizer] = {}

    def ours(self, *, max_tokens: int) -> TextTokenizer:
        if max_tokens not in self._ours:
            self._ours[max_tokens] = as_ours(self.tokenizer, max_tokens=max_tokens)
        return self._ours[max_tokens]


def whole_then_cut(tokenizer: Tokenizer, text: str, *, ours: TextTokenizer) -> list[int]:
    own = tokenizer.encode(text, add_special_tokens=False).ids
    room = ours.max_tokens - ours.num_added
    return [*ours.prefix_ids, *own[:room], *ours.suffix_ids]


def compare(both: Both, texts: list[str], *, max_tokens: int) -> None:
    tokenizer, ours = both.tokenizer, both.ours(max_tokens=max_tokens)
    for text, ids_T in zip(texts, ours.encode(texts), strict=True):
        assert ids_T.tolist() == whole_then_cut(tokenizer, text, ours=ours)
    room = max_tokens - len(ours.suffix_ids)
    for text, (ids_T, own_T) in zip(texts, ours.encode_after(PREFIX, texts), strict=True):
        assert ids_T.tolist() == whole_then_cut(tokenizer, PREFIX + text, ours=ours)
        offsets = tokenizer.encode(PREFIX + text).offsets
        ends_T = np.array([end for _, end in offsets])[: len(own_T)]
        wanted_T = (ends_T > len(PREFIX)) & ours.is_own(ids_T)
        assert own_T[:room].tolist() == wanted_T[:room].tolist()


@pytest.fixture(scope="module")
def trained() -> dict[str, Both]:
    return {name: Both(make()) for name, make in TRAINED.items()}


@pytest.mark.parametrize("name", TRAINED)
@settings(max_examples=40, deadline=None)
@given(texts=st.lists(hostile, min_size=1, max_size=3), max_tokens=st.sampled_from([4, 8, 16, 33]))
def test_cut_texts_have_the_tokens_of_the_whole(
    name: str, texts: list[str], max_tokens: int, trained: dict[str, Both]
) -> None:
    compare(trained[name], texts, max_tokens=max_tokens)


@settings(max_examples=25, deadline=None)
@given(texts=st.lists(hostile, min_size=1, max_size=2), max_tokens=st.sampled_from([4, 8, 16, 33]))
def test_real_tokenizers_cut_like_the_whole(
    texts: list[str], max_tokens: int, real: list[Both]
) -> None:
    for both in real:
        compare(both, texts, max_tokens=max_tokens)


@pytest.fixture(scope="module")
def real(real_data: Path, stories_model: Path) -> list[Both]:
    return [
        Both(mistral(real_data / "tokenizer_mistral" / "tokenizer.model.v1")),
        Both(Tokenizer.from_file(str(stories_model / "tokenizer.json"))),
    ]


@pytest.mark.parametrize("name", ["word_piece", "unigram", "byte_level", "greedy_mask"])
def test_words_behind_3000_blanks_are_not_lost(name: str, trained: dict[str, Both]) -> None:
    for text in (
        " " * 3000 + "The canal joins two rivers",
        " " * 3000 + f"{MASK} word",
        "=" * 9000,
    ):
        compare(trained[name], [text], max_tokens=8)


class Counted:
    """A tokenizer that counts the characters it is given."""

    def __init__(self, inner: Tokenizer) -> None:
        self._inner, self.num_chars = inner, 0

    def encode_batch(self, texts: list[str]) -> object:
        self.num_chars += sum(map(len, texts))
        return self._inner.encode_batch(texts)


def count(name: str, text: str, *, max_tokens: int, trained: dict[str, Both]) -> int:
    """The characters that are tokenised of a text."""
    ours = as_ours(trained[name].tokenizer, max_tokens=max_tokens)
    counted = Counted(ours._tokenizer)
    ours._tokenizer = counted  # type: ignore[assignment]
    assert len(ours.encode([text])[0]) <= max_tokens
    return counted.num_chars


@pytest.mark.parametrize("name", TRAINED)
def test_of_a_long_text_little_is_tokenised(name: str, trained: dict[str, Both]) -> None:
    prose = "The canal joins two rivers. " * 2_000_000  # 56 MB
    assert count(name, prose, max_tokens=512, trained=trained) < 10 * 512
    # A single word of 60 MB; some make a single token of it, and wait for its end.
    waits = name in ("word_piece", "unigram")
    most = 2 * tokenizing.MAX_CUT_CHARS if waits else 4 * tokenizing.MAX_WORD_CHARS
    assert count(name, "漢" * 20_000_000, max_tokens=16, trained=trained) < most
    assert count(name, " " * 20_000_000 + "x", max_tokens=16, trained=trained) < most


def test_short_texts_are_tokenised_once(trained: dict[str, Both]) -> None:
    text = "The canal joins two rivers, and boats go from the north to the south."
    assert count("byte_level", text, max_tokens=8, trained=trained) == len(text)
