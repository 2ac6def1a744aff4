"""Finds out whether a directory of shards, tokens or pairs is still what was written.

Knows everything that can be cross-checked: digests, counts, offsets, ids, tokens. Finds all faults,
while opening a directory stops at the first one.
"""

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from toolkit.base.documents import checked
from toolkit.base.errors import BadInput
from toolkit.base.files import is_committed, read_json, sha256_of
from toolkit.base.layout import COMMIT_MARKER, MANIFEST_FILE
from toolkit.base.sealed import is_sealed
from toolkit.text import pairs, shards
from toolkit.text.copies import CACHE
from toolkit.text.manifest import Manifest, file_problem
from toolkit.text.token_files import listed_in

# Matches the manifest of token files, and not the note of one file, which ends with a number.
_LISTS_BLOCKS = re.compile(r"blocks-\d+(-without-\d+-\d+)?")


@dataclass(frozen=True)
class Fault:
    """What is wrong with a file. `shard` is its number, if it is a shard that can be remade."""

    file: str
    problem: str
    shard: int | None = None


def verify(directory: Path) -> list[Fault]:
    """All faults of a directory of shards or of pairs. Raises `BadInput` if it is neither, or if
    its manifest is damaged."""
    manifest = believable_manifest(directory)
    if manifest["format"] in (pairs.FORMAT, *pairs.OLDER):
        return list(_pair_faults(directory, manifest))
    faults = list(_shard_faults(directory, manifest))
    return faults + list(_token_faults(directory, manifest))


def believable_manifest(directory: Path) -> Manifest:
    """The manifest of a directory, after comparing its own digest; `BadInput` if it is absent or
    damaged. The files that it names may be missing."""
    path = directory / MANIFEST_FILE
    if not directory.is_dir() or not path.is_file():
        raise BadInput(f"{directory}: is no directory of shards or pairs (no {MANIFEST_FILE})")
    manifest: Manifest = read_json(path)
    forms = (shards.FORMAT, pairs.FORMAT)
    known = (*forms, *pairs.OLDER)
    if not isinstance(manifest, dict) or manifest.get("format") not in known:
        raise BadInput(f"{path}: is not a manifest of {' or '.join(forms)}")
    if not is_sealed(manifest):
        raise BadInput(f"{path}: is damaged (its digest differs); nothing it says can be checked")
    is_pairs = manifest["format"] in (pairs.FORMAT, *pairs.OLDER)
    form = pairs.Listed if is_pairs else shards.Listed
    checked(manifest, form, source=path, advice="nothing it says can be checked")
    return manifest


def _shard_faults(directory: Path, manifest: Manifest) -> Iterator[Fault]:
    if not is_committed(directory):
        yield Fault(
            COMMIT_MARKER, "is missing: the directory was not written to its end, or touched"
        )
    seen: set[str] = set()
    for number, entry in enumerate(manifest["shards"]):
        if problem := file_problem(directory, entry, verify=True) or _table_problem(
            directory / entry["file"], entry=entry, seen=seen
        ):
            yield Fault(entry["file"], problem, shard=number)
    for name, digest in manifest.get("files", {}).items():
        path = directory / name
        if not path.is_file() or sha256_of(path) != digest:
            yield Fault(name, "is missing or damaged (its SHA-256 differs)")
    known = {entry["file"] for entry in manifest["shards"]}
    for path in sorted(directory.glob("*.parquet")):
        if path.name not in known and path.name not in manifest.get("files", {}):
            yield Fault(path.name, "is not in the manifest")
    if manifest["rows"] != sum(entry["rows"] for entry in manifest["shards"]):
        yield Fault(MANIFEST_FILE, f"says {manifest['rows']} rows, its shards say otherwise")


def _table_problem(path: Path, *, entry: dict[str, Any], seen: set[str]) -> str:
    """What is wrong with the content of a shard whose digest is right; empty if nothing is. Only a
    defect of ours, or a forgery, can cause such a fault. `seen` holds the ids of earlier shards."""
    try:
        table = pq.read_table(path)
    except (OSError, ValueError) as error:
        return f"is not readable Parquet ({' '.join(str(error).split())[:100]})"
    if table.schema.remove_metadata() != shards.SCHEMA:
        return f"has columns {', '.join(table.column_names)}"
    if len(table) != entry["rows"]:
        return f"has {len(table)} rows, not {entry['rows']}"
    if not pc.all(pc.equal(pc.utf8_length(table["text"]), table["num_chars"])).as_py():
        return "has a text of another length than num_chars says"
    if problem := _span_problem(table):
        return problem
    ids = table["id"].to_pylist()
    again = next((identifier for identifier in ids if identifier in seen), None)
    seen.update(ids)
    if again is not None or len(set(ids)) < len(ids):
        return f"repeats the id {again!r}" if again is not None else "repeats an id of its own"
    return ""


