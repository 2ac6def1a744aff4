"""Joins parts to a committed directory of shards: duplicates, limits, the summary, the manifest.

Knows all parts at once. Refuses to know how a part is made (`sharding`).
"""

import dataclasses
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from toolkit.base.console import at_work
from toolkit.base.errors import BadInput
from toolkit.base.files import (
    committed_directory,
    is_committed,
    sha256_of,
    write_atomic,
    write_json,
)
from toolkit.text.duplicates import (
    Duplicate,
    as_keys,
    as_signatures,
    nearly_repeated,
    repeated,
)
from toolkit.text.manifest import Manifest, write_manifest
from toolkit.text.sharding import Part, Work, all_parts, keys_schema, require_unchanged
from toolkit.text.shards import FORMAT, checked_manifest, write_table
from toolkit.text.sources import identity, noun_of

SUMMARY, QUARANTINE, DUPLICATES = "summary.json", "quarantine.jsonl", "duplicates.parquet"
DUPLICATE_ID, SAME_TEXT, NEARLY_SAME = "duplicate id", "duplicate text", "near duplicate"
SAME_NORMALIZED = "duplicate text but for case, white space or composition"
NUM_SHOWN = 3


class Unfinished(RuntimeError):
    """Some parts are still missing, because other workers have yet to make them."""


@dataclasses.dataclass(frozen=True)
class _Documents:
    """All documents of all parts in order: the part, the input, the row of the input, and whether
    that row lacks an id.

    Shapes: N documents.
    """

    part_N: NDArray[np.int32]
    file_N: NDArray[np.int32]
    row_N: NDArray[np.int64]
    lacks_id_N: NDArray[np.bool_]
    duplicates: list[Duplicate]

    def kept(self) -> NDArray[np.bool_]:
        """Whether each document stays, that is, is no duplicate: (N,)."""
        kept = np.ones(len(self.part_N), dtype=np.bool_)
        kept[[duplicate.number for duplicate in self.duplicates]] = False
        return kept

    def place(self, number: int) -> tuple[int, int]:
        """The input of a document, and its row there."""
        return int(self.file_N[number]), int(self.row_N[number])


@at_work("shard: looks for duplicates and puts the parts together")
def finish(
    work: Work, *, max_bad_fraction: float, limit_name: str = "--max-bad-fraction"
) -> Manifest:
    """Commit the output when every part is there, and remove the parts; returns the manifest.

    Any worker may call it, and several may at once. Raises `Unfinished` while parts are missing.
    Raises `BadInput` when there is no document, when an input has changed since the work began (the
    parts are removed then), or when a larger fraction of rows or files than `max_bad_fraction` is
    bad, which names it as the user gave it (`limit_name`). In the last case the parts stay, and the
    same command with a larger fraction uses them.
    """
    try:
        if there := written(work):
            return there
        parts = all_parts(work)
        if parts is None:
            raise Unfinished
        documents = find_duplicates(work, parts)
        summary = summarise(work, parts=parts, documents=documents)
        quarantine = list(_quarantine(work, parts=parts, documents=documents))
        limit = _Limit(limit_name, max_bad_fraction)
        _check(work, summary=summary, quarantine=quarantine, limit=limit)
        with committed_directory(work.output) as folder:
            if quarantine:
                write_atomic(folder / QUARANTINE, "".join(quarantine))
            if documents.duplicates:
                _write_duplicates(folder / DUPLICATES, work, documents=documents)
            shards = _place_shards(work, folder=folder, parts=parts, documents=documents)
            _seal(work, folder=folder, shards=shards, summary=summary)
    except FileNotFoundError:
        # Another worker has committed the output and removed the parts while we read them. It may
        # have worked with other settings, so compare.
        if not is_committed(work.output):
            raise
        _require_same(work, checked_manifest(work.output, verify=False))
    # Files just written are not hashed again.
    manifest = checked_manifest(work.output, verify=False)
    for place in work.output.parent.glob(f".{work.output.name}.parts-*"):
        shutil.rmtree(place, ignore_errors=True)
    return manifest


def written(work: Work) -> Manifest | None:
    """The manifest if the output exists and was made from these inputs and settings; None if there
    is no output. Raises `BadInput` if it was made from others, or is damaged."""
    if not is_committed(work.output):
        return None
    manifest = checked_manifest(work.output, verify=True)
    _require_same(work, manifest)
    return manifest


def _require_same(work: Work, manifest: Manifest) -> None:
    same = manifest["settings"] == _plain(work.settings)
    if not same or manifest["sources"] != _sources(work):
        names = ", ".join(source["name"] for source in manifest["sources"][:NUM_SHOWN])
        raise BadInput(
            f"{work.output}: holds shards of {names} made with other input or settings; give "
            "another output directory, or delete this one"
        )


