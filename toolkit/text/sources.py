"""Inputs that can be sharded: which reader each file needs, and the names of all inputs.

Knows names of files. Refuses to know what is in them (`readers`).
"""

import functools
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from toolkit.base.errors import BadInput
from toolkit.base.files import sha256_of, stamp_of
from toolkit.text.folders import (
    HIDDEN,
    Passed,
    contents,
    ending_of,
    name_below,
    told,
)
from toolkit.text.readers import (
    Columns,
    DatasetRows,
    DumpPages,
    Lines,
    ParquetRows,
    Source,
    Table,
)
from toolkit.text.records import Damaged
from toolkit.text.whole_files import RULES_VERSION as WHOLE_FILE_RULES
from toolkit.text.whole_files import WholeFile
from toolkit.text.wikitext import RULES_VERSION

JSON_LINES = (".jsonl", ".ndjson")
TEXT_LINES = (".txt",)
PARQUET = (".parquet",)
XML = (".xml",)
WHOLE_FILES = (*TEXT_LINES, ".md", ".rst")
DEFAULT_SPLIT = "train"
COMPRESSED = (".gz", ".zst", ".bz2")


@dataclass(frozen=True)
class Input:
    """One file, or one split of a data set of Hugging Face's `datasets` (by hub name or on disk).

    `name` is the path relative to the folder that was given, or to the common folder of all that
    was given, so that it stays the same when all is moved together, and when a file comes or goes.
    """

    name: str
    path: str
    kind: str
    config: str | None = None
    split: str | None = None

    @property
    def is_file(self) -> bool:
        """Whether the input is a file, and not a data set."""
        return self.kind != "dataset"


def kind_of(path: Path, *, whole_files: bool = False) -> str:
    """The kind of a file, by its name; `BadInput` for a name from which it cannot be known."""
    name = path.name.lower()
    inner = name
    for suffix in COMPRESSED:
        inner = inner.removesuffix(suffix)
    if whole_files and inner.endswith(WHOLE_FILES):
        return "file"
    for kind, suffixes in (("json", JSON_LINES), ("text", TEXT_LINES), ("dump", XML)):
        if inner.endswith(suffixes):
            return kind
    if name.endswith(PARQUET):
        return "parquet"
    # Wikimedia's parts: articles1.xml-p1p41242.bz2. Among anybody's files .gz says nothing.
    if name.endswith((".bz2", ".gz")) and (not whole_files or ".xml" in name):
        return "dump"
    raise BadInput(f"{path}: unknown kind of file; give one of {_known(whole_files=whole_files)}")


def _known(*, whole_files: bool) -> str:
    """The endings of files that can be read, for people."""
    texts = WHOLE_FILES if whole_files else TEXT_LINES
    known = ", ".join((*XML, *JSON_LINES, *texts, *PARQUET))
    return f"{known}, or with one of {', '.join(COMPRESSED)}"


def noun_of(kind: str) -> str:
    """The word for a row of this kind of input: page, line or row."""
    return {"dump": "page", "json": "line", "text": "line", "file": "file"}.get(kind, "row")


def reading_settings(kind: str, *, columns: Columns) -> dict[str, str | int]:
    """The settings that decide which documents a file gives, besides its bytes."""
    if kind == "dump":
        return {"kind": kind, "cleaning_rules": RULES_VERSION}
    if kind == "text":
        return {"kind": kind}
    if kind == "file":
        return {"kind": kind, "rules": WHOLE_FILE_RULES}
    return {"kind": kind, **vars(columns)}


@dataclass(frozen=True)
class Found:
    """The inputs that paths name, and what was passed over in the folders among them. `folder` is
    what the names of both are relative to."""

    inputs: tuple[Input, ...]
    passed: tuple[Passed, ...]
    folder: Path

    @property
    def told(self) -> str:
        """One line about what was passed over; empty if nothing was."""
        return f"not read: {told(self.passed, below=self.folder)}" if self.passed else ""


def find_inputs(
    paths: Sequence[Path], *, whole_files: bool = False, roots: Sequence[Path] = ()
) -> tuple[Input, ...]:
    """The inputs of `survey`, where nobody is told what was passed over."""
    return survey(paths, whole_files=whole_files, roots=roots).inputs


