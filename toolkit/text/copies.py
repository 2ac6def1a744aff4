"""The Arrow copy of a directory's Parquet files: made by `datasets`, verified by us.

Knows where the copy is, and the record beside it: the SHA-256 of each stretch (the bytes of one
batch of rows) of its files. The record is written once the rows were compared with those of the
Parquet files. Refuses to know what the rows mean.
"""

import contextlib
import dataclasses
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from typing_extensions import TypedDict

from toolkit.base.console import at_work
from toolkit.base.documents import Count, Digest, FileName, checked
from toolkit.base.errors import BadInput
from toolkit.base.files import read_json, write_json
from toolkit.base.sealed import content_digest, is_sealed, sealed
from toolkit.text.manifest import again

CACHE = ".cache"
RECORD = "toolkit-digests.json"
FORMAT = "toolkit-copy/1"


class _Stretch(TypedDict):
    """Bytes of a file, from the end of the previous stretch to `end`, with their row count."""

    file: FileName
    end: Count
    rows: Count
    sha256: Digest


class _Record(TypedDict):
    format: str
    content: str
    stretches: list[_Stretch]


@dataclasses.dataclass
class ArrowCopy:
    """The rows of all files in order, as a memory-mapped data set of `datasets`. A reader calls
    `need` before it reads rows: each stretch of the copy is compared with its SHA-256 once per
    process, when a row of it is first needed (0.6 s of one core per GB). It can be pickled."""

    rows: Any
    _folder: Path
    _stretches: list[_Stretch]

    def __post_init__(self) -> None:
        counts = [stretch["rows"] for stretch in self._stretches]
        self._ends = np.cumsum(counts, dtype=np.int64)
        self._open = np.ones(len(counts), dtype=bool)
        if (int(self._ends[-1]) if counts else 0) != len(self.rows):
            raise self._damaged(self._folder / RECORD)

    def need(self, start: int, stop: int) -> None:
        """Compare the stretches with rows `start` to `stop` (exclusive), before they are read.
        `BadInput` names the file of the copy that is damaged there."""
        first = int(np.searchsorted(self._ends, start, side="right"))
        last = int(np.searchsorted(self._ends, stop, side="left"))
        for number in range(first, min(last + 1, len(self._open))):
            if self._open[number]:
                self._compare(number)

    def need_all(self) -> None:
        """Compare all stretches, with the bytes between and around the rows."""
        for number in np.flatnonzero(self._open).tolist():
            self._compare(number)

    def _compare(self, number: int) -> None:
        stretch = self._stretches[number]
        before = self._stretches[number - 1] if number else None
        is_first = before is None or before["file"] != stretch["file"]
        begin = 0 if is_first or before is None else before["end"]
        path = self._folder / stretch["file"]
        try:
            with path.open("rb") as handle:
                handle.seek(begin)
                data = handle.read(max(0, stretch["end"] - begin))
        except OSError as error:
            raise self._damaged(path) from error
        if hashlib.sha256(data).hexdigest() != stretch["sha256"]:
            raise self._damaged(path)
        self._open[number] = False

    def _damaged(self, path: Path) -> BadInput:
        return BadInput(
            f"{path}: is damaged (it is not the copy that was made of the shards); delete "
            f"{self._folder}: it is made again"
        )


def cache_of(directory: Path) -> str | None:
    """The folder for the Arrow copy of a directory's Parquet files; None if the directory cannot be
    written, and `datasets` must use its default."""
    return str(directory / CACHE) if os.access(directory, os.W_OK) else None


def open_copy(
    directory: Path, *, entries: Sequence[Mapping[str, Any]], schema: pa.Schema, verify: bool
) -> ArrowCopy:
    """Open the Arrow copy of the files that a manifest lists, with the columns of `schema`; make it
    if it does not exist. With `verify` all of it is compared now, instead of when it is needed.

    A copy without a record is compared with the Parquet files row by row, after these were compared
    with their SHA-256. That happens once, and every later opening relies on the record. Raises
    `BadInput`, which names what is damaged.
    """
    # Imported here, because it takes half a second and commands on a login node do not need it.
    import datasets

    files = [str(directory / entry["file"]) for entry in entries]
    if not files:
        raise BadInput(f"{directory}: lists no file; {again(directory)}")
    cache = cache_of(directory)
    try:
        with silent_datasets(), at_work(f"{directory}: is copied for reading"):
            rows = datasets.Dataset.from_parquet(
                files, cache_dir=cache, keep_in_memory=False, columns=schema.names
            )
    except Exception as error:  # `datasets`, Arrow and what they call raise unrelated classes
        if isinstance(cause := error.__cause__ or error, OSError) and cause.errno:
            where = cache or "the default cache of datasets"
            raise BadInput(
                f"{where}: cannot hold the Arrow copy of {directory} ({cause.strerror}); "
                "make room, or name another place with HF_DATASETS_CACHE"
            ) from error
        raise BadInput(
            f"{directory}: a shard is not readable Parquet, or its copy in {cache or 'the cache'} "
            f"is damaged: delete that; or {again(directory)}"
        ) from error
    if len(rows) != sum(entry["rows"] for entry in entries) or set(rows.column_names) != set(
        schema.names
    ):
        raise BadInput(f"{directory}: rows or columns differ from the manifest; {again(directory)}")
    paths = [Path(file["filename"]) for file in rows.cache_files]
    folder = paths[0].parent if paths else directory
    content = content_digest({"files": [entry["sha256"] for entry in entries]})
    stretches = _recorded(folder, content=content)
    if stretches is None:
        with _turn(folder):
            stretches = _recorded(folder, content=content)
            if stretches is None:
                stretches = _proven(paths, directory=directory, entries=entries, schema=schema)
                _record(folder, content=content, stretches=stretches)
    copy = ArrowCopy(rows, folder, stretches)
    if verify:
        copy.need_all()
    return copy


