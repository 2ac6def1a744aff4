"""Reads the rows of one file or table. A row is parsed only when it is used: skipping is cheap.

Knows how each kind of file is read, and what is wrong with a row. Refuses to know which file is of
which kind (`sources`), and what a document is used for.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, Protocol

import pyarrow.parquet as pq

from toolkit.base.errors import BadInput
from toolkit.base.files import RepeatedName, without_repeats
from toolkit.text.dump import Dump, read_page
from toolkit.text.packed import open_packed
from toolkit.text.records import Article, Damaged, Rejected, read_errors
from toolkit.text.wikitext import UnreadableMarkup, clean_markup, is_redirect, page_url

ROWS_PER_BATCH = 1000
# A longer text is a binary file, a log or a mistake, and could fill the memory of a worker.
MAX_TEXT_BYTES = 32 * 2**20


@dataclass(frozen=True)
class Columns:
    """The names of the columns (or JSON keys) with the text, id, title and address."""

    text: str = "text"
    id: str = "id"
    title: str = "title"
    url: str = "url"


class Source(Protocol):
    """The rows of one input, in order, each with a number from 0."""

    @property
    def seeks(self) -> bool:
        """Whether `rows` can start at any row without reading the rows before it."""

    def rows(self, start: int) -> Iterator[Any]:
        """Raw rows from number `start` on. Raises `Damaged` where reading cannot continue."""

    def num_bytes(self, row: Any) -> int:
        """The size of a raw row in bytes."""

    def document(self, row: Any, *, number: int) -> Article | Rejected:
        """Parse a raw row: the document that it gives, or why it gives none."""


class DumpPages:
    """The pages of a MediaWiki dump; only articles give documents."""

    def __init__(self, path: Path) -> None:
        self._dump = Dump(path)
        self.seeks = self._dump.seeks

    def rows(self, start: int) -> Iterator[bytes]:
        """The XML of each page from page `start` on."""
        return self._dump.pages(start)

    def num_bytes(self, row: bytes) -> int:
        """The size of a page's XML in bytes."""
        return len(row)

    def document(self, row: bytes, *, number: int) -> Article | Rejected:  # noqa: ARG002
        """The prose of a page, if the page is an article with prose."""
        site = self._dump.site
        try:
            page = read_page(row, site=site)
        except ValueError as error:
            return Rejected(str(error), is_bad=True)
        if page.is_redirect or is_redirect(page.wikitext):
            return Rejected("redirect", is_bad=False)
        if page.namespace != 0:
            return Rejected("not an article", is_bad=False)
        try:
            text = clean_markup(page.wikitext, hidden_links=site.hidden_links)
        except UnreadableMarkup:
            return Rejected("unreadable markup", is_bad=True)
        if not text:
            return Rejected("no prose", is_bad=False)
        url = page_url(site.page_url, title=page.title)
        return Article(id=page.id, title=page.title, url=url, text=text)


