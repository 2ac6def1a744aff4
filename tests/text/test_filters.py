"""Each filter leaves out what its name says, and nothing else."""

import pytest

from toolkit.text.filters import MAX_WORD_CHARS, Filters, has_no_spaces, language_of, low_quality

PROSE = (
    "The river rises in the hills to the north of the town and flows through a wide valley. "
    "People have lived along its banks since the end of the last ice age, and they have built "
    "mills and bridges of wood and stone that visitors still come to see on the long summer days. "
    "In winter the water freezes, and children skate on it under the old arches of the bridge."
)
GERMAN = "Der Fluss entspringt in den Hügeln nördlich der Stadt und fließt durch ein weites Tal."


def test_prose_is_kept() -> None:
    assert (
        Filters(min_chars=100, max_chars=1000, languages=("en",), quality=True).reason(PROSE) == ""
    )


@pytest.mark.parametrize(
    ("filters", "text", "reason"),
    [
        (Filters(min_chars=9), "too short"[:8], "shorter than 9 characters"),
        (Filters(max_chars=9), "0123456789", "longer than 9 characters"),
        (Filters(languages=("en", "fr")), GERMAN, "not in en or fr"),
        (Filters(min_chars=9, languages=("fr",)), PROSE, "not in fr"),
        (Filters(min_chars=9, max_chars=9), "123456789", ""),
    ],
)
def test_the_first_step_that_leaves_it_out_is_named(
    filters: Filters, text: str, reason: str
) -> None:
    assert filters.reason(text) == reason


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("The and of. " * 4, "quality: number of words"),
        ("Antidisestablishmentarianism " * 60, "quality: mean word length"),
        (PROSE + " #tag" * 30, "quality: symbols"),
        ("\n".join(f"- {PROSE} {n}" for n in range(4)), "quality: bullet points"),
        ("\n".join(f"{n} {PROSE[:-1]} ..." for n in range(4)), "quality: ellipses"),
        (PROSE + " 1234 5678" * 30, "quality: words without letters"),
        (GERMAN * 4, "quality: stop words"),
        (GERMAN * 4 + " the", "quality: stop words"),
        (GERMAN * 4 + " the and", ""),
        ("\n".join([PROSE] * 3 + ["and a line of its own"]), "quality: repeated lines"),
    ],
)
def test_each_rule_of_gopher_is_broken_by_name(text: str, reason: str) -> None:
    assert low_quality(text) == reason


@pytest.mark.parametrize(
    ("text", "code"), [(PROSE, "en"), (GERMAN, "de"), ("天気がいいですね。", "ja")]
)
def test_languages_are_told_apart(text: str, code: str) -> None:
    assert language_of(text) == code


def test_a_text_without_spaces_is_told_from_one_that_needs_none() -> None:
    assert has_no_spaces(f"Some words, then {'x' * (MAX_WORD_CHARS + 1)} and more.")
    assert not has_no_spaces(f"Some words, then {'x' * MAX_WORD_CHARS} and more.")
    assert not has_no_spaces("日本語の長い文章。" * 1000)
    assert not has_no_spaces("ภาษาไทย" * 1000)
    assert has_no_spaces("\n".join(["aGVsbG8gd29ybGQ=" * 400] * 2))
