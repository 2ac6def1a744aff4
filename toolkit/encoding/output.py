"""An encoding while it is written: unit by unit, and each unit whole or not at all.

    ENC/plan.json  ENC/units/00017.{safetensors,ids.parquet,json}  ENC/manifest.json

A unit's JSON is written last and carries the digests of the other two: it is the unit's marker.
`manifest.json` appears when every unit is there and their rows were counted in the files
(`completeness`); it repeats the plan and all markers, and carries its own digest.
`toolkit.encoding.store` reads it. Shapes: R rows of a unit, D width.
"""

import dataclasses
import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NotRequired

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field
from typing_extensions import TypedDict  # pydantic wants this one before Python 3.12

from toolkit.base.documents import Count, Digest, checked
from toolkit.base.errors import BadInput
from toolkit.base.files import read_json, remove_temporaries, sha256_of, write_atomic, write_json
from toolkit.base.layout import MANIFEST_FILE, PLAN_FILE, UNIT_DIR
from toolkit.base.sealed import content_digest, is_sealed, sealed
from toolkit.encoding.agreement import FOREIGN, marker_fault, width_fault
from toolkit.encoding.completeness import (
    Counts,
    completeness_line,
    counts_of_unit,
    require_complete,
    total,
)
from toolkit.encoding.formats import LARGEST, Kept, Vectors, encode, seal_of, unit_length
from toolkit.encoding.units import Unit, check_facts
from toolkit.settings.schema import VectorFormat
from toolkit.text.duplicates import KEY_BYTES

# The columns of a row. A chunk also has its row in the corpus, its number in that text, and the
# characters of the text that it covers; and the window of its text in which it was read, if it was
# not read alone.
FACTS = pa.schema([("id", pa.string()), ("title", pa.string()), ("empty", pa.bool_())])
CHUNK_FACTS = pa.schema(
    [*FACTS, *((name, pa.int64()) for name in ("row", "chunk", "begin", "end"))]
)
LATE_FACTS = CHUNK_FACTS.append(pa.field("window", pa.int64()))
# The digest of a row's text (`key_of`), by which a later encoding finds it; no fact for readers.
KEY = pa.field("key", pa.binary(KEY_BYTES))
AGAIN = "the same toolkit.encode again makes it anew"
MARKER_DIGEST = "marker_sha256"


class Seal(TypedDict):
    """A marker's entry about the checksums in the file of vectors (`formats.seal_of`)."""

    bytes: Annotated[int, Field(ge=1, le=2**30)]
    sha256: Digest


class Marker(TypedDict):
    """The content of a unit's JSON. Markers of an older toolkit have neither `blocks` nor a digest
    of their own."""

    encoding: str
    start: Count
    rows: Count
    width: Annotated[int, Field(ge=0, le=2**24)]
    sha256: dict[str, Digest]
    blocks: NotRequired[Seal]
    marker_sha256: NotRequired[str]


SUFFIXES = (".safetensors", ".ids.parquet", ".json")


@dataclasses.dataclass(frozen=True)
class UnitFiles:
    """The paths of a unit's three files, in the order of `SUFFIXES`."""

    vectors: Path
    ids: Path
    marker: Path


def facts_schema(manifest: Mapping[str, Any]) -> pa.Schema:
    """The columns of the rows of an encoding with this plan or manifest, but for the key."""
    if "chunks" not in manifest:
        return FACTS
    chunks = manifest["chunks"]
    is_late = isinstance(chunks, dict) and chunks.get("context") == "document"
    return LATE_FACTS if is_late else CHUNK_FACTS


def unit_files(output_dir: Path, *, unit: Unit) -> UnitFiles:
    """Where a unit's files are."""
    stem = output_dir / UNIT_DIR / unit.name
    return UnitFiles(*(Path(f"{stem}{suffix}") for suffix in SUFFIXES))


def read_marker(path: Path) -> Marker:
    """A unit's JSON. `BadInput` when it is absent, or is not what was written."""
    marker = checked(read_json(path), Marker, source=path, advice=AGAIN)
    content = {key: value for key, value in marker.items() if key != MARKER_DIGEST}
    if "blocks" in marker and marker.get(MARKER_DIGEST) != content_digest(content):
        raise BadInput(f"{path}: is damaged (its digest differs); {AGAIN}")
    return marker


