"""Text from outside, made safe where people see it: on a terminal, in HTML, Markdown or a picture.

Knows which characters each of these interprets instead of showing them. Refuses to know what a text
means and where it is printed. JSON has its own escapes and needs none of this.
"""

import html
import json
import re
from collections.abc import Mapping
from typing import Any

# Control characters (ESC and NUL among them), line breaks, characters that reverse the reading
# direction (U+202A to U+202E, U+2066 to U+2069: "Trojan source"), and lone surrogates, which a file
# name that is not UTF-8 contains and which no stream can write. Marks that Arabic and Hebrew need
# are left alone.
_ACTING = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_NAMED = {"\t": " ", "\n": r"\n", "\r": r"\r"}
# What Markdown interprets inside a line; it leaves an underscore inside a word alone.
_MARKDOWN = re.compile(r"[\\`*\[\]<>|&~$]|(?<![^\W_])_|_(?![^\W_])")


def visible(text: object) -> str:
    """One line in which every character is visible: those that a terminal would interpret are
    written as Python escapes (\\x1b, \\u202e), a tab as a blank."""
    return _ACTING.sub(_escaped, str(text))


def _escaped(match: re.Match[str]) -> str:
    character = match[0]
    number = ord(character)
    return _NAMED.get(character) or (f"\\x{number:02x}" if number < 256 else f"\\u{number:04x}")


def in_html(text: object) -> str:
    """`visible` text, escaped for the content or a quoted attribute of an HTML element."""
    return html.escape(visible(text))


def in_markdown(text: object) -> str:
    """`visible` text, escaped for a line or a table cell of Markdown (which accepts HTML too)."""
    return _MARKDOWN.sub(lambda match: f"\\{match[0]}", visible(text))


def as_code(text: object) -> str:
    """A code span in Markdown, with enough backticks that the text itself cannot end it."""
    shown = visible(text)
    fence = _longer_than_in(shown, least=1)
    blank = " " if "`" in (shown[:1], shown[-1:]) else ""
    return f"{fence}{blank}{shown}{blank}{fence}"


def as_python(text: str) -> str:
    """A Python string literal with exactly this text, for code that people copy."""
    return visible(json.dumps(text, ensure_ascii=False))


def as_code_block(text: str, *, language: str) -> str:
    """A fenced code block in Markdown that holds the lines of `text`."""
    fence = _longer_than_in(text, least=3)
    return f"{fence}{language}\n{text}{fence}\n"


def _longer_than_in(text: str, *, least: int) -> str:
    """A run of backticks that is longer than any run in the text."""
    return "`" * max(least, 1 + max(map(len, re.findall("`+", text)), default=0))


def as_yaml(values: Mapping[str, Any]) -> str:
    """Settings as YAML, without loss. If a terminal would interpret any character, all characters
    beyond ASCII are written as escapes."""
    import yaml  # here, because the watchdog's monitors run without installed packages

    text = json.dumps(values, ensure_ascii=False)
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=visible(text) == text)


def in_picture(text: object, *, chars: int = 40) -> str:
    """`visible` text for matplotlib, cut to `chars` characters. matplotlib would typeset text
    between two dollars as mathematics, or fail on it, and hide a label that begins with an
    underscore."""
    shown = visible(text)
    if len(shown) > chars:
        shown = shown[: chars - 1] + "…"
    if shown.startswith("_"):
        shown = f" {shown}"
    return shown.replace("$", r"\$")
