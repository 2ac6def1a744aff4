"""Vectors and ids on disk, unit by unit, and their reader.

    ENC/plan.json  ENC/units/00017.{safetensors,ids.parquet,json}  ENC/manifest.json

A unit's JSON is written last and carries the digests of the other two: it is the unit's marker.
`manifest.json` appears when every unit is there; it repeats the plan and all markers, and carries
its own digest. Shapes: R rows of a unit, D width, N rows in all.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from toolkit.encoding.plan import PLAN_FILE, Unit, units
from toolkit.files import BadInput, read_json, sha256_of, write_atomic, write_json
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


def write_manifest(output_dir: Path) -> bool:
    """Write the manifest if every unit is there; returns whether it is. Any worker may call it."""
    plan = read_json(output_dir / PLAN_FILE)
    all_units = units(plan["rows"], unit_rows=plan["unit_rows"])
    markers = [unit_files(output_dir, unit=unit).marker for unit in all_units]
    if not all(path.is_file() for path in markers):
        return False
    entries = {path.stem: read_json(path) for path in markers}
    content = {**plan, "units": entries}
    write_json(output_dir / MANIFEST_FILE, {**content, SELF_DIGEST: content_digest(content)})
    return True


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
        self.units = units(self.num_rows, unit_rows=int(self.manifest["unit_rows"]))
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