def write_unit(
    output_dir: Path,
    *,
    unit: Unit,
    vectors_RD: Vectors,
    records: Sequence[Mapping[str, Any]],
    digest: str,
    form: VectorFormat = "fp32",
    kept: Kept | None = None,
) -> None:
    """Write a unit's vectors and ids, then its marker. Records with a `chunk` are chunks, of which
    there may be more than the unit has rows of the corpus. Records may have the `key` of their
    text. The rows that are `kept` get the bytes in which they are stored.

    Raises `BadInput` for a vector that is not finite or too large for its format, and for an id
    that occurs twice.
    """
    ids = [record["id"] for record in records]
    # One per text, however many chunks the text has.
    firsts = [record["id"] for record in records if not record.get("chunk")]
    assert len(records) == len(vectors_RD)
    assert len(firsts) == unit.stop - unit.start
    _refuse(vectors_RD, ids=ids, form=form)
    _refuse_repeated(firsts)
    files = unit_files(output_dir, unit=unit)
    # A text without tokens has the zero vector, and no other text has.
    schemas = (LATE_FACTS, CHUNK_FACTS, FACTS)
    schema = next(one for one in schemas if {*one.names} - {"empty"} <= {*records[0]})
    schema = schema.append(KEY) if "key" in records[0] else schema
    facts = {name: [record.get(name) for record in records] for name in schema.names}
    table = pa.table({**facts, "empty": ~vectors_RD.any(axis=1)}, schema=schema)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    contents = {
        files.vectors: encode(vectors_RD, form=form, kept=kept),
        files.ids: sink.getvalue().to_pybytes(),
    }
    for path, content in contents.items():
        write_atomic(path, content)
    # Digests of the bytes in memory, not of the files: a later check then sees what the disk lost.
    digests = {path.name: hashlib.sha256(content).hexdigest() for path, content in contents.items()}
    rows, width = vectors_RD.shape
    marker: dict[str, Any] = {"encoding": digest, "start": unit.start}
    marker |= {"rows": rows, "width": width}
    marker |= {"sha256": digests, "blocks": seal_of(contents[files.vectors])}
    write_json(files.marker, {**marker, MARKER_DIGEST: content_digest(marker)})


def _refuse(vectors_RD: Vectors, *, ids: Sequence[str], form: VectorFormat) -> None:
    broken = np.flatnonzero(~np.isfinite(vectors_RD).all(axis=1))
    if len(broken):
        raise BadInput(f"id {ids[broken[0]]!r}: its vector is not finite; use encoder.dtype=fp32")
    largest = np.abs(vectors_RD).max(axis=1, initial=0)
    if (large := np.flatnonzero(largest > LARGEST.get(form, np.inf))).size:
        wider = {"fp16": "bf16 or fp32", "bf16": "fp32"}[form]
        raise BadInput(
            f"id {ids[large[0]]!r}: its vector has {largest[large[0]]:g}, more than {form} can "
            f"hold; use vectors={wider}, or normalize=true"
        )


def _refuse_repeated(ids: Sequence[str]) -> None:
    seen: set[str] = set()
    for one in ids:
        if one in seen:
            raise BadInput(f"id {one!r}: two rows have it; make the shards with unique ids")
        seen.add(one)


