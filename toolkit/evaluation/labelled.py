"""Rows of named columns from a file: .csv or .tsv with a header line, or .jsonl."""

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from toolkit.base.errors import BadInput
from toolkit.base.files import without_repeats
from toolkit.text.delimited import UTF_8, check_header, dialect_of

MAX_SHOWN = 80
LABEL = ("label", "category", "label_text")


def read_columns(path: Path, *, columns: Sequence[Sequence[str]]) -> list[list[str]]:
    """The values of each of `columns`, row by row. A column is given by the names it may have.

    Raises `BadInput` with the line that cannot be read, with the existing names when a column is
    missing, and for a file without rows.
    """
    if path.suffix not in (".csv", ".tsv", ".jsonl"):
        raise BadInput(f"{path}: is neither .csv nor .tsv (with a header line) nor .jsonl")
    table: list[list[str]] = [[] for _ in columns]
    names: list[str] | None = None
    try:
        for where, row in _rows(path):
            # The first row decides under which of its names each column goes.
            names = names or [_named(row, column, where=where) for column in columns]
            for values, name in zip(table, names, strict=True):
                value = row.get(name)
                if not isinstance(value, str | int | float):
                    raise BadInput(f"{where}: {name!r} is {str(value)[:MAX_SHOWN]!r}, not a text")
                values.append(str(value))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadInput(f"{path}: cannot be read ({error})") from error
    if not table[0]:
        raise BadInput(f"{path}: no rows")
    return table


def read_labelled(path: Path) -> tuple[list[str], list[str]]:
    """Texts (column `text`) and their labels (column `label`, `category` or `label_text`)."""
    texts, labels = read_columns(path, columns=(("text",), LABEL))
    return texts, labels


def _rows(path: Path) -> Iterator[tuple[str, Mapping[str, object]]]:
    # newline="": a quoted field may hold a line break, and a JSON text may hold U+2028.
    with path.open(encoding=UTF_8, newline="") as handle:
        if path.suffix == ".jsonl":
            for number, line in enumerate(handle, 1):
                where = f"{path}, line {number}"
                try:
                    row = json.loads(line, object_pairs_hook=without_repeats)
                except (ValueError, RecursionError) as error:
                    raise BadInput(f"{where}: is not JSON ({error})") from error
                if not isinstance(row, dict):
                    raise BadInput(f'{where}: is not like {{"text": "...", "label": "..."}}')
                yield where, row
            return
        reader = csv.DictReader(handle, dialect=dialect_of(path))
        check_header(reader.fieldnames or [], path=path)
        for fields in reader:
            where = f"{path}, line {reader.line_num}"
            if None in fields:
                raise BadInput(f"{where}: more fields than the header has")
            yield where, fields


def _named(row: Mapping[str, object], names: Sequence[str], *, where: str) -> str:
    for name in names:
        if name in row:
            return name
    raise BadInput(
        f"{where}: no column {' or '.join(names)!r}; there are {', '.join(map(str, row))}"
    )
