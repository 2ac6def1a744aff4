"""How the fields of .csv and .tsv files are parted and quoted. Knows the csv module, no columns."""

import csv
from collections.abc import Sequence
from pathlib import Path

from toolkit.base.errors import BadInput

UTF_8 = "utf-8-sig"  # with or without the mark that spreadsheets put before it
TABLES = (".csv", ".tsv")
csv.field_size_limit(2**31 - 1)  # a text may be longer than csv's 131,072 characters


class Tabs(csv.excel_tab):
    """Fields parted by tabs, in which a quote is a character like any other."""

    quoting = csv.QUOTE_NONE


class Commas(csv.excel):
    """Fields parted by commas. A quote that is not closed is an error: it would take in the rows
    behind it."""

    strict = True


def check_header(header: Sequence[str], *, path: Path) -> None:
    """Raise `BadInput` when two columns have one name: which of them is meant, nobody knows."""
    if twice := [name for name in header if header.count(name) > 1]:
        raise BadInput(f"{path}: two of its columns are called {twice[0]!r}: rename one")


def dialect_of(path: Path) -> type[csv.Dialect]:
    """How the fields of a .tsv and of a .csv are parted and quoted."""
    return Tabs if path.suffix == ".tsv" else Commas
