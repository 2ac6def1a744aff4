"""Vectors and ids on disk, unit by unit, and their reader.

    ENC/plan.json  ENC/units/00017.{safetensors,ids.parquet,json}  ENC/manifest.json

A unit's JSON is written last and carries the digests of the other two: it is the unit's marker.
`manifest.json` appears when every unit is there; it repeats the plan and all markers, and carries
its own digest. Shapes: R rows of a unit, D width, N rows in all.
"""

import dataclasses
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from toolkit.encoding.plan import FORMAT, PLAN_FILE, Unit, units
from toolkit.files import (
    BadInput,
    read_json,
    remove_temporaries,
    sha256_of,
    write_atomic,
    write_json,
)
from toolkit.text.manifest import SELF_DIGEST, content_digest

UNIT_DIR = "units"
MANIFEST_FILE = "manifest.json"
VECTORS = "vectors"

Vectors = NDArray[np.float32]


@dataclasses.dataclass(frozen=True)
class UnitFiles:
    """The three paths of a unit."""

    vectors: Path
    ids: Path
    marker: Path


def unit_files(output_dir: Path, *, unit: Unit) -> UnitFiles:
    """Where a unit's files are."""
    stem = output_dir / UNIT_DIR
    return UnitFiles(
        vectors=stem / f"{unit.name}.safetensors",
        ids=stem / f"{unit.name}.ids.parquet",
        marker=stem / f"{unit.name}.json",
    )


def is_finished(output_dir: Path, *, unit: Unit, digest: str) -> bool:
    """Whether a unit was written whole for this encoding; its digests are checked.

    A damaged file, the marker included, is an unfinished unit: it is made again.
    """
    files = unit_files(output_dir, unit=unit)
    try:
        marker = read_json(files.marker)
        encoding, digests = marker["encoding"], marker["sha256"]
        expected = [digests[path.name] for path in (files.vectors, files.ids)]
    except (BadInput, KeyError, TypeError):
        return False
    if encoding != digest:
        raise BadInput(f"{files.marker}: belongs to another encoding; choose another output_dir")
    return all(
        path.is_file() and sha256_of(path) == wanted
        for path, wanted in zip((files.vectors, files.ids), expected, strict=True)
    )


def write_unit(
    output_dir: Path,
    *,
    unit: Unit,
    vectors_RD: Vectors,
    records: Sequence[Mapping[str, str]],
    digest: str,
) -> None:
    """Write a unit's vectors and ids, then its marker. `BadInput` for a non-finite vector."""
    broken = np.flatnonzero(~np.isfinite(vectors_RD).all(axis=1))
    if len(broken):
        raise BadInput(f"id {records[broken[0]]['id']!r}: its vector is not finite; use dtype fp32")
    assert len(records) == len(vectors_RD) == unit.stop - unit.start
    files = unit_files(output_dir, unit=unit)
    write_atomic(files.vectors, save({VECTORS: np.ascontiguousarray(vectors_RD)}))
    table = pa.table({key: [record[key] for record in records] for key in ("id", "title")})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    write_atomic(files.ids, sink.getvalue().to_pybytes())
    digests = {path.name: sha256_of(path) for path in (files.vectors, files.ids)}
    rows, width = vectors_RD.shape
    write_json(
        files.marker,
        {"encoding": digest, "start": unit.start, "rows": rows, "width": width, "sha256": digests},
    )


@dataclasses.dataclass(frozen=True)
class Output:
    """An encoding while it is made: its directory, the digest of what it is, and its units."""

    directory: Path
    digest: str
    units: Sequence[Unit]

    def finished(self) -> set[str]:
        """The names of the units that have a marker, by a single look; no digest is checked."""
        try:
            entries = os.listdir(self.directory / UNIT_DIR)
        except FileNotFoundError:
            return set()
        return {e.removesuffix(".json") for e in entries if e.endswith(".json") and e[0] != "."}

    def unfinished(self) -> list[Unit]:
        """The units without a marker, in order."""
        finished = self.finished()
        return [unit for unit in self.units if unit.name not in finished]

    def has_marker(self, unit: Unit) -> bool:
        """Whether this unit has one."""
        return unit_files(self.directory, unit=unit).marker.exists()

    def forget(self, unit: Unit) -> None:
        """Take a damaged unit's marker away, so that it is made again."""
        unit_files(self.directory, unit=unit).marker.unlink(missing_ok=True)

    def damaged(self, some: Iterable[Unit]) -> list[Unit]:
        """Those of `some` units that have a marker, and are not what it says."""
        finished = self.finished()
        return [
            unit
            for unit in some
            if unit.name in finished
            and not is_finished(self.directory, unit=unit, digest=self.digest)
        ]

    def write(self, unit: Unit, vectors_RD: Vectors, records: Sequence[Mapping[str, str]]) -> None:
        """Write a unit (`write_unit`)."""
        write_unit(
            self.directory,
            unit=unit,
            vectors_RD=vectors_RD,
            records=records,
            digest=self.digest,
        )

    def write_manifest(self) -> list[Unit]:
        """Write the manifest if every unit is there; returns those that are not. Any worker may.

        What killed writers have left is removed before.
        """
        missing, entries = [], {}
        for unit in self.units:
            try:
                entries[unit.name] = read_json(unit_files(self.directory, unit=unit).marker)
            except BadInput:
                missing.append(unit)
        if not missing:
            for folder in (self.directory, self.directory / UNIT_DIR):
                remove_temporaries(folder)
            content = {**read_json(self.directory / PLAN_FILE), "units": entries}
            sealed = {**content, SELF_DIGEST: content_digest(content)}
            write_json(self.directory / MANIFEST_FILE, sealed)
        return missing

    def is_in_manifest(self, names: Iterable[str]) -> bool:
        """Whether there is a manifest that tells these units as their markers do."""
        try:
            told = read_json(self.directory / MANIFEST_FILE)["units"]
            stem = self.directory / UNIT_DIR
            return all(told[name] == read_json(stem / f"{name}.json") for name in names)
        except (BadInput, KeyError, TypeError):
            return False


