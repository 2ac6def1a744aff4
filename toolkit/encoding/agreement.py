"""Do the units of an encoding agree with its plan, and with each other?

Knows what plan, markers and ids say of each other. Refuses to know vectors, and whether a file is
still what was written. Without agreement a row could get the vector or the id of another text,
although all digests are right.

Markers are compared whenever a manifest is made or read: that reads no further file. Ids are
compared by `toolkit.verify`: they are read once, and take 8 bytes of memory per text.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from toolkit.base.errors import BadInput
from toolkit.base.layout import MANIFEST_FILE, UNIT_DIR
from toolkit.encoding.units import Unit, units

FOREIGN = "belongs to another encoding"
ANEW = "encode the corpus anew, into another output_dir"


def marker_fault(marker: Any, *, unit: Unit, digest: str, has_chunks: bool) -> str:
    """Why a marker does not belong to this unit of the plan, in an encoding with this digest; empty
    if it does, and `FOREIGN` if it belongs to another encoding."""
    names = {f"{unit.name}.safetensors", f"{unit.name}.ids.parquet"}
    try:
        encoding, digests = marker["encoding"], marker["sha256"]
        numbers = start, rows, _ = marker["start"], marker["rows"], marker["width"]
    except (KeyError, TypeError):
        return "is not the marker of a unit"
    if not isinstance(digests, dict) or any(type(number) is not int for number in numbers):
        return "is not the marker of a unit"
    if encoding != digest:
        return FOREIGN
    if start != unit.start:
        return f"is of the rows from {start} on, not from {unit.start} on"
    wanted = unit.stop - unit.start
    # Each text has at least one row; only chunks give it more.
    if rows < wanted or (rows > wanted and not has_chunks):
        return f"has {rows} rows, not {wanted}"
    return "" if set(digests) == names else "is not the marker of a unit"


def width_fault(markers: Mapping[str, Mapping[str, Any]]) -> str:
    """The first marker, by its unit's name, whose vectors differ in width from the first marker's;
    empty if all are equal."""
    widths = {name: marker["width"] for name, marker in markers.items()}
    first = next(iter(widths.values()), 0)
    others = (
        f"{name}.json: has vectors of {width} numbers, others of {first}"
        for name, width in widths.items()
        if width != first
    )
    return next(others, "")


def agreed_units(directory: Path, manifest: Mapping[str, Any]) -> list[Unit]:
    """The units of the plan that a manifest repeats. Raises `BadInput` when one of its markers does
    not belong to that plan."""
    bounds, rows, markers = manifest["bounds"], manifest["rows"], manifest["units"]
    if not _cover(bounds, rows=rows):
        where = directory / MANIFEST_FILE
        raise BadInput(f"{where}: its units do not cover its {rows} rows; {ANEW}")
    planned = units(bounds)
    for unit in planned:
        fault = marker_fault(
            markers.get(unit.name),
            unit=unit,
            digest=manifest["digest"],
            has_chunks="chunks" in manifest,
        )
        if fault:
            raise BadInput(f"{directory / UNIT_DIR / unit.name}.json: {fault}; {ANEW}")
    if fault := width_fault({unit.name: markers[unit.name] for unit in planned}):
        raise BadInput(f"{directory / UNIT_DIR / fault}; {ANEW}")
    return planned


def _cover(bounds: Any, *, rows: Any) -> bool:
    """Whether `bounds` ascend from 0 to `rows`, as those of every plan do."""
    if not isinstance(bounds, list) or any(type(bound) is not int for bound in bounds):
        return False
    ascending = all(one < other for one, other in itertools.pairwise(bounds))
    return ascending and bounds[:1] == [0] and bounds[-1] == rows


def check_ids(
    directory: Path, planned: Sequence[Unit], *, records: Callable[[Unit], pa.Table]
) -> None:
    """Raise `BadInput` when two texts of an encoding have the same id, or when the chunks of a unit
    are not those of its rows. `records` gives the table of a unit."""
    hash_N = np.empty(planned[-1].stop if planned else 0, dtype=np.int64)
    for unit, ids in _texts(directory, planned, records=records):
        # 8 bytes per id. Python's hash differs between processes, but this one is never stored.
        hash_N[unit.start : unit.stop] = [hash(one) for one in ids]
    sorted_N = np.sort(hash_N)
    # Equal hashes are rare: only ids that share one are compared as texts, in a second pass.
    suspects = np.unique(sorted_N[1:][sorted_N[1:] == sorted_N[:-1]])
    if not suspects.size:
        return
    seen: dict[str, int] = {}
    for unit, ids in _texts(directory, planned, records=records):
        for place in np.flatnonzero(np.isin(hash_N[unit.start : unit.stop], suspects)).tolist():
            first = seen.setdefault(ids[place], row := unit.start + place)
            if first != row:
                where = directory / UNIT_DIR / f"{unit.name}.ids.parquet"
                problem = f"row {row} has the id {ids[place]!r}, and so has row {first}"
                raise BadInput(f"{where}: {problem}; {ANEW}")


def _texts(
    directory: Path, planned: Sequence[Unit], *, records: Callable[[Unit], pa.Table]
) -> Iterator[tuple[Unit, list[str]]]:
    """Each unit with the ids of its texts, of which each has one chunk or more."""
    for unit in planned:
        table = records(unit)
        if "chunk" in table.column_names:
            row_C, chunk_C = (table[name].to_numpy() for name in ("row", "chunk"))
            if not _are_chunks(row_C, chunk_C, unit=unit):
                where = directory / UNIT_DIR / f"{unit.name}.ids.parquet"
                raise BadInput(f"{where}: has other rows than the plan says; {ANEW}")
            table = table.filter(pc.equal(table["chunk"], 0))
        yield unit, table["id"].to_pylist()


def _are_chunks(row_C: NDArray[np.int64], chunk_C: NDArray[np.int64], *, unit: Unit) -> bool:
    """Whether the chunks (C,) are those of all rows of a unit, in order, numbered from 0 in each
    row."""
    begins_C = chunk_C == 0
    if not np.array_equal(row_C[begins_C], np.arange(unit.start, unit.stop)):
        return False
    goes_on_C = (row_C[1:] == row_C[:-1]) & (chunk_C[1:] == chunk_C[:-1] + 1)
    return bool(begins_C[:1].all() and (begins_C[1:] | goes_on_C).all())
