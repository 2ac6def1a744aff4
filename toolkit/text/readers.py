"""Documents of any file that can be sharded: a MediaWiki dump, JSON lines, Parquet, plain text.

Knows which file is read how. Refuses to know what becomes of the documents.
"""

import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from toolkit.files import BadInput
from toolkit.text.shards import Article
from toolkit.text.wikipedia import RULES_VERSION, read_articles

JSON_LINES = (".jsonl", ".jsonl.gz")
TEXT_LINES = (".txt", ".txt.gz")
PARQUET = (".parquet",)
DUMP = (".xml", ".bz2", ".gz")
ROWS_PER_BATCH = 1000


@dataclass(frozen=True)
class Columns:
    """Which columns of a table or JSON object hold what."""

    text: str = "text"
    id: str = "id"
    title: str = "title"
    url: str = "url"


def is_dump(path: Path) -> bool:
    """Whether a file is read as a MediaWiki dump; `BadInput` for a name that says nothing."""
    name = path.name.lower()
    if name.endswith(JSON_LINES + TEXT_LINES + PARQUET):
        return False
    if name.endswith(DUMP):
        return True
    known = ", ".join((".xml", ".xml.bz2", ".xml.gz", *JSON_LINES, *TEXT_LINES, *PARQUET))
    raise BadInput(f"{path}: unknown kind of file; give one of {known}")


def reading_settings(path: Path, *, columns: Columns) -> dict[str, str | int | None]:
    """What decides which documents a file gives, besides its bytes."""
    if is_dump(path):
        return {"kind": "mediawiki", "cleaning_rules": RULES_VERSION}
    if path.name.lower().endswith(TEXT_LINES):
        return {"kind": "text"}
    return {"kind": "table", **asdict(columns)}


def read_documents(
    path: Path, *, columns: Columns, on_skip: Callable[[str, str], None]
) -> Iterator[Article]:
    """Yield the documents of a file in its order; a missing id becomes the row number.

    `on_skip` gets a reason and a place ("line 7") for each document that is left out. Raises
    `BadInput` for a file that is absent, empty or damaged, and for a text column that it lacks
    (the message names the columns there are).
    """
    if is_dump(path):
        yield from read_articles(path, on_skip=on_skip)
        return
    if not path.is_file():
        raise BadInput(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise BadInput(f"{path}: is empty")
    if path.name.lower().endswith(TEXT_LINES):
        columns = Columns()
    for number, row in enumerate(_rows(path, columns=columns), start=1):
        problem = row if isinstance(row, str) else _problem(row.get(columns.text))
        if isinstance(row, str) or problem:
            on_skip(problem, f"line {number}")
        else:
            yield _document(row, columns=columns, number=number)


def _document(row: dict[str, Any], *, columns: Columns, number: int) -> Article:
    identifier, title, url = (row.get(name) for name in (columns.id, columns.title, columns.url))
    return Article(
        id=str(number - 1) if identifier is None else _encodable(str(identifier)),
        title="" if title is None else _encodable(str(title)),
        url="" if url is None else _encodable(str(url)),
        text=row[columns.text],
    )


def _rows(path: Path, *, columns: Columns) -> Iterator[dict[str, Any] | str]:
    """Yield a row, or the reason why a line is none."""
    is_json = path.name.lower().endswith(JSON_LINES)
    checked = False
    for row in _stream(path, columns=columns):
        found: dict[str, Any] | str = _parsed(row["text"]) if is_json else row
        if not checked and isinstance(found, dict):
            if columns.text not in found:
                raise BadInput(
                    f"{path}: has no column {columns.text!r}, only "
                    f"{', '.join(sorted(found))}; name one with --text-column"
                )
            checked = True
        yield found


def _stream(path: Path, *, columns: Columns) -> Iterator[dict[str, Any]]:
    # Not datasets.load_dataset(streaming=True): it calls home for a local file, imports torch,
    # gives up a whole file at its first bad line, and ignores `encoding_errors` under gzip.
    name = path.name.lower()
    try:
        if name.endswith(PARQUET):
            table = pq.ParquetFile(path)
            used = [name for name in table.schema_arrow.names if name in astuple(columns)]
            if columns.text not in used:
                yield dict.fromkeys(table.schema_arrow.names)  # for the message of `_rows`
            for batch in table.iter_batches(batch_size=ROWS_PER_BATCH, columns=used):
                yield from batch.to_pylist()
            return
        opener = gzip.open if name.endswith(".gz") else open
        with opener(path, "rt", encoding="utf-8-sig", errors="replace") as handle:
            for line in handle:
                yield {"text": line.removesuffix("\n")}
    except EOFError as error:
        raise BadInput(f"{path}: ends too early; copy or download it again") from error
    except (OSError, ValueError, zlib.error) as error:
        reason = str(error).splitlines()[0]
        raise BadInput(f"{path}: is damaged or of another kind ({reason})") from error


def _parsed(line: str) -> dict[str, Any] | str:
    if not line.strip():
        return "empty"
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return "not valid JSON"
    return row if isinstance(row, dict) else "not a JSON object"


def _problem(text: Any) -> str:
    """Why a text cannot be used; empty when it can."""
    if text is None:
        return "no text"
    if not isinstance(text, str):
        return "text is not a string"
    if not text.strip():
        return "empty"
    if "\0" in text:
        return "NUL character"
    # U+FFFD stands where bytes were not UTF-8, here or in the program that wrote the file.
    if "\ufffd" in text or _encodable(text) != text:
        return "not valid UTF-8"
    return ""


def _encodable(text: str) -> str:
    """The text without lone surrogates, which JSON can spell and UTF-8 cannot."""
    return text.encode("utf-8", "replace").decode()