class Lines:
    """One JSON object per line or, if `columns` is None, one document of plain text per line."""

    seeks = False

    def __init__(self, path: Path, *, name: str, columns: Columns | None) -> None:
        self._path, self._name, self._columns = path, name, columns
        with read_errors(), open_packed(path) as handle:
            head = handle.read(2)
        if head in (b"\xff\xfe", b"\xfe\xff"):
            raise Damaged("is UTF-16; convert it first: iconv -f UTF-16 -t UTF-8")
        if columns is not None:
            self._check_column(columns)

    def rows(self, start: int) -> Iterator[bytes]:
        """Each line from line `start` on; only the beginning of a line that is too long."""
        with open_packed(self._path) as handle, read_errors():
            number = 0
            while line := handle.readline(MAX_TEXT_BYTES + 2):
                if len(line) > MAX_TEXT_BYTES + 1:
                    while not line.endswith(b"\n") and (more := handle.readline(2**20)):
                        line = line[: MAX_TEXT_BYTES + 1] + more[-1:]
                if number >= start:
                    yield line
                number += 1

    def num_bytes(self, row: bytes) -> int:
        """The size of a line in bytes."""
        return len(row)

    def document(self, row: bytes, *, number: int) -> Article | Rejected:
        """The document that a line holds."""
        line = row.removesuffix(b"\n").removesuffix(b"\r")
        if number == 0:  # a byte order mark belongs to the file, not to its first line
            line = line.removeprefix(b"\xef\xbb\xbf")
        if len(line) > MAX_TEXT_BYTES:
            return Rejected(f"longer than {MAX_TEXT_BYTES // 2**20} MiB", is_bad=True)
        if not line.strip():
            return Rejected("blank line", is_bad=False)
        try:
            text = line.decode()
        except UnicodeDecodeError:
            return Rejected("not valid UTF-8", is_bad=True)
        if self._columns is None:
            # Its number is all that such a line can be named by, so it lacks nothing.
            named = {"text": text, "id": f"{self._name}:{number}"}
            return _document(named, columns=Columns(), name=self._name, number=number)
        try:
            parsed = json.loads(text, object_pairs_hook=without_repeats)
        except RepeatedName as error:
            return Rejected(str(error), is_bad=True)
        except (ValueError, RecursionError):
            return Rejected("not valid JSON", is_bad=True)
        if not isinstance(parsed, dict):
            return Rejected("not a JSON object", is_bad=True)
        return _document(parsed, columns=self._columns, name=self._name, number=number)

    def _check_column(self, columns: Columns) -> None:
        """Raise `BadInput` if the first object lacks the text column: a mistyped column name would
        otherwise reject every line."""
        for line in self.rows(0):
            try:
                first = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(first, dict):
                _require_column(columns.text, among=first, name=self._name)
                return


class _Rows(Protocol):
    """A table that can be read from any row on."""

    columns: list[str]

    def batches(self, start: int, *, columns: list[str]) -> Iterator[list[dict[str, Any]]]:
        """The rows from `start` on, in lists of some rows each."""


class Table:
    """The rows of a table, such as a Parquet file, as a `Source`."""

    seeks = True

    def __init__(self, table: _Rows, *, name: str, columns: Columns) -> None:
        _require_column(columns.text, among=table.columns, name=name)
        self._table, self._name, self._columns = table, name, columns
        self._used = [column for column in table.columns if column in astuple(columns)]

    def rows(self, start: int) -> Iterator[dict[str, Any]]:
        """Each row from row `start` on, as a mapping from the columns in use."""
        with read_errors():
            for batch in self._table.batches(start, columns=self._used):
                yield from batch

    def num_bytes(self, row: dict[str, Any]) -> int:
        """The size of a row's text in bytes of UTF-8."""
        text = row.get(self._columns.text)
        return len(text.encode("utf-8", "replace")) if isinstance(text, str) else 0

    def document(self, row: dict[str, Any], *, number: int) -> Article | Rejected:
        """The document that a row holds."""
        return _document(row, columns=self._columns, name=self._name, number=number)


class ParquetRows:
    """A Parquet file; its row groups let reading start at any row."""

    def __init__(self, path: Path) -> None:
        with read_errors():
            # Compares the checksums of pages, if the file has any: most writers leave them out.
            self._file = pq.ParquetFile(path, page_checksum_verification=True)
            metadata = self._file.metadata
            sizes = [metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)]
        if sum(sizes) != metadata.num_rows:
            raise Damaged(f"is damaged ({sum(sizes)} rows, where it says {metadata.num_rows})")
        self.columns = self._file.schema_arrow.names

    def batches(self, start: int, *, columns: list[str]) -> Iterator[list[dict[str, Any]]]:
        metadata = self._file.metadata
        groups: list[int] = []
        first = 0
        for group in range(metadata.num_row_groups):
            size = metadata.row_group(group).num_rows
            if groups or first + size > start:
                groups.append(group)
            else:
                first += size
        skipped = start - first
        missing = sum(metadata.row_group(group).num_rows for group in groups)
        for batch in self._file.iter_batches(
            batch_size=ROWS_PER_BATCH, row_groups=groups, columns=columns
        ):
            if skipped < len(batch):
                yield batch.slice(skipped).to_pylist()
            skipped = max(0, skipped - len(batch))
            missing -= len(batch)
        if missing:
            raise Damaged(f"is damaged ({missing} rows fewer than it says)")