def survey(
    paths: Sequence[Path], *, whole_files: bool = False, roots: Sequence[Path] = ()
) -> Found:
    """The inputs for these paths, in order: each file, and for a folder all files below it whose
    kind is known. With `whole_files` a text file (`WHOLE_FILES`) is one document. `roots` are
    folders that were given as well, whose files are among `paths`.

    Raises `BadInput` for a file of unknown kind, a folder without such files, and repeated inputs.
    """
    files: list[Path] = []
    passed: list[Passed] = []
    given = [_absolute(root) for root in roots]
    for path in paths:
        if not path.is_dir() or is_saved_dataset(path):
            files.append(path)
            given.append(_absolute(path).parent)
            continue
        inside, left = _known_below(path, whole_files=whole_files)
        files += inside
        passed += left
        given.append(_absolute(path))
    places = [_absolute(file) for file in files]
    if len(set(places)) < len(places):
        raise BadInput("an input is named twice")
    common = Path(os.path.commonpath(given))
    inputs = tuple(
        Input(
            name=name_below(place, common),
            path=str(file),
            kind="dataset" if is_saved_dataset(file) else kind_of(file, whole_files=whole_files),
        )
        for file, place in zip(files, places, strict=True)
    )
    there = tuple(Passed(_absolute(one.path), one.reason) for one in passed)
    return Found(inputs=inputs, passed=there, folder=common)


def _known_below(folder: Path, *, whole_files: bool) -> tuple[list[Path], list[Passed]]:
    """The files below a folder whose kind is known, at least one, and what is passed over."""
    try:
        files, passed = contents(folder)
    except OSError as error:
        raise BadInput(f"{folder}: cannot be read ({error.strerror})") from error
    known = []
    for file in files:
        if is_known(file, below=folder, whole_files=whole_files):
            known.append(file)
        else:
            passed.append(unknown(file))
    if not known:
        there = f": {told(passed, below=folder)}" if passed else ""
        raise BadInput(
            f"{folder}: holds no file that can be read{there}; those that can are "
            f"{_known(whole_files=whole_files)}"
        )
    return known, passed


def unknown(file: Path) -> Passed:
    """A file of no known kind that is passed over, with the reason."""
    hidden = file.name.startswith(("_", ".")) or "multistream-index" in file.name
    return Passed(file, HIDDEN if hidden else ending_of(file))


def _absolute(path: Path) -> Path:
    """The absolute path without "..", so that a file has the same path from any folder."""
    path = path.absolute()
    return path.parent.resolve() / path.name if ".." in path.parent.parts else path


def is_saved_dataset(path: Path) -> bool:
    """Whether a folder was written by `save_to_disk` of Hugging Face's `datasets`: one split, or
    folders of splits. A file of such a name alone may be anybody's."""
    if os.path.isfile(path / "dataset_dict.json"):  # False where the folder cannot be entered
        return any(_is_saved_split(info.parent) for info in path.glob("*/dataset_info.json"))
    return _is_saved_split(path)


def _is_saved_split(path: Path) -> bool:
    return all(os.path.isfile(path / name) for name in ("state.json", "dataset_info.json"))


def num_rows(given: Input) -> int | None:
    """The number of rows of an input, if it can be known without reading them; otherwise None."""
    try:
        if given.kind == "dataset":
            return rows_of_dataset(given).num_rows
        if given.kind != "parquet":
            return None
        rows: int = pq.read_metadata(given.path).num_rows
    except (OSError, ValueError):  # absent or damaged, which is reported when it is read
        return None
    return rows


def rows_of_dataset(given: Input) -> DatasetRows:
    """The table of an input of the kind "dataset"."""
    if Path(given.path).is_dir():  # not cached: the folder may change
        return DatasetRows(given.path, config=given.config, split=given.split or DEFAULT_SPLIT)
    return _rows_of_hub(given)


@functools.lru_cache(maxsize=4)
def _rows_of_hub(given: Input) -> DatasetRows:
    # Loaded once per process, so that the rows read are those that `stamp` described, even if the
    # data set on the hub has changed meanwhile.
    return DatasetRows(given.path, config=given.config, split=given.split or DEFAULT_SPLIT)


