"""The first of equal documents stays, whatever the order in which they were read."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toolkit.text.duplicates import (
    NEAR,
    Duplicate,
    as_keys,
    key_of,
    nearly_repeated,
    normalized,
    repeated,
    signature,
)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.booleans()), max_size=40))
def test_equal_to_the_naive_loop(rows: list[tuple[int, bool]]) -> None:
    keys = as_keys([key_of(str(value)) for value, _ in rows])
    among = np.array([inside for _, inside in rows], dtype=np.bool_)
    seen: dict[int, int] = {}
    wanted = []
    for number, (value, inside) in enumerate(rows):
        if inside and value in seen:
            wanted.append(Duplicate(number, of=seen[value], reason="x"))
        elif inside:
            seen[value] = number
    assert repeated(keys, among=among, reason="x") == wanted


# Texts of equal letters and other content: signs, marks, digits in another place, other scripts.
DIFFERENT = [
    ("C++", "C#"),
    ("5", "-5"),
    ("a < b", "a > b"),
    ("x = y", "x y"),
    ("10\u00b2", "102"),
    ("3.5", "35"),
    ("re\u0301sume\u0301", "resume"),
    ("\u0915\u093f", "\u0915\u0940"),  # Devanagari: ki with a short and with a long vowel sign
    ("\u0e01\u0e34", "\u0e01\u0e35"),  # the same in Thai
    ("\u05d1\u05bc", "\u05d1"),  # Hebrew: with a dot and without
    ("\u0645\u06cc\u200c\u062e\u0648", "\u0645\u06cc\u062e\u0648"),  # Persian: two words joined
    ("Let's eat, Grandma", "Let's eat Grandma"),
    ("...", "!!!"),
]
# What a normalised text folds, and nothing but an identical text shares exactly.
FOLDED = [
    ("A cat sat", "a CAT sat"),
    ("A cat sat", " A\tcat\n\u00a0sat "),
    ("caf\u00e9", "cafe\u0301"),
    ("STRASSE", "stra\u00dfe"),
    ("\u0391\u03a3", "\u03b1\u03c2"),  # the two small letters of a Greek capital
]


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_signs_and_marks_make_another_text(one: str, other: str) -> None:
    assert key_of(one) != key_of(other)
    assert normalized(one) != normalized(other)
    assert (signature(one) != signature(other)).any()


@pytest.mark.parametrize(("one", "other"), FOLDED)
def test_only_normalised_texts_fold_case_space_and_composition(one: str, other: str) -> None:
    assert key_of(one) != key_of(other)
    assert normalized(one) == normalized(other)


@settings(max_examples=500, deadline=None)
@given(st.text(), st.text())
def test_exact_means_identical_and_normalising_again_changes_nothing(one: str, other: str) -> None:
    assert (key_of(one) == key_of(other)) == (one == other)
    assert normalized(normalized(one)) == normalized(one)
    assert normalized(f" {one}\n") == normalized(one)


def words(count: int, *, seed: int) -> list[str]:
    generator = np.random.default_rng(seed)
    return [f"w{number}" for number in generator.integers(10_000, size=count)]


def variant(text: list[str], *, changed: int, seed: int) -> str:
    """The text with a block of words exchanged: `changed` + 4 shingles of each are not shared."""
    return " ".join(words(changed, seed=seed) + text[changed:])


def test_near_duplicates_are_found_and_others_are_not() -> None:
    """At 0.95 and more all are found, below 0.65 none."""
    texts, pairs = [], []
    for number in range(40):
        text = words(400, seed=number)
        similar = variant(text, changed=4, seed=1000 + number)  # 388 of 404: 0.96
        other = variant(text, changed=100, seed=2000 + number)  # 292 of 500: 0.58
        pairs.append((len(texts), len(texts) + 1))
        texts += [" ".join(text), similar, other]
    found = nearly_repeated(
        np.stack([signature(text) for text in texts]),
        among=np.ones(len(texts), dtype=np.bool_),
        reason="near",
    )
    assert [(duplicate.of, duplicate.number) for duplicate in found] == pairs


def test_a_chain_of_near_duplicates_leads_to_the_first() -> None:
    text = words(400, seed=1)
    chain = [" ".join(text)]
    for step in range(1, 6):
        text = text[8:] + words(8, seed=100 + step)
        chain.append(" ".join(text))
    signatures = np.stack([signature(part) for part in chain])
    similar = [(signatures[0] == other).mean() for other in signatures]
    assert similar[1] > NEAR > similar[5]
    found = nearly_repeated(signatures, among=np.ones(6, dtype=np.bool_), reason="near")
    assert {duplicate.of for duplicate in found} <= {0, 3, 4, 5}
    assert Duplicate(1, of=0, reason="near") in found


def test_what_is_left_out_already_is_nobodys_original() -> None:
    text = " ".join(words(50, seed=1))
    signatures = np.stack([signature(text)] * 3)
    among = np.array([False, True, True])
    assert nearly_repeated(signatures, among=among, reason="near") == [
        Duplicate(2, of=1, reason="near")
    ]


@pytest.mark.parametrize("text", ["", "?!", "one", "one two three"])
def test_short_texts_have_signatures_too(text: str) -> None:
    assert signature(text).shape == signature("x " * 100).shape
    assert np.array_equal(signature(text), signature(text))
    assert not np.array_equal(signature(text), signature(text + " four five"))
