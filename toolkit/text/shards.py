"""A directory of shards: documents and their sentences, written once, read at random.

Knows the manifest, the Parquet columns, and what makes a directory whole. Refuses to know where
documents come from (`readers`, `wikipedia`) and in which order they are trained on (`stream`).
"""

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from toolkit.files import (
    BadInput,
    committed_directory,
    is_committed,
    read_json,
    sha256_of,
    write_json,
)
from toolkit.text.sentences import MIN_CHARS, MIN_WORDS, sentence_spans

FORMAT = "toolkit-shards/1"
MANIFEST = "manifest.json"
CACHE = ".cache"
HOW_TO_MAKE = "make it with: python data_scripts/shard_wikipedia.py --input DUMP --output"
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("title", pa.string()),
        ("url", pa.string()),
        ("text", pa.string()),
        # Kept beside the text: counting characters again would read the whole corpus at each start.
        ("num_chars", pa.int32()),
        ("sentence_starts", pa.list_(pa.int32())),
        ("sentence_ends", pa.list_(pa.int32())),
    ]
)
RECORD = ("id", "title", "url", "text")
_SHARD_NAME = re.compile(r"shard-[0-9]{5,}\.parquet")
_SELF_DIGEST = "manifest_sha256"

Manifest = dict[str, Any]


@dataclass(frozen=True)
class Article:
    """A document: its text is plain prose, paragraphs separated by one newline."""

    id: str
    title: str
    url: str
    text: str


@dataclass(frozen=True)
class ShardRules:
    """How documents are cut into sentences and shards. A shard ends at either bound.

    `bytes_per_shard` counts UTF-8 text before compression; one longer document is its own shard.
    """

    language: str = "en"
    rows_per_shard: int = 10_000
    bytes_per_shard: int = 256 * 2**20
    min_chars: int = MIN_CHARS
    min_words: int = MIN_WORDS

    def __post_init__(self) -> None:
        if self.rows_per_shard < 1 or self.bytes_per_shard < 1:
            raise BadInput("rows per shard and bytes per shard must be at least 1")


@dataclass(frozen=True)
class Origin:
    """Where documents come from and how they were read: equal origins give equal documents."""

    name: str
    sha256: str
    reading: Mapping[str, str | int | None]


def write_shards(
    articles: Iterable[Article],
    *,
    directory: Path,
    origin: Origin,
    rules: ShardRules,
    skipped: Mapping[str, int],
) -> Manifest:
    """Write a whole shard directory, or nothing; returns its manifest.

    `skipped` (reason -> count) is read after the last article, so that a lazy reader can fill
    it. Equal input gives equal bytes. Raises `BadInput` when there is no article, and when
    `directory` holds anything but what a killed run of ours left there (`committed_directory`).
    """
    directory = directory.absolute()
    try:
        with committed_directory(directory) as temporary:
            shards = [
                _write_shard(rows, path=temporary / f"shard-{number:05d}.parquet", rules=rules)
                for number, rows in enumerate(_batches(articles, rules=rules))
            ]
            if not shards:
                counts = ", ".join(f"{count} {reason}" for reason, count in sorted(skipped.items()))
                raise BadInput(f"{origin.name}: no document to keep (skipped: {counts or 'none'})")
            content: Manifest = {
                "format": FORMAT,
                "shards": shards,
                "rows": sum(shard["rows"] for shard in shards),
                "skipped": dict(skipped),
                "source": {"name": origin.name, "sha256": origin.sha256},
                "settings": _settings(origin, rules=rules),
            }
            content[_SELF_DIGEST] = _content_digest(content)
            write_json(temporary / MANIFEST, content)
    except PermissionError as error:
        raise BadInput(f"{directory}: cannot be written ({error.strerror})") from error
    # Read back: another process may have been quicker, and with other settings.
    written = written_shards(directory, origin=origin, rules=rules)
    if written is None:
        raise BadInput(f"{directory}: another process is writing here; try again when it is done")
    return written


