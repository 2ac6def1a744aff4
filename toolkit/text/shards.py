"""A directory of shards: documents and their sentences, written once, read in any order.

Knows the manifest, the Parquet columns, and what makes a directory whole. Refuses to know where
documents come from (`sources`, `sharding`) and in which order they are trained on (`stream`).

    DIR/shard-00000.parquet ...  DIR/manifest.json  DIR/summary.json  DIR/quarantine.jsonl
    DIR/duplicates.parquet  DIR/COMMITTED
"""

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from typing_extensions import TypedDict

from toolkit.base.documents import Count, Digest, FileName, checked
from toolkit.base.errors import BadInput
from toolkit.base.files import write_atomic
from toolkit.base.layout import MANIFEST_FILE
from toolkit.text.copies import CACHE, ArrowCopy, open_copy
from toolkit.text.manifest import Manifest, again, check_files, read_manifest
from toolkit.text.records import Article
from toolkit.text.sentences import MIN_CHARS, MIN_WORDS, sentence_spans
from toolkit.text.tally import Summary, Tally, tally_fault, tally_of

FORMAT = "toolkit-shards/2"
HOW_TO_MAKE = "make it with: python data_scripts/shard_wikipedia.py --input DUMP --output"
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("title", pa.string()),
        ("url", pa.string()),
        ("text", pa.string()),
        # Stored, because counting characters at every start would read the whole corpus.
        ("num_chars", pa.int32()),
        ("sentence_starts", pa.list_(pa.int32())),
        ("sentence_ends", pa.list_(pa.int32())),
    ]
)
RECORD = ("id", "title", "url", "text")
_SHARD_NAME = re.compile(r"shard-[0-9]{5,}\.parquet")


@dataclass(frozen=True)
class ShardRules:
    """How documents are cut into sentences and shards.

    A shard holds the documents kept from `rows_per_shard` rows of input (pages, lines), and at most
    `bytes_per_shard` bytes of UTF-8 text before compression; a longer document is a shard by
    itself.
    """

    language: str = "en"
    rows_per_shard: int = 10_000
    bytes_per_shard: int = 128 * 2**20
    min_chars: int = MIN_CHARS
    min_words: int = MIN_WORDS

    def __post_init__(self) -> None:
        if self.rows_per_shard < 1 or self.bytes_per_shard < 1:
            raise BadInput("rows per shard and bytes per shard must be at least 1")


def write_shard(articles: Sequence[Article], *, path: Path, rules: ShardRules) -> dict[str, Any]:
    """Write the Parquet file of some documents; returns its entry in the manifest.

    Equal documents and rules give equal bytes.
    """
    spans = [
        sentence_spans(
            article.text,
            language=rules.language,
            min_chars=rules.min_chars,
            min_words=rules.min_words,
        )
        for article in articles
    ]
    columns: dict[str, list[Any]] = {
        name: [getattr(article, name) for article in articles] for name in RECORD
    }
    columns["num_chars"] = [len(article.text) for article in articles]
    columns["sentence_starts"] = [[start for start, _ in of_article] for of_article in spans]
    columns["sentence_ends"] = [[end for _, end in of_article] for of_article in spans]
    return write_table(pa.table(columns, schema=SCHEMA), path=path)