def _span_problem(table: pa.Table) -> str:
    starts, ends = (table[name].combine_chunks() for name in ("sentence_starts", "sentence_ends"))
    if not starts.value_lengths().equals(ends.value_lengths()):
        return "has rows with more sentence starts than ends, or the reverse"
    first, last = starts.flatten().to_numpy(), ends.flatten().to_numpy()
    rows = pc.list_parent_indices(starts).to_numpy()
    limits = table["num_chars"].to_numpy()[rows]
    wrong = (first >= last) | (first < 0) | (last > limits)
    # Within a row, a sentence must not begin before the previous one ends.
    wrong[1:] |= (rows[1:] == rows[:-1]) & (first[1:] < last[:-1])
    return "has sentences that overlap or lie outside of their text" if wrong.any() else ""


def _token_faults(directory: Path, manifest: Manifest) -> Iterator[Fault]:
    """The faults of the token files in the cache of these shards. All of them can be deleted, and
    are made again when they are needed."""
    for listed in sorted((directory / CACHE).glob("tokens-*/blocks-*.json")):
        if not _LISTS_BLOCKS.fullmatch(listed.stem):  # the note of one file
            continue
        where = listed.parent.relative_to(directory)
        try:
            tokens = listed_in(listed, num_shards=len(manifest["shards"]))
        except BadInput as error:
            yield Fault(str(where / listed.name), str(error).removeprefix(f"{listed}: "))
            continue
        for entry in itertools.chain(tokens["token_files"], tokens["block_files"]):
            if problem := file_problem(listed.parent, entry, verify=True):
                yield Fault(str(where / entry["file"]), problem)
        if tokens["documents"] != manifest["rows"]:
            yield Fault(
                str(where / listed.name),
                f"is of {tokens['documents']} documents, and the shards hold {manifest['rows']}",
            )


def _pair_faults(directory: Path, manifest: Manifest) -> Iterator[Fault]:
    if not is_committed(directory):
        yield Fault(
            COMMIT_MARKER, "is missing: the directory was not written to its end, or touched"
        )
    for task in manifest["sets"]:
        for entry in task["shards"]:
            if problem := file_problem(directory, entry, verify=True) or _pair_problem(
                directory / entry["file"], entry=entry
            ):
                yield Fault(entry["file"], problem)


def _pair_problem(path: Path, *, entry: dict[str, Any]) -> str:
    try:
        table = pq.read_table(path)
    except (OSError, ValueError) as error:
        return f"is not readable Parquet ({' '.join(str(error).split())[:100]})"
    known = [field for field in table.schema.remove_metadata() if field.name in pairs.SCHEMA.names]
    if pa.schema(known) != pairs.SCHEMA:
        return f"has columns {', '.join(table.column_names)}"
    if len(table) != entry["rows"]:
        return f"has {len(table)} rows, not {entry['rows']}"
    return ""


def check_copies(folder: Path, *, shards: list[str]) -> None:
    """Compare the rows of Arrow copies, which training and encoding read, with those of the shards:
    `datasets` makes them without digests. One shard at a time is in memory. `BadInput` names a copy
    with other rows."""
    for place in sorted({path.parent for path in (folder / CACHE).rglob("*.arrow")}):
        if place.name.endswith(".incomplete"):
            continue
        try:
            files = [pa.memory_map(str(path)) for path in sorted(place.glob("*.arrow"))]
            rows = pa.concat_tables(pa.ipc.open_stream(file).read_all() for file in files)
            rows.validate(full=True)  # wrong offsets would make us read beyond the file
            start, same = 0, True
            for name in shards:
                wanted = pq.read_table(folder / name)
                copied = rows.slice(start, len(wanted)).cast(wanted.schema)
                same, start = same and copied.equals(wanted), start + len(wanted)
            same = same and start == len(rows)
        except (OSError, ValueError, pa.ArrowException):
            same = False
        if not same:
            names = " or ".join(str(path) for path in sorted(place.glob("*.arrow")))
            raise BadInput(f"{names}: is damaged (its rows are not those of the shards); delete it")
