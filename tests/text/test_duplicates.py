"""The first of equal documents stays, whatever the order in which they were read."""

import itertools
import re
import sys
import unicodedata
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toolkit.text import duplicates
from toolkit.text.duplicates import (
    LEAST_ESTIMATE,
    LONGEST_RUN,
    MARKS_END,
    NEAR,
    NUM_PERMUTATIONS,
    Duplicate,
    as_keys,
    is_mark,
    key_of,
    nearly_repeated,
    normalized,
    repeated,
    signature,
)
from toolkit.text.shards import open_shards


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


# In no order: an acute above and a grave below; and a vowel sign that is two marks in one.
MARKS = ("\u0301\u0316", "\u0f73\u0316", "\u0344\u0316")


@pytest.mark.parametrize("marks", MARKS)
def test_no_text_takes_time_by_the_square_of_its_length(
    marks: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looked at is what is normalised: never a long run of marks, which is put in order mark by
    mark."""
    longest: list[int] = []

    class Watched:
        combining = staticmethod(unicodedata.combining)

        @staticmethod
        def normalize(form: Literal["NFC", "NFD"], text: str) -> str:
            if form == "NFC":
                runs = itertools.groupby(text, key=is_mark)
                longest.extend(len(list(run)) for of_marks, run in runs if of_marks)
            return unicodedata.normalize(form, text)

    monkeypatch.setattr(duplicates, "unicodedata", Watched)
    run = marks * 10_000
    text = f"CAFE\u0301 x{run} e\u0301 {marks * LONGEST_RUN}"
    found = normalized(text)
    assert max(longest) <= LONGEST_RUN
    assert found.startswith(f"caf\u00e9 x{run.casefold()} \u00e9 ")
    assert normalized(found) == found


def test_every_mark_stands_where_runs_are_looked_for() -> None:
    marks = [code for code in range(sys.maxunicode + 1) if is_mark(chr(code))]
    assert max(marks) < MARKS_END


def words(count: int, *, seed: int) -> list[str]:
    generator = np.random.default_rng(seed)
    return [f"w{number}" for number in generator.integers(10_000, size=count)]


def variant(text: list[str], *, changed: int, seed: int) -> str:
    """The text with a block of words exchanged: `changed` + 4 shingles of each are not shared."""
    return " ".join(words(changed, seed=seed) + text[changed:])


def test_near_duplicates_are_found_and_others_are_not() -> None:
    """Of pairs that are alike in a block, and of such that are not."""
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


def five_grams(words: list[str]) -> set[str]:
    return {" ".join(words[start : start + 5]) for start in range(len(words) - 4)}


def similar_texts(texts: list[str], *, similarity: float) -> list[str]:
    """Each text and then the same with words exchanged, one by one, as long as the true Jaccard
    similarity of the two is `similarity` and more."""
    generator = np.random.default_rng(0)
    found = []
    for text in texts:
        original = re.findall(r"\w+", text.casefold())
        left, changed = five_grams(original), list(original)
        for place in generator.permutation(len(original)).tolist():
            word, changed[place] = changed[place], f"x{place}"
            right = five_grams(changed)
            if len(left & right) < similarity * len(left | right):
                changed[place] = word
                break
        found += [text, " ".join(changed)]
    return found


@pytest.fixture(scope="module")
def real_texts(shards: Path) -> list[str]:
    rows = open_shards(shards)
    joined = re.findall(r"\S+", " ".join(rows.text(row) for row in range(rows.num_rows)))
    return [" ".join(joined[start : start + 150]) for start in range(0, len(joined) - 150, 150)]


@pytest.mark.parametrize(
    ("similarity", "least", "most"), [(0.8, 0.95, 1.0), (0.9, 0.99, 1.0), (0.65, 0.0, 0.05)]
)
def test_of_pairs_of_the_promised_similarity_95_in_100_are_found(
    similarity: float, least: float, most: float, real_texts: list[str]
) -> None:
    """With 14 bands and an estimate of 0.8, 77 in 100 were. True similarities are up to 0.03 above
    the one that is named: a word's worth."""
    texts = similar_texts(real_texts, similarity=similarity)
    assert len(texts) >= 400
    found = nearly_repeated(
        np.stack([signature(text) for text in texts]),
        among=np.ones(len(texts), dtype=np.bool_),
        reason="near",
    )
    pairs = sum(duplicate.of == duplicate.number - 1 for duplicate in found)
    assert least <= pairs / (len(texts) / 2) <= most


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_equal_to_comparing_all_pairs_where_similarity_is_clear(data: st.DataObject) -> None:
    """Groups of signatures that agree in nine of ten places, and in none with another group's."""
    generator = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    groups = data.draw(st.lists(st.integers(0, 5), min_size=1, max_size=30))
    among = np.array([data.draw(st.booleans()) for _ in groups], dtype=np.bool_)
    centres = generator.integers(2**16, size=(6, NUM_PERMUTATIONS), dtype=np.uint16)
    signatures = centres[groups]
    for row in signatures:
        row[generator.permutation(NUM_PERMUTATIONS)[: NUM_PERMUTATIONS // 20]] += 1
    first: dict[int, int] = {}
    wanted = []
    for number, group in enumerate(groups):
        if among[number] and group in first:
            wanted.append(Duplicate(number, of=first[group], reason="near"))
        elif among[number]:
            first[group] = number
    assert nearly_repeated(signatures, among=among, reason="near") == wanted


def test_who_is_left_out_is_near_one_that_stays() -> None:
    """In a chain, each nearly the one before it, the last ones are not nearly the first."""
    text = words(400, seed=1)
    chain = [" ".join(text)]
    for step in range(1, 12):
        text = text[8:] + words(8, seed=100 + step)
        chain.append(" ".join(text))
    signatures = np.stack([signature(part) for part in chain])
    similar = [(signatures[0] == other).mean() for other in signatures]
    assert similar[1] > NEAR > LEAST_ESTIMATE > similar[8]
    found = nearly_repeated(signatures, among=np.ones(12, dtype=np.bool_), reason="near")
    assert Duplicate(1, of=0, reason="near") in found
    left_out = {duplicate.number for duplicate in found}
    for duplicate in found:
        assert duplicate.of not in left_out
        near = (signatures[duplicate.of] == signatures[duplicate.number]).mean()
        assert near >= LEAST_ESTIMATE
    assert len(left_out) < 11


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


UNSPACED_SENTENCES = {
    "zh": "机翼上方第{0}股气流在扰动足够大时会变为湍流，{1}号压力计随即记录到更高的读数。",
    "ja": "翼の上の第{0}の流れは、擾乱が十分に大きくなると乱流になり、{1}の計器が高い値を示す。",
    "th": "กระแสลมเหนือปีกที่{0}จะปั่นป่วนเมื่อการรบกวนมากพอและเครื่องวัดหมายเลข{1}แสดงค่าที่สูงขึ้น",
}


@pytest.mark.parametrize("language", UNSPACED_SENTENCES)
def test_near_duplicates_are_found_in_scripts_without_spaces(language: str) -> None:
    """One character of every second sentence is changed."""
    drawn = [chr(code) for code in np.random.default_rng(1).permutation(20_000)[:440] + 0x4E00]
    sentence = UNSPACED_SENTENCES[language]
    numbers = list(zip(drawn[:20], drawn[20:40], strict=True))
    changed = [(one, "々" if at % 2 else two) for at, (one, two) in enumerate(numbers)]
    texts = ["".join(sentence.format(*pair) for pair in pairs) for pairs in (numbers, changed)]
    texts.append("".join(drawn[40:]))
    found = nearly_repeated(
        np.stack([signature(text) for text in texts]),
        among=np.ones(len(texts), dtype=np.bool_),
        reason="near",
    )
    assert [(duplicate.of, duplicate.number) for duplicate in found] == [(0, 1)]


@pytest.mark.parametrize(
    "text",
    [
        "The flow over the wing becomes turbulent as soon as disturbances grow, doesn't it? x_1 2²",
        "Течение над крылом становится турбулентным, когда возмущения растут достаточно быстро.",
        "Η ροή πάνω από την πτέρυγα γίνεται τυρβώδης όταν οι διαταραχές μεγαλώνουν ΑΡΚΕΤΑ.",
        "पंख के ऊपर का प्रवाह अशांत हो जाता है जब गड़बड़ी काफी बढ़ जाती है।",
        "يصبح التدفق فوق الجناح مضطربا عندما تنمو الاضطرابات بما فيه الكفاية.",
    ],
)
def test_words_between_spaces_have_the_signature_that_they_had(text: str) -> None:
    """Shards of before can be compared: a shingle is five runs of letters and digits."""
    from rensa import RMinHash

    naive = RMinHash(num_perm=NUM_PERMUTATIONS, seed=1)
    naive.update(sorted(five_grams(re.findall(r"\w+", text.casefold()))))
    assert signature(text).tolist() == [value & 0xFFFF for value in naive.digest()]