def written_shards(directory: Path, *, origin: Origin, rules: ShardRules) -> Manifest | None:
    """The manifest when these very shards are already there and whole; None when nothing is.

    Raises `BadInput` when the directory holds shards of another origin or other rules, or
    damaged ones.
    """
    if not is_committed(directory):
        return None
    manifest = _checked_manifest(directory, verify=True)
    wanted = _settings(origin, rules=rules)
    if manifest["source"]["sha256"] != origin.sha256 or manifest["settings"] != wanted:
        raise BadInput(
            f"{directory}: holds shards of {manifest['source']['name']} made with other input or "
            "settings; give another output directory, or delete this one"
        )
    return manifest


def open_shards(directory: Path, *, verify: bool = True) -> "ShardSet":
    """Open a shard directory after checking that it is whole.

    Every shard's size is checked, and its SHA-256 with `verify` (leave that to rank 0). Raises
    `BadInput` that names what is absent or damaged. The memory-mapped Arrow copy of the shards
    goes to `.cache` inside the directory, or to the default cache of `datasets` when the
    directory cannot be written.
    """
    # Imported here: half a second that a login node need not spend.
    import datasets

    directory = directory.absolute()  # a loader process may have another working directory
    manifest = _checked_manifest(directory, verify=verify)
    files = [str(directory / shard["file"]) for shard in manifest["shards"]]
    cache = str(directory / CACHE) if os.access(directory, os.W_OK) else None
    try:
        with _silent_datasets():
            rows = datasets.Dataset.from_parquet(files, cache_dir=cache)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        if isinstance(cause := error.__cause__ or error, OSError) and cause.errno:
            where = cache or "the default cache of datasets"
            raise BadInput(
                f"{where}: cannot hold the Arrow copy of {directory} ({cause.strerror}); "
                "make room, or name another place with HF_DATASETS_CACHE"
            ) from error
        raise BadInput(
            f"{directory}: a shard is not readable Parquet; {_again(directory)}"
        ) from error
    if len(rows) != manifest["rows"] or set(rows.column_names) != set(SCHEMA.names):
        raise BadInput(
            f"{directory}: rows or columns differ from the manifest; {_again(directory)}"
        )
    return ShardSet(rows, digest=_shards_digest(manifest))


class ShardSet:
    """The rows of all shards in order, memory-mapped: rows are read when they are asked for.

    `num_chars` (int64) and `num_sentences` (int32) have one entry per row. `digest` identifies
    the content of all shards. It can be pickled to loader processes, which map the same file.
    """

    def __init__(self, rows: Any, *, digest: str) -> None:
        self.digest = digest
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
        """The text of a row."""
        text: str = self._texts[int(row)]["text"]
        return text

    def record(self, row: int) -> dict[str, str]:
        """The id, title, url and text of a row."""
        record: dict[str, str] = self._records[int(row)]
        return record

    def records(self, start: int, stop: int) -> list[dict[str, str]]:
        """The records of rows `start` to `stop` (exclusive, cut at the end), read in one go."""
        columns = self._records[int(start) : int(stop)]
        return [
            dict(zip(RECORD, values, strict=True))
            for values in zip(*(columns[name] for name in RECORD), strict=True)
        ]

    def sentence(self, row: int, k: int) -> str:
        """The k-th kept sentence of a row, 0 <= k < num_sentences[row]."""
        found = self._sentences[int(row)]
        text: str = found["text"]
        return text[found["sentence_starts"][k] : found["sentence_ends"][k]]


@contextlib.contextmanager
def _silent_datasets() -> Iterator[None]:
    """No progress bars and no log lines of `datasets`: what went wrong, our one line says."""
    import datasets

    had_bars = not datasets.are_progress_bars_disabled()
    level = datasets.logging.get_verbosity()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        yield
    finally:
        datasets.logging.set_verbosity(level)
        if had_bars:
            datasets.enable_progress_bars()