class DatasetRows:
    """A split of a data set of Hugging Face's `datasets`, by its hub name or its folder."""

    def __init__(self, path: str, *, config: str | None, split: str) -> None:
        import datasets  # here, because it takes half a second and other readers do not need it

        try:
            if Path(path).is_dir():
                table = datasets.load_from_disk(path)
                if isinstance(table, datasets.DatasetDict):
                    if split not in table:
                        raise LookupError(f"no split {split!r}, only {', '.join(table)}")
                    table = table[split]
            else:
                table = datasets.load_dataset(path, config, split=split)
        except Exception as error:  # the library raises a dozen unrelated classes
            reason = " ".join(str(error).split())[:200]
            raise BadInput(f"data set {path!r}: {reason}") from error
        self._rows = table
        self.columns: list[str] = table.column_names
        self.features: dict[str, Any] = dict(table.features)
        self.num_rows: int = len(table)
        # For a data set of the hub it depends on the revision and the split.
        self.fingerprint = str(table._fingerprint)

    def batches(self, start: int, *, columns: list[str]) -> Iterator[list[dict[str, Any]]]:
        rows = self._rows.select_columns(columns)
        for first in range(start, len(rows), ROWS_PER_BATCH):
            batch = rows[first : first + ROWS_PER_BATCH]
            yield [
                dict(zip(batch, values, strict=True))
                for values in zip(*batch.values(), strict=True)
            ]


def _document(
    row: dict[str, Any], *, columns: Columns, name: str, number: int
) -> Article | Rejected:
    text = row.get(columns.text)
    if problem := text_problem(text):
        return Rejected(problem, is_bad=True)
    identifier, title, url = (
        row.get(column) for column in (columns.id, columns.title, columns.url)
    )
    lacks_id = _is_absent(identifier)
    return Article(
        id=f"{name}:{number}" if lacks_id else _encodable(str(identifier)),
        title="" if title is None else _encodable(str(title)),
        url="" if url is None else _encodable(str(url)),
        text=str(text),
        lacks_id=lacks_id,
    )


def _is_absent(identifier: Any) -> bool:
    """Whether this names no document: null, NaN (what pandas writes for a missing number), or
    nothing but white space. Several such rows would otherwise repeat each other's id."""
    is_nan = isinstance(identifier, float) and math.isnan(identifier)
    return identifier is None or is_nan or (isinstance(identifier, str) and not identifier.strip())


def text_problem(text: Any) -> str:
    """Why a text cannot be used, in a few words; empty if it can."""
    if text is None:
        return "no text"
    if not isinstance(text, str):
        return "text is not a string"
    if not text.strip():
        return "empty"
    if "\0" in text:
        return "NUL character"
    if _encodable(text) != text:
        return "not valid UTF-8"
    if len(text) > MAX_TEXT_BYTES:
        return f"longer than {MAX_TEXT_BYTES // 2**20} MiB"
    return ""


def _encodable(text: str) -> str:
    """The text without lone surrogates, which JSON can express but UTF-8 cannot."""
    return text.encode("utf-8", "replace").decode()


def _require_column(column: str, *, among: Any, name: str) -> None:
    if column not in among:
        raise BadInput(
            f"{name}: has no column {column!r}, only {', '.join(sorted(among))}; "
            "name one with --text-column (in a recipe text_column)"
        )
