"""Pieces of HTML that all pages share. Knows HTML. Refuses to know what a page is about."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from toolkit.base.shown import in_html

Section = tuple[str, str, str, bytes]  # title, HTML, name of the picture, the picture if any


def came_from(path: Path) -> str:
    """A line of HTML that names the file of the numbers."""
    return f'<p class="from">from {in_html(path)}</p>'


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of the same columns as an HTML table, floats with four digits, without empty columns."""
    heads = [head for head in (rows[0] if rows else ()) if any(row.get(head) != "" for row in rows)]
    lines = ["".join(f"<th>{in_html(head)}</th>" for head in heads)]
    for row in rows:
        cells = [row.get(head, "") for head in heads]
        shown = [f"{cell:.4f}" if isinstance(cell, float) else str(cell) for cell in cells]
        lines.append("".join(f"<td>{in_html(cell)}</td>" for cell in shown))
    return "<table>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"
