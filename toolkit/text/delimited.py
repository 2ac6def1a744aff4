"""How the fields of .csv and .tsv files are separated and quoted. Knows csv, but no column."""

import csv
from collections.abc import Sequence
from pathlib import Path

from toolkit.base.errors import BadInput

UTF_8 = "utf-8-sig"  # with or without the byte order mark that spreadsheets write
TABLES = (".csv", ".tsv")
csv.field_size_limit(2**31 - 1)  # a text may be longer than csv's 131,072 characters


class Tabs(csv.excel_tab):
    """Fields separated by tabs, in which a quote is an ordinary character."""

    quoting = csv.QUOTE_NONE


class Commas(csv.excel):
    """Fields separated by commas. A quote that is not closed is an error, because it would swallow
    the rows after it."""

    strict = True


def check_header(header: Sequence[str], *, path: Path) -> None:
    """Raise `BadInput` when two columns have the same name, since we cannot know which is meant."""
    if twice := [name for name in header if header.count(name) > 1]:
        raise BadInput(f"{path}: two of its columns are called {twice[0]!r}: rename one")


def dialect_of(path: Path) -> type[csv.Dialect]:
    """The csv dialect for a .tsv or a .csv file, chosen by its name."""
    return Tabs if path.suffix == ".tsv" else Commas