def find_duplicates(work: Work, parts: Sequence[Part]) -> _Documents:
    """Find documents that repeat the id of an earlier document, or its text in the way that
    `work.deduplicate` asks for."""
    # Read the keys part by part, into arrays: as Python objects, all signatures at once would not
    # fit into memory.
    keys = [_keys(work, part) for part in parts]
    part_N = np.repeat(np.arange(len(parts), dtype=np.int32), [len(part["row"]) for part in keys])
    whole = {name: np.concatenate([part[name] for part in keys]) for name in keys[0]}
    among = np.ones(len(part_N), dtype=np.bool_)
    duplicates: list[Duplicate] = []

    # Each kind of duplicate is looked for among the documents that the kinds before have left, so
    # that no document repeats one that is itself left out.
    def leave_out(repeats: list[Duplicate]) -> None:
        among[[duplicate.number for duplicate in repeats]] = False
        duplicates.extend(repeats)

    leave_out(repeated(whole["id"], among=among, reason=DUPLICATE_ID))
    if "text" in whole:
        leave_out(repeated(whole["text"], among=among, reason=SAME_TEXT))
    if "normalized" in whole:
        leave_out(repeated(whole["normalized"], among=among, reason=SAME_NORMALIZED))
    if "signature" in whole:
        leave_out(nearly_repeated(whole["signature"], among=among, reason=NEARLY_SAME))
    duplicates.sort(key=lambda duplicate: duplicate.number)
    return _Documents(part_N, whole["file"], whole["row"], whole["lacks_id"], duplicates)


def summarise(work: Work, *, parts: Sequence[Part], documents: _Documents) -> dict[str, Any]:
    """Count rows, documents kept, and documents dropped by reason. Every row that was read is in
    exactly one of these counts."""
    dropped: Counter[str] = Counter()
    quarantined: Counter[str] = Counter()
    for part in parts:
        dropped.update(part.dropped)
        quarantined.update(part.quarantined)
    for duplicate in documents.duplicates:
        (quarantined if duplicate.reason == DUPLICATE_ID else dropped)[duplicate.reason] += 1
    kept_N = documents.kept()
    rows, kept = sum(part.rows for part in parts), int(kept_N.sum())
    assert rows == kept + dropped.total() + quarantined.total(), "a row was lost"
    return {
        "rows": rows,
        "documents": kept,
        "without_id": int((kept_N & documents.lacks_id_N).sum()),
        "dropped": dict(sorted(dropped.items())),
        "quarantined": dict(sorted(quarantined.items())),
        "damaged_files": {
            work.inputs[int(file)].name: why for part in parts for file, why in part.damage.items()
        },
        "files": len(work.inputs),
        "bytes_read": sum(part.bytes_in for part in parts),
    }


def _keys(work: Work, part: Part) -> dict[str, NDArray[Any]]:
    """The keys of a part's documents, by column."""
    table = keys_schema(work).empty_table()
    if part.kept:
        stem = work.stem(group=part.group, unit=part.unit)
        table = pq.read_table(work.parts / f"{stem}.keys.parquet")
    keys: dict[str, NDArray[Any]] = {
        "file": table["file"].to_numpy().astype(np.int32),
        "row": table["row"].to_numpy().astype(np.int64),
        "lacks_id": table["lacks_id"].to_numpy().astype(np.bool_),
    }
    for name in ("id", "text", "normalized"):
        if name in table.column_names:
            keys[name] = as_keys(table[name].to_pylist())
    if "signature" in table.column_names:
        keys["signature"] = as_signatures(table["signature"].to_pylist())
    return keys


def _quarantine(work: Work, *, parts: Sequence[Part], documents: _Documents) -> Iterator[str]:
    """The lines of the quarantine, in the order of the inputs."""
    repeats: dict[int, list[Duplicate]] = {}
    for repeat in documents.duplicates:
        if repeat.reason == DUPLICATE_ID:
            repeats.setdefault(int(documents.part_N[repeat.number]), []).append(repeat)
    for number, part in enumerate(parts):
        path = work.parts / f"{work.stem(group=part.group, unit=part.unit)}.quarantine.jsonl"
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        entries = [json.loads(line) for line in text.split("\n") if line]
        for repeat in repeats.get(number, []):
            (file, row), (of, first) = (documents.place(it) for it in (repeat.number, repeat.of))
            origin = work.inputs[of]
            note = f"first in {origin.name}, {noun_of(origin.kind)} {first + 1}"
            entries.append({"file": file, "row": row, "reason": repeat.reason, "note": note})
        for entry in sorted(entries, key=lambda entry: (int(entry["file"]), int(entry["row"]))):
            given = work.inputs[entry.pop("file")]
            place = f"{noun_of(given.kind)} {entry.pop('row') + 1}"
            line = {"file": given.name, "place": place, **entry}
            yield json.dumps(line, ensure_ascii=False) + "\n"