def _batches(articles: Iterable[Article], *, rules: ShardRules) -> Iterator[list[Article]]:
    batch: list[Article] = []
    num_bytes = 0
    for article in articles:
        size = len(article.text.encode())
        full = len(batch) == rules.rows_per_shard or num_bytes + size > rules.bytes_per_shard
        if batch and full:
            yield batch
            batch, num_bytes = [], 0
        batch.append(article)
        num_bytes += size
    if batch:
        yield batch


def _write_shard(rows: list[Article], *, path: Path, rules: ShardRules) -> dict[str, Any]:
    """Write one Parquet file; returns its entry in the manifest."""
    spans = [
        sentence_spans(
            row.text,
            language=rules.language,
            min_chars=rules.min_chars,
            min_words=rules.min_words,
        )
        for row in rows
    ]
    columns: dict[str, list[Any]] = {name: [getattr(row, name) for row in rows] for name in RECORD}
    columns["num_chars"] = [len(row.text) for row in rows]
    columns["sentence_starts"] = [[start for start, _ in row_spans] for row_spans in spans]
    columns["sentence_ends"] = [[end for _, end in row_spans] for row_spans in spans]
    table = pa.table(columns, schema=SCHEMA)
    pq.write_table(table, path, compression="zstd", row_group_size=1000)
    return {
        "file": path.name,
        "rows": len(rows),
        "bytes": path.stat().st_size,
        "sha256": sha256_of(path),
        "num_chars": sum(columns["num_chars"]),
        "num_sentences": sum(map(len, spans)),
    }


def _settings(origin: Origin, *, rules: ShardRules) -> dict[str, Any]:
    return {**asdict(rules), "reading": dict(origin.reading)}


def _checked_manifest(directory: Path, *, verify: bool) -> Manifest:
    if not directory.is_dir():
        raise BadInput(f"{directory}: no such directory; {HOW_TO_MAKE} {directory}")
    if not is_committed(directory):
        state = "was not written to its end" if (directory / MANIFEST).exists() else "has no shards"
        raise BadInput(f"{directory}: {state}; {HOW_TO_MAKE} {directory}")
    path = directory / MANIFEST
    manifest: Manifest = read_json(path)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise BadInput(f"{path}: is not a manifest of the format {FORMAT}; {_again(directory)}")
    shards = manifest.get("shards")
    names = [str(shard.get("file")) for shard in shards] if isinstance(shards, list) else []
    for name in names:
        if not _SHARD_NAME.fullmatch(name):
            raise BadInput(f"{path}: names the file {name!r}, not a shard in this directory")
    if not names or manifest.get(_SELF_DIGEST) != _content_digest(manifest):
        raise BadInput(f"{path}: is damaged (its digest differs); {_again(directory)}")
    for shard in manifest["shards"]:
        _check_shard(directory, shard=shard, verify=verify)
    return manifest


def _check_shard(directory: Path, *, shard: Mapping[str, Any], verify: bool) -> None:
    path = directory / shard["file"]
    if not path.is_file():
        raise BadInput(f"{path}: is missing; {_again(directory)}")
    size = path.stat().st_size
    if size != shard["bytes"]:
        raise BadInput(
            f"{path}: is damaged ({size} bytes, not {shard['bytes']}); {_again(directory)}"
        )
    if verify and sha256_of(path) != shard["sha256"]:
        raise BadInput(f"{path}: is damaged (its SHA-256 differs); {_again(directory)}")


def _again(directory: Path) -> str:
    return f"delete {directory} and make it again, or copy it again"


def _content_digest(manifest: Manifest) -> str:
    content = {key: value for key, value in manifest.items() if key != _SELF_DIGEST}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _shards_digest(manifest: Manifest) -> str:
    digests = "\n".join(shard["sha256"] for shard in manifest["shards"])
    return hashlib.sha256(digests.encode()).hexdigest()