@dataclasses.dataclass(frozen=True)
class Output:
    """An encoding in progress: its directory, the digest of its plan, and its units."""

    directory: Path
    digest: str
    units: Sequence[Unit]
    form: VectorFormat = "fp32"
    normalize: bool = False
    has_chunks: bool = False

    def finished(self) -> set[str]:
        """The names of the units that have a marker and both files, from one listing; no digest is
        checked."""
        try:
            there = {*os.listdir(self.directory / UNIT_DIR)}
        except FileNotFoundError:
            return set()
        names = (unit.name for unit in self.units)
        return {name for name in names if all(f"{name}{suffix}" in there for suffix in SUFFIXES)}

    def unfinished(self) -> list[Unit]:
        """The units without a marker or a file, in order."""
        finished = self.finished()
        return [unit for unit in self.units if unit.name not in finished]

    def has_marker(self, unit: Unit) -> bool:
        """Whether the marker of this unit exists, and both files."""
        stem = self.directory / UNIT_DIR / unit.name
        return all(Path(f"{stem}{suffix}").exists() for suffix in SUFFIXES)

    def forget(self, unit: Unit) -> None:
        """Remove a damaged unit's marker, so that the unit is made again."""
        unit_files(self.directory, unit=unit).marker.unlink(missing_ok=True)

    def damaged(self, some: Iterable[Unit]) -> list[Unit]:
        """Those of `some` units that have a marker, but whose files are not what it says."""
        finished = self.finished()
        return [unit for unit in some if unit.name in finished and not self.is_finished(unit)]

    def is_finished(self, unit: Unit) -> bool:
        """Whether a unit was written whole for this encoding; the digests of its files are checked.

        A unit with a damaged file, its marker included, counts as unfinished and is made again.
        """
        files, marker = unit_files(self.directory, unit=unit), self._marker(unit)
        return marker is not None and all(
            path.is_file() and sha256_of(path) == marker["sha256"][path.name]
            for path in (files.vectors, files.ids)
        )

    def _marker(self, unit: Unit) -> Marker | None:
        """A unit's marker; None when it is missing or wrong, so that the unit is to be made again.
        `BadInput` for the marker of another encoding, which somebody must have put here."""
        path = unit_files(self.directory, unit=unit).marker
        try:
            marker = read_marker(path)
        except BadInput:
            return None
        fault = marker_fault(marker, unit=unit, digest=self.digest, has_chunks=self.has_chunks)
        if fault == FOREIGN:
            again = "delete it, and the same toolkit.encode makes the unit anew"
            raise BadInput(f"{path}: {FOREIGN}; choose another output_dir, or {again}")
        return None if fault else marker

    def write(
        self,
        unit: Unit,
        vectors_RD: Vectors,
        records: Sequence[Mapping[str, Any]],
        kept: Kept | None = None,
    ) -> None:
        """Write a unit (`write_unit`), with vectors of unit length if `normalize` is set."""
        write_unit(
            self.directory,
            unit=unit,
            vectors_RD=unit_length(vectors_RD) if self.normalize else vectors_RD,
            records=records,
            digest=self.digest,
            form=self.form,
            kept=kept,
        )

    def write_manifest(self) -> list[Unit]:
        """Write the manifest if every unit is there; returns the units that are missing, or whose
        files do not hold the rows of their marker. Any worker may call it.

        Raises `BadInput` for a unit, or a plan, of another encoding, and when the rows of the
        source do not add up. Temporary files of killed writers are removed first.
        """
        by_name = {unit.name: self._marker(unit) for unit in self.units}
        markers = {name: marker for name, marker in by_name.items() if marker is not None}
        if missing := [unit for unit in self.units if unit.name not in markers]:
            return missing
        if fault := width_fault(markers):
            again = "delete the one that is wrong, and the same toolkit.encode makes it anew"
            raise BadInput(f"{self.directory / UNIT_DIR / fault}; {again}")
        found = {unit.name: self._counts(unit, markers[unit.name]) for unit in self.units}
        counts = {name: counted for name, counted in found.items() if counted}
        if missing := [unit for unit in self.units if unit.name not in counts]:
            return missing
        plan = read_json(self.directory / PLAN_FILE)
        if not isinstance(plan, dict) or plan.get("digest") != self.digest:
            raise BadInput(f"{self.directory / PLAN_FILE}: {FOREIGN}; choose another output_dir")
        check_facts(plan, source=self.directory / PLAN_FILE, advice="choose another output_dir")
        whole = {**plan, "units": markers, "counts": total(counts.values())}
        require_complete(whole, whole["counts"], source=self.directory)
        for folder in (self.directory, self.directory / UNIT_DIR):
            remove_temporaries(folder)
        write_json(self.directory / MANIFEST_FILE, sealed(whole))
        return []

    def _counts(self, unit: Unit, marker: Marker) -> Counts | None:
        files = unit_files(self.directory, unit=unit)
        return counts_of_unit(files.vectors, files.ids, marker=marker, form=self.form)

    def completeness(self) -> str:
        """What became of every row of the source, in one line, once no unit is missing. Raises
        `BadInput` when the rows do not add up."""
        path = self.directory / MANIFEST_FILE
        if not path.is_file():  # we were told to stop while another worker writes it
            return "another worker counts the rows"
        manifest = read_json(path)
        counts = manifest.get("counts")
        if counts is None:  # of an older toolkit
            found = (self._counts(unit, manifest["units"][unit.name]) for unit in self.units)
            counts = total(one for one in found if one)
        require_complete(manifest, counts, source=self.directory)
        return completeness_line(manifest, counts)

    def is_in_manifest(self, names: Iterable[str]) -> bool:
        """Whether a whole manifest exists that repeats the markers of these units."""
        try:
            manifest = read_json(self.directory / MANIFEST_FILE)
            markers = manifest["units"]
            if not is_sealed(manifest):
                return False
            stem = self.directory / UNIT_DIR
            return all(markers[name] == read_json(stem / f"{name}.json") for name in names)
        except (BadInput, KeyError, TypeError):
            return False