def stamp(given: Input) -> tuple[int, int]:
    """Two numbers that change when the input changes. For a file its `stamp_of`, (0, 0) if there is
    no file; for a data set's folder the size of all files and a digest of their names, sizes and
    times; for a data set of the hub a digest of its fingerprint."""
    if not given.is_file:
        return _stamp_of_dataset(given)
    try:
        return stamp_of(Path(given.path))
    except OSError:
        return 0, 0


def _stamp_of_dataset(given: Input) -> tuple[int, int]:
    if not Path(given.path).is_dir():
        return 0, _number_of([rows_of_dataset(given).fingerprint])
    try:
        seen = [(name, path.stat()) for name, path in _files_of_dataset(given)]
    except OSError:
        return 0, 0
    lines = [f"{name}\0{status.st_size}\0{status.st_mtime_ns}" for name, status in seen]
    return sum(status.st_size for _, status in seen), _number_of(lines)


def _number_of(lines: Sequence[str]) -> int:
    return int.from_bytes(hashlib.sha256("\n".join(lines).encode()).digest()[:8])


def _files_of_dataset(given: Input) -> list[tuple[str, Path]]:
    """The files of a split of a saved data set, with their names relative to it. The caches that
    `datasets` leaves beside them do not belong to it."""
    folder = Path(given.path)
    split = folder / (given.split or DEFAULT_SPLIT)
    folder = split if split.is_dir() and (folder / "dataset_dict.json").is_file() else folder
    return [
        (str(path.relative_to(folder)), path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith((".", "cache-", "tmp"))
    ]


def identity(given: Input) -> dict[str, Any]:
    """What identifies an input by its content, independent of its folder."""
    path = Path(given.path)
    if given.is_file:
        if not path.is_file():
            return {"name": given.name, "bytes": 0, "sha256": ""}
        try:
            return {"name": given.name, "bytes": path.stat().st_size, "sha256": sha256_of(path)}
        except PermissionError:  # it is counted among the damaged files
            return {"name": given.name, "bytes": path.stat().st_size, "sha256": ""}
    asked = {"name": given.name, "config": given.config, "split": given.split}
    if not path.is_dir():
        return {**asked, "fingerprint": rows_of_dataset(given).fingerprint}
    whole = hashlib.sha256()
    for name, file in _files_of_dataset(given):
        whole.update(f"{name}\0{sha256_of(file)}\n".encode())
    return {**asked, "sha256": whole.hexdigest()}


def is_packed(given: Input) -> bool:
    """Whether a file is compressed, by its name."""
    return given.path.lower().endswith((*COMPRESSED, *PARQUET))


def is_known(path: Path, *, below: Path, whole_files: bool = False) -> bool:
    """Whether a file in the folder `below` is an input, by its name: known, and not hidden."""
    # Only the parts below the folder that was named count as hidden: "../data" is not hidden.
    parts = path.relative_to(below).parts
    if path.name.startswith("_") or any(part.startswith(".") for part in parts):
        return False
    try:
        # The index of a multistream dump lies beside the dump, and is no input.
        kind = kind_of(path, whole_files=whole_files)
        return kind != "" and "multistream-index" not in path.name
    except BadInput:
        return False


def open_source(given: Input, *, columns: Columns) -> Source:
    """Open an input. Raises `Damaged` for a file that cannot be read at all, and `BadInput`, which
    lists the columns, if it has no text column of the given name."""
    if given.kind == "dataset":
        return Table(rows_of_dataset(given), name=given.name, columns=columns)
    path = Path(given.path)
    if not path.is_file():
        raise Damaged("no such file")
    if given.kind == "file":
        return WholeFile(path, name=given.name)
    if path.stat().st_size == 0:
        raise Damaged("is empty")
    if given.kind == "dump":
        return DumpPages(path)
    if given.kind == "parquet":
        return Table(ParquetRows(path), name=given.name, columns=columns)
    return Lines(path, name=given.name, columns=columns if given.kind == "json" else None)
