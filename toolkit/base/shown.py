"""The text of others where people see it: on a terminal, in HTML, in Markdown, in a picture.

Knows which characters each of these acts upon instead of showing them. Refuses to know what a text
means and where it is printed; JSON is exact by its own escapes and needs none of this.
"""

import html
import json
import re
from collections.abc import Mapping
from typing import Any

# Control characters (ESC and NUL among them), what breaks a line, what turns the reading direction
# (U+202A to U+202E, U+2066 to U+2069: "Trojan source"), and halves of a character, which a file
# name that is no UTF-8 has and which no stream takes. Marks that Arabic and Hebrew need stay.
_ACTING = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_NAMED = {"\t": " ", "\n": r"\n", "\r": r"\r"}
# What Markdown acts upon inside of a line; an underscore inside of a word is none of it.
_MARKDOWN = re.compile(r"[\\`*\[\]<>|&~$]|(?<![^\W_])_|_(?![^\W_])")


def visible(text: object) -> str:
    """One line in which every character shows itself: what a terminal would act upon is written as
    Python writes it (\\x1b, \\u202e), a tab as a blank."""
    return _ACTING.sub(_escaped, str(text))


def _escaped(match: re.Match[str]) -> str:
    found = match[0]
    number = ord(found)
    return _NAMED.get(found) or (f"\\x{number:02x}" if number < 256 else f"\\u{number:04x}")


def in_html(text: object) -> str:
    """The same for the text or a quoted attribute of an HTML element."""
    return html.escape(visible(text))


def in_markdown(text: object) -> str:
    """The same inside of a line or a table's cell of Markdown, which takes HTML too."""
    return _MARKDOWN.sub(lambda match: f"\\{match[0]}", visible(text))


def as_code(text: object) -> str:
    """A span of code in Markdown that ends where the text ends, and not before."""
    shown = visible(text)
    fence = _longer_than_in(shown, least=1)
    blank = " " if "`" in (shown[:1], shown[-1:]) else ""
    return f"{fence}{blank}{shown}{blank}{fence}"


def as_python(text: str) -> str:
    """A literal of Python that is exactly this text, for code that people copy."""
    return visible(json.dumps(text, ensure_ascii=False))


def as_code_block(text: str, *, language: str) -> str:
    """Lines of code in Markdown."""
    fence = _longer_than_in(text, least=3)
    return f"{fence}{language}\n{text}{fence}\n"


def _longer_than_in(text: str, *, least: int) -> str:
    """More backticks than the text has in a row."""
    return "`" * max(least, 1 + max(map(len, re.findall("`+", text)), default=0))


def as_yaml(values: Mapping[str, Any]) -> str:
    """Settings as YAML, which is exact. Where a character would act upon a terminal, all beyond
    ASCII are written by their numbers."""
    import yaml  # here: the monitors of the watchdog run without installed packages

    text = json.dumps(values, ensure_ascii=False)
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=visible(text) == text)


def in_picture(text: object, *, chars: int = 40) -> str:
    """The same for matplotlib, cut at `chars`: between two dollars it would set mathematics, or end
    with a traceback; a label that begins with an underscore it would leave out."""
    shown = visible(text)
    if len(shown) > chars:
        shown = shown[: chars - 1] + "…"
    if shown.startswith("_"):
        shown = f" {shown}"
    return shown.replace("$", r"\$")