def write_table(table: pa.Table, *, path: Path) -> dict[str, Any]:
    """Write a table that has the columns of a shard; returns its entry in the manifest."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", row_group_size=1000)
    data = sink.getvalue().to_pybytes()
    write_atomic(path, data)
    return {
        "file": path.name,
        "rows": len(table),
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "num_chars": pc.sum(table["num_chars"]).as_py() or 0,
        "num_sentences": pc.sum(pc.list_value_length(table["sentence_starts"])).as_py() or 0,
    }


def open_shards(directory: Path, *, verify: bool = True) -> "ShardSet":
    """Open a shard directory after checking that it is whole.

    Every shard's size is compared and, with `verify`, its SHA-256 (one rank is enough for that).
    Rows are read from the memory-mapped Arrow copy of the shards. It lies in `.cache` inside the
    directory, or in the default cache of `datasets` if the directory cannot be written. Every byte
    of it is compared with its SHA-256 too, with `verify` now, otherwise when it is first read
    (`copies`). Raises `BadInput`, which names what is absent or damaged.
    """
    directory = directory.absolute()  # a loader process may have another working directory
    manifest = checked_manifest(directory, verify=verify)
    copy = open_copy(directory, entries=manifest["shards"], schema=SCHEMA, verify=verify)
    shards = ShardSet(copy, digest=_shards_digest(manifest), tally=_tally(manifest))
    for name, counts in (
        ("num_chars", shards.num_chars),
        ("num_sentences", shards.num_sentences),
    ):
        # Every process reads these two columns of all rows. To compare all bytes for that would
        # take too long, so compare their sums.
        if int(counts.sum(dtype=np.int64)) != sum(shard[name] for shard in manifest["shards"]):
            raise BadInput(f"{directory / CACHE}: is damaged ({name} differ); delete it")
    return shards


class ShardSet:
    """The rows of all shards in order, memory-mapped: a row is read when it is asked for.

    `num_chars` (int64) and `num_sentences` (int32) have one entry per row. `digest` identifies the
    content of all shards. `tally` counts the rows of the source; it is None if the manifest has no
    summary. A ShardSet can be pickled to loader processes, which map the same file.
    """

    def __init__(self, copy: ArrowCopy, *, digest: str, tally: Tally | None = None) -> None:
        self.digest, self.tally = digest, tally
        self._copy, rows = copy, copy.rows
        self.num_rows: int = len(rows)
        table = rows.data.table
        starts = table.column("sentence_starts")
        self.num_chars: NDArray[np.int64] = table.column("num_chars").to_numpy().astype(np.int64)
        self.num_sentences: NDArray[np.int32] = (
            pc.list_value_length(starts).to_numpy().astype(np.int32)
        )
        # Views with few columns: reading a text must not decode its sentence offsets too.
        self._texts = rows.select_columns(["text"])
        self._records = rows.select_columns(list(RECORD))
        self._sentences = rows.select_columns(["text", "sentence_starts", "sentence_ends"])

    def __len__(self) -> int:
        return self.num_rows

    def text(self, row: int) -> str:
        """The text of the document in a row."""
        self._copy.need(row, row + 1)
        text: str = self._texts[int(row)]["text"]
        return text

    def record(self, row: int) -> dict[str, str]:
        """The id, title, url and text of a row."""
        self._copy.need(row, row + 1)
        record: dict[str, str] = self._records[int(row)]
        return record

    def records(self, start: int, stop: int) -> list[dict[str, str]]:
        """The records of rows `start` to `stop` (exclusive; cut at the last row), read at once."""
        self._copy.need(start, min(stop, self.num_rows))
        columns = self._records[int(start) : int(stop)]
        return [
            dict(zip(RECORD, values, strict=True))
            for values in zip(*(columns[name] for name in RECORD), strict=True)
        ]

    def sentence(self, row: int, k: int) -> str:
        """The k-th kept sentence of a row, 0 <= k < num_sentences[row]."""
        self._copy.need(row, row + 1)
        record = self._sentences[int(row)]
        text: str = record["text"]
        return text[record["sentence_starts"][k] : record["sentence_ends"][k]]


class _Shard(TypedDict):
    file: str
    rows: Count
    bytes: Count
    sha256: Digest
    num_chars: Count
    num_sentences: Count


class _Settings(TypedDict):
    limit: NotRequired[Count | None]


class Listed(TypedDict):
    """The keys that a manifest of shards must have to be read."""

    rows: Count
    shards: list[_Shard]
    files: NotRequired[dict[FileName, Digest]]
    summary: NotRequired[Summary]
    settings: NotRequired[_Settings]


def checked_manifest(directory: Path, *, verify: bool) -> Manifest:
    """The manifest of a complete directory; `BadInput` names what is absent or damaged."""
    manifest = read_manifest(directory, form=FORMAT, how_to_make=HOW_TO_MAKE)
    checked(manifest, Listed, source=directory / MANIFEST_FILE, advice=again(directory))
    check_files(directory, manifest["shards"], names=_SHARD_NAME, verify=verify)
    tally = _tally(manifest)
    if tally and (fault := tally_fault(tally, documents=manifest["rows"])):
        raise BadInput(f"{directory / MANIFEST_FILE}: does not add up: {fault}; {again(directory)}")
    return manifest


def ids_of_shards(directory: Path, *, digest: str) -> Iterator[list[str]] | None:
    """The ids of all documents in order, a shard at a time; None if the shards there are not those
    with this `ShardSet.digest`, are not whole, or may not be read. Raises `BadInput` for a shard
    that turns out to be damaged."""
    try:
        manifest = checked_manifest(directory, verify=False)
    except (BadInput, OSError):
        return None
    if _shards_digest(manifest) != digest:
        return None
    return (_ids_of(directory / shard["file"]) for shard in manifest["shards"])


def _ids_of(shard: Path) -> list[str]:
    try:
        ids: list[str] = pq.read_table(shard, columns=["id"])["id"].to_pylist()
    except (OSError, ValueError, pa.ArrowException) as error:
        raise BadInput(f"{shard}: is damaged; {again(shard.parent)}") from error
    return ids


def _tally(manifest: Manifest) -> Tally | None:
    summary = manifest.get("summary")
    limit = manifest.get("settings", {}).get("limit")
    return tally_of(summary, limit=limit) if summary else None


def _shards_digest(manifest: Manifest) -> str:
    digests = "\n".join(shard["sha256"] for shard in manifest["shards"])
    return hashlib.sha256(digests.encode()).hexdigest()