def _recorded(folder: Path, *, content: str) -> list[_Stretch] | None:
    """The stretches that the record lists; None if it is absent, damaged or of other files."""
    path = folder / RECORD
    try:
        record = checked(read_json(path), _Record, source=path, advice="delete it")
    except BadInput:  # absent or damaged: the caller compares the copy with the shards again
        return None
    if record["format"] != FORMAT or record["content"] != content:
        return None
    return record["stretches"] if is_sealed(record) else None


def _record(folder: Path, *, content: str, stretches: list[_Stretch]) -> None:
    record = {"format": FORMAT, "content": content, "stretches": stretches}
    with contextlib.suppress(OSError):  # without a record the next opening compares again
        write_json(folder / RECORD, sealed(record))


@contextlib.contextmanager
def _turn(folder: Path) -> Iterator[None]:
    """Let one process at a time compare a copy. On a file system without locks every process
    compares it, which is slower but right."""
    from filelock import FileLock

    with contextlib.ExitStack() as entered:
        with contextlib.suppress(OSError, NotImplementedError):
            entered.enter_context(FileLock(folder / f"{RECORD}.lock"))
        yield


def _proven(
    paths: Sequence[Path],
    *,
    directory: Path,
    entries: Sequence[Mapping[str, Any]],
    schema: pa.Schema,
) -> list[_Stretch]:
    """The stretches of a copy, after comparing its rows with those of the Parquet files."""
    stretches: list[_Stretch] = []
    batches: list[pa.RecordBatch] = []
    try:
        for path in paths:
            for stretch, batch in _stretches(path):
                stretches.append(stretch)
                batches.append(batch)
        rows = pa.Table.from_batches(batches, schema=batches[0].schema if batches else schema)
        start = 0
        for entry in entries:
            data = (directory / entry["file"]).read_bytes()
            if hashlib.sha256(data).hexdigest() != entry["sha256"]:
                where = directory / entry["file"]
                raise BadInput(f"{where}: is damaged (its SHA-256 differs); {again(directory)}")
            wanted = pq.read_table(pa.BufferReader(data), columns=schema.names)
            ours = rows.slice(start, len(wanted)).select(wanted.column_names).cast(wanted.schema)
            same = ours.equals(wanted) and wanted.schema.remove_metadata() == schema
            if not same or start + len(wanted) > len(rows):
                raise ValueError("other rows")
            start += len(wanted)
    except (OSError, pa.ArrowException, ValueError) as error:
        if isinstance(error, BadInput):
            raise
        raise BadInput(
            f"{paths[0]}: is damaged (its rows are not those of the shards); delete "
            f"{paths[0].parent}: it is made again"
        ) from error
    return stretches


def _stretches(path: Path) -> Iterator[tuple[_Stretch, pa.RecordBatch]]:
    """The batches of a file, each with its stretch: the bytes from the end of the previous batch to
    its own end. The last stretch reaches to the end of the file."""
    source = pa.memory_map(str(path))
    reader = pa.ipc.open_stream(source)
    batches: list[tuple[pa.RecordBatch, int]] = []
    for batch in reader:
        batch.validate(full=True)  # wrong offsets would make us read beyond the file
        batches.append((batch, source.tell()))
    ends = [*(end for _, end in batches[:-1]), path.stat().st_size]
    with path.open("rb") as handle:
        for (batch, _), begin, end in zip(batches, [0, *ends], ends, strict=False):
            digest = hashlib.sha256(handle.read(end - begin)).hexdigest()
            yield {"file": path.name, "end": end, "rows": len(batch), "sha256": digest}, batch


@contextlib.contextmanager
def silent_datasets() -> Iterator[None]:
    """Turn off the progress bars and log lines of `datasets`; our one line says what went wrong."""
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
