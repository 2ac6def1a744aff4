"""The rows of one file or table, parsed only by whoever works on them: skipping is cheap.

Knows how each kind of file is read, and what is wrong with a row. Refuses to know which file is of
which kind (`sources`), and what becomes of a document.
"""

import json
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
# A longer text is a binary file, a log or a mistake, and would take a worker's memory for itself.
MAX_TEXT_BYTES = 32 * 2**20


@dataclass(frozen=True)
class Columns:
    """Which columns of a table or JSON object hold what."""

    text: str = "text"
    id: str = "id"
    title: str = "title"
    url: str = "url"


class Source(Protocol):
    """The rows of one input, in order, each with a number from 0."""

    @property
    def seeks(self) -> bool:
        """Whether `rows` gets to any place at once, without passing the rows before."""

    def rows(self, start: int) -> Iterator[Any]:
        """Raw rows from number `start` on. Raises `Damaged` where the file cannot be read on."""

    def num_bytes(self, row: Any) -> int:
        """The size of a raw row."""

    def document(self, row: Any, *, number: int) -> Article | Rejected:
        """What a raw row gives."""


class DumpPages:
    """The pages of a MediaWiki dump; other pages than articles are left out."""

    def __init__(self, path: Path) -> None:
        self._dump = Dump(path)
        self.seeks = self._dump.seeks

    def rows(self, start: int) -> Iterator[bytes]:
        """The XML of each page."""
        return self._dump.pages(start)

    def num_bytes(self, row: bytes) -> int:
        """The size of a page."""
        return len(row)

    def document(self, row: bytes, *, number: int) -> Article | Rejected:  # noqa: ARG002
        """The prose of a page, when it is an article."""
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
    """A JSON object a line, or with `columns` None a document a line."""

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
        """Each line; of one that is too long, its beginning."""
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
        """The size of a line."""
        return len(row)

    def document(self, row: bytes, *, number: int) -> Article | Rejected:
        """The document of a line."""
        line = row.removesuffix(b"\n").removesuffix(b"\r")
        if number == 0:
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
            return _document({"text": text}, columns=Columns(), name=self._name, number=number)
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
        """Look at the first object: a slip in a column's name would reject every line."""
        for line in self.rows(0):
            try:
                found = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(found, dict):
                _require_column(columns.text, found=found, name=self._name)
                return


class _Rows(Protocol):
    """A table that gives any of its rows."""

    columns: list[str]

    def batches(self, start: int, *, columns: list[str]) -> Iterator[list[dict[str, Any]]]:
        """The rows from `start` on, some at a time."""


class Table:
    """The rows of a table."""

    seeks = True

    def __init__(self, table: _Rows, *, name: str, columns: Columns) -> None:
        _require_column(columns.text, found=table.columns, name=name)
        self._table, self._name, self._columns = table, name, columns
        self._used = [column for column in table.columns if column in astuple(columns)]

    def rows(self, start: int) -> Iterator[dict[str, Any]]:
        """Each row as a mapping of the columns in use."""
        with read_errors():
            for batch in self._table.batches(start, columns=self._used):
                yield from batch

    def num_bytes(self, row: dict[str, Any]) -> int:
        """The size of a row's text."""
        text = row.get(self._columns.text)
        return len(text.encode("utf-8", "replace")) if isinstance(text, str) else 0

    def document(self, row: dict[str, Any], *, number: int) -> Article | Rejected:
        """The document of a row."""
        return _document(row, columns=self._columns, name=self._name, number=number)


class ParquetRows:
    """A Parquet file; any row is found by its row group."""

    def __init__(self, path: Path) -> None:
        with read_errors():
            # Files have checksums where their writer was asked for them.
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
        import datasets  # here: half a second that other readers need not spend

        try:
            if Path(path).is_dir():
                found = datasets.load_from_disk(path)
                if isinstance(found, datasets.DatasetDict):
                    if split not in found:
                        raise LookupError(f"no split {split!r}, only {', '.join(found)}")
                    found = found[split]
            else:
                found = datasets.load_dataset(path, config, split=split)
        except Exception as error:  # the library raises a dozen unrelated classes
            reason = " ".join(str(error).split())[:200]
            raise BadInput(f"data set {path!r}: {reason}") from error
        self._rows = found
        self.columns: list[str] = found.column_names
        self.features: dict[str, Any] = dict(found.features)
        self.num_rows: int = len(found)
        # Of a data set of the hub it follows from the revision and the split.
        self.fingerprint = str(found._fingerprint)

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
    return Article(
        id=f"{name}:{number}" if identifier is None else _encodable(str(identifier)),
        title="" if title is None else _encodable(str(title)),
        url="" if url is None else _encodable(str(url)),
        text=str(text),
    )


def text_problem(text: Any) -> str:
    """Why a text cannot be used; empty when it can."""
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
    """The text without lone surrogates, which JSON can spell and UTF-8 cannot."""
    return text.encode("utf-8", "replace").decode()


def _require_column(column: str, *, found: Any, name: str) -> None:
    if column not in found:
        raise BadInput(
            f"{name}: has no column {column!r}, only {', '.join(sorted(found))}; "
            "name one with --text-column"
        )