class _Limit(NamedTuple):
    name: str
    fraction: float


def _check(
    work: Work, *, summary: dict[str, Any], quarantine: Sequence[str], limit: _Limit
) -> None:
    """Raise `BadInput` when no document is kept, or when too many files or rows are bad."""
    rows, damaged = summary["rows"], summary["damaged_files"]
    paths = {given.name: given.path for given in work.inputs}
    first = next((f"{paths[name]}: {why}" for name, why in damaged.items()), "")
    if not summary["documents"]:
        shutil.rmtree(work.parts, ignore_errors=True)
        counts = {**summary["dropped"], **summary["quarantined"]}
        reasons = ", ".join(f"{count} {reason}" for reason, count in counts.items())
        name = work.inputs[0].path
        raise BadInput(first or f"{name}: no document to keep (skipped: {reasons or 'none'})")
    if len(damaged) > limit.fraction * len(work.inputs):
        if len(work.inputs) == 1:
            shutil.rmtree(work.parts, ignore_errors=True)
            raise BadInput(first)
        raise BadInput(
            f"{len(damaged)} of {len(work.inputs)} inputs are damaged, more than "
            f"{limit.name} {limit.fraction}: {first}"
        )
    bad = sum(summary["quarantined"].values())
    if bad > limit.fraction * rows:
        path = work.parts / QUARANTINE
        write_atomic(path, "".join(quarantine))
        worst = Counter(summary["quarantined"]).most_common(NUM_SHOWN)
        reasons = ", ".join(f"{count} {reason}" for reason, count in worst)
        raise BadInput(
            f"{bad} of {rows} rows are bad, more than {limit.name} {limit.fraction}: {reasons}; "
            f"they are listed in {path}"
        )


def _place_shards(
    work: Work, *, folder: Path, parts: Sequence[Part], documents: _Documents
) -> list[dict[str, Any]]:
    """Put the shards of all parts in order under their final names, without the duplicates."""
    kept_N = documents.kept()
    entries: list[dict[str, Any]] = []
    first = 0
    for part in parts:
        for piece, shard in enumerate(part.shards):
            source = work.parts / shard["file"]
            target = folder / f"shard-{len(entries):05d}.parquet"
            kept = kept_N[first : first + shard["rows"]]
            first += shard["rows"]
            if kept.all():
                _link(source, target)
                entry = {**shard, "file": target.name}
            elif kept.any():
                rows = pq.read_table(source).filter(pa.array(kept))
                entry = write_table(rows, path=target)
            else:
                continue
            entries.append({**entry, "part": [part.group, part.unit, piece]})
    return entries


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)


def _write_duplicates(path: Path, work: Work, *, documents: _Documents) -> None:
    """Write which row repeats which other row: for people, and for `repair`, which needs it to make
    a shard again."""

    def origin(numbers: list[int]) -> dict[str, list[Any]]:
        return {
            "file": [work.inputs[file].name for file in documents.file_N[numbers]],
            "row": documents.row_N[numbers].tolist(),
        }

    here = origin([duplicate.number for duplicate in documents.duplicates])
    there = origin([duplicate.of for duplicate in documents.duplicates])
    table = pa.table(
        {
            **here,
            "reason": [duplicate.reason for duplicate in documents.duplicates],
            **{f"of_{name}": values for name, values in there.items()},
        }
    )
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    write_atomic(path, sink.getvalue().to_pybytes())


def _seal(
    work: Work, *, folder: Path, shards: list[dict[str, Any]], summary: dict[str, Any]
) -> None:
    """Write the summary and the manifest, if the inputs are still those that the parts came
    from."""
    sources = _sources(work)
    # After taking the digests: an input that changed during that would get a wrong one.
    require_unchanged(work, range(len(work.inputs)))
    whole = {
        **summary,
        "shards": len(shards),
        "characters": sum(shard["num_chars"] for shard in shards),
        "sentences": sum(shard["num_sentences"] for shard in shards),
    }
    write_json(folder / SUMMARY, whole)
    beside = [folder / name for name in (SUMMARY, QUARANTINE, DUPLICATES)]
    content = {
        "format": FORMAT,
        "shards": shards,
        "rows": sum(shard["rows"] for shard in shards),
        "files": {path.name: sha256_of(path) for path in beside if path.is_file()},
        "sources": sources,
        "groups": [len(files) for files in work.files],
        "settings": _plain(work.settings),
        "summary": whole,
    }
    write_manifest(folder, content)


def _sources(work: Work) -> list[dict[str, Any]]:
    """What identifies the inputs, independent of the folder that they are in."""
    return [identity(given) for given in work.inputs]


def _plain(settings: dict[str, Any]) -> Any:
    """The settings as JSON would give them back (tuples become lists), to compare with it."""
    return json.loads(json.dumps(settings))