class VectorStore:
    """A finished encoding, read a unit at a time.

    With `verify` every file is compared with what was written, now and not when it is read. Raises
    `BadInput` that names what is absent or damaged.
    """

    def __init__(self, output_dir: Path, *, verify: bool = False) -> None:
        if not (output_dir / MANIFEST_FILE).is_file():
            hint = "is not finished: run the same toolkit.encode again"
            if not (output_dir / PLAN_FILE).is_file():
                hint = "is not an encoding: make one with python -m toolkit.encode"
            raise BadInput(f"{output_dir}: {hint}")
        self.directory = output_dir
        self.manifest: dict[str, Any] = read_json(output_dir / MANIFEST_FILE)
        if verify and self.manifest.get(SELF_DIGEST) != content_digest(self.manifest):
            raise _damaged(output_dir / MANIFEST_FILE)
        self.num_rows = int(self.manifest["rows"])
        if self.manifest.get("format") != FORMAT:
            raise BadInput(f"{output_dir}: is not of the format {FORMAT}; encode the corpus anew")
        self.units = units(self.manifest["bounds"])
        if verify:
            self._check_files()

    def blocks(self) -> Iterator[tuple[Unit, Vectors]]:
        """Each unit with its vectors (R, D), read when it is asked for."""
        for unit in self.units:
            path = self._checked(unit_files(self.directory, unit=unit).vectors, unit=unit)
            try:
                with safe_open(path, framework="numpy") as tensors:
                    vectors_RD: Vectors = tensors.get_tensor(VECTORS)
            except (OSError, SafetensorError) as error:
                raise _damaged(path) from error
            yield unit, vectors_RD

    def records(self, unit: Unit) -> list[dict[str, str]]:
        """id and title of a unit's rows."""
        path = self._checked(unit_files(self.directory, unit=unit).ids, unit=unit)
        try:
            table = pq.read_table(path)
        except (OSError, pa.ArrowException) as error:
            raise _damaged(path) from error
        rows: list[dict[str, str]] = table.to_pylist()
        return rows

    def _check_files(self) -> None:
        """The manifest is to be believed: is everything else as it says?"""
        plan = {k: v for k, v in self.manifest.items() if k not in ("units", SELF_DIGEST)}
        path = self.directory / PLAN_FILE
        if read_json(path) != plan:
            raise BadInput(f"{path}: is damaged (it is not the plan that {MANIFEST_FILE} repeats)")
        for unit in self.units:
            files = unit_files(self.directory, unit=unit)
            if read_json(files.marker) != self.manifest["units"][unit.name]:
                raise _damaged(files.marker)
            self._checked(files.vectors, unit=unit)
            self._checked(files.ids, unit=unit)

    def _checked(self, path: Path, *, unit: Unit) -> Path:
        """The path, if the file still has the digest of the manifest; it is read anyway."""
        wanted = self.manifest["units"][unit.name]["sha256"][path.name]
        if not path.is_file() or sha256_of(path) != wanted:
            raise _damaged(path)
        return path

    def vectors(self) -> Vectors:
        """All vectors (N, D) in corpus order; for corpora that fit in memory."""
        return np.concatenate([vectors_RD for _, vectors_RD in self.blocks()])

    def ids(self) -> list[str]:
        """All ids in corpus order."""
        return [record["id"] for unit in self.units for record in self.records(unit)]


def _damaged(path: Path) -> BadInput:
    return BadInput(f"{path}: is missing or damaged; the same toolkit.encode again makes it anew")
