"""Text of others, made visible: nothing is left that acts, and what people can read stays."""

import json
import re
import unicodedata

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from matplotlib.text import Text

from toolkit.base.shown import (
    as_code,
    as_code_block,
    as_python,
    as_yaml,
    in_html,
    in_markdown,
    in_picture,
    visible,
)

# Characters that something acts upon are drawn as often as all others together.
ACTING = "\x00\t\n\r\x07\x1b\x7f\x85\x9b\u2028\u202e\u2066\ud800"
MARKUP = "`*_[]<>|&#~$\\\"'-{}!()\u00e9 a1"
texts = st.text(st.one_of(st.sampled_from(ACTING + MARKUP), st.characters()), max_size=60)
# Whole characters only: YAML and Markdown know no halves.
whole_texts = texts.map(lambda text: text.replace("\ud800", "")).filter(
    lambda text: not any(unicodedata.category(c) == "Cs" for c in text)
)


@settings(deadline=None)
@given(texts)
def test_no_character_acts_upon_a_terminal(text: str) -> None:
    shown = visible(text)
    categories = {unicodedata.category(c) for c in shown}
    assert not categories & {"Cc", "Cs", "Zl", "Zp"}
    assert not {unicodedata.bidirectional(c) for c in shown} & {
        *("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
    }
    assert visible(shown) == shown
    shown.encode()


@settings(deadline=None)
@given(texts)
def test_what_shows_itself_stays(text: str) -> None:
    """By an own definition of what shows itself: printable, or a mark that scripts need."""
    plain = "".join(c for c in text if c.isprintable())
    assert visible(plain) == plain


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[31mb", r"a\x1b[31mb"),
        ("one\ttwo\nthree\r", r"one two\nthree\r"),
        ("\x9b2J", r"\x9b2J"),
        ("abc\u202edef\u2069", r"abc\u202edef\u2069"),
        ("\udcff.txt", r"\udcff.txt"),
        ("עברית\u200f, 日本語, e\u0301, 👩\u200d🔬", "עברית\u200f, 日本語, e\u0301, 👩\u200d🔬"),
    ],
)
def test_how_it_is_shown(text: str, shown: str) -> None:
    assert visible(text) == shown


@settings(deadline=None)
@given(texts)
def test_html_of_a_text_is_no_markup(text: str) -> None:
    assert not re.search("[<>\"']", in_html(text))


def rendered(markdown: str) -> list[tuple[str, str]]:
    """What a line of Markdown consists of; the text of neighbours as one."""
    found: list[tuple[str, str]] = []
    parser = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    for token in parser.parse(markdown):
        for child in token.children or []:
            kind = "text" if child.type == "text_special" else child.type
            if found and found[-1][0] == kind == "text":
                found[-1] = ("text", found[-1][1] + child.content)
            else:
                found.append((kind, child.content))
    return found


@settings(deadline=None)
@given(whole_texts)
@example("__0__")
@example("a_b__c_")
def test_markdown_of_a_text_is_that_text(text: str) -> None:
    assert rendered(f"x{in_markdown(text)}x") == [("text", f"x{visible(text)}x")]


@settings(deadline=None)
@given(whole_texts.filter(lambda text: bool(text.strip())))
def test_a_span_of_code_ends_with_the_text(text: str) -> None:
    (before, code, after) = rendered(f"a {as_code(text)} b")
    assert (before[1], code[0], after[1]) == ("a ", "code_inline", " b")
    assert code[1].strip() == visible(text).strip()


@settings(deadline=None)
@given(whole_texts)
def test_a_block_of_code_ends_with_the_text(text: str) -> None:
    lines = "".join(f"{line}\n" for line in [text.replace("\n", "\n```\n").replace("\r", "")])
    tokens = MarkdownIt("commonmark").parse(f"{as_code_block(lines, language='yaml')}\nafter\n")
    assert tokens[0].type == "fence"
    assert tokens[2].content == "after"


@settings(deadline=None)
@given(texts)
def test_a_literal_of_python_is_exact(text: str) -> None:
    assert eval(as_python(text)) == text
    assert visible(as_python(text)) == as_python(text)


@settings(deadline=None)
@given(whole_texts)
def test_yaml_is_exact_and_acts_upon_nothing(text: str) -> None:
    written = as_yaml({"key": text, "other": "é"})
    assert yaml.safe_load(written) == {"key": text, "other": "é"}
    assert all(visible(line) == line for line in written.split("\n"))


def test_yaml_of_letters_can_be_read() -> None:
    assert as_yaml({"key": "Übung 日本"}) == "key: Übung 日本\n"


@settings(deadline=None)
@given(texts)
def test_a_picture_draws_no_formula(text: str) -> None:
    label = Text(0, 0, shown := in_picture(text))
    drawn, is_formula = label._preprocess_math(shown)  # type: ignore[attr-defined]
    assert not is_formula
    expected = visible(text)
    assert drawn.lstrip(" ") == (expected if len(expected) <= 40 else f"{expected[:39]}…").lstrip(
        " "
    )
    assert not shown.startswith("_")


def test_json_needs_none_of_it() -> None:
    """What the doors print as JSON is ASCII."""
    assert json.dumps("".join(map(chr, range(0x300)))).isprintable()
