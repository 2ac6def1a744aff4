"""Questions while they are written: unit by unit, and each unit whole or not at all.

    OUT/plan.json  OUT/units/00017.{parquet,json}  OUT/manifest.json

A unit's JSON is written last and carries the digest of its Parquet file: it is the unit's marker.
Knows files and digests. Refuses to know which questions are good, and what is made of them: what
else belongs to the output is made by `finish`, once every unit is there.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from typing_extensions import TypedDict

from toolkit.base.documents import Count, Digest, checked
from toolkit.base.errors import BadInput
from toolkit.base.files import read_json, remove_temporaries, sha256_of, write_atomic, write_json
from toolkit.base.layout import MANIFEST_FILE, PLAN_FILE, UNIT_DIR
from toolkit.base.sealed import is_sealed, sealed
from toolkit.domain.writing import Question
from toolkit.encoding.units import Unit, check_facts

AGAIN = "the same toolkit.questions again makes it anew"
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("number", pa.int32()),
        ("question", pa.string()),
        ("tokens", pa.int32()),
        ("ended", pa.bool_()),
    ]
)


class Marker(TypedDict):
    """The content of a unit's JSON: the digest of its plan, its documents from `start` on, and its
    questions."""

    plan: Digest
    start: Count
    documents: Count
    questions: Count
    sha256: Digest


@dataclasses.dataclass(frozen=True)
class QuestionOutput:
    """Questions in progress: their directory, the digest of the plan, and the units
    (`schedule.Units`). `finish` makes what else belongs to the output and returns its entries in
    the manifest, among which are `settings`: the settings that it used."""

    directory: Path
    digest: str
    units: Sequence[Unit]
    settings: Mapping[str, Any]
    finish: Callable[["QuestionOutput"], dict[str, Any]]

    def finished(self) -> set[str]:
        """The names of the units that have a marker and a file, from one listing; no digest is
        checked."""
        there = {path.name for path in (self.directory / UNIT_DIR).glob("*")}
        names = (unit.name for unit in self.units)
        return {name for name in names if {f"{name}.json", f"{name}.parquet"} <= there}

    def unfinished(self) -> list[Unit]:
        """The units without a marker or a file, in order."""
        done = self.finished()
        return [unit for unit in self.units if unit.name not in done]

    def has_marker(self, unit: Unit) -> bool:
        """Whether the marker of this unit exists, and its file."""
        return self._marker_file(unit).exists() and self._file(unit).exists()

    def forget(self, unit: Unit) -> None:
        """Remove a damaged unit's marker, so that the unit is made again."""
        self._marker_file(unit).unlink(missing_ok=True)

    def damaged(self, some: Iterable[Unit]) -> list[Unit]:
        """Those of `some` units that have a marker, but whose file is not what it says."""
        done = self.finished()
        return [unit for unit in some if unit.name in done and self._whole(unit) is None]

    def write(self, unit: Unit, questions: Sequence[Question]) -> None:
        """Write the questions of a unit, then its marker."""
        rows = [dataclasses.asdict(one) for one in questions]
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), sink, compression="zstd")
        content = sink.getvalue().to_pybytes()
        write_atomic(self._file(unit), content)
        marker = Marker(
            plan=self.digest,
            start=unit.start,
            documents=unit.stop - unit.start,
            questions=len(rows),
            sha256=hashlib.sha256(content).hexdigest(),
        )
        write_json(self._marker_file(unit), sealed(marker))

    def questions(self, unit: Unit) -> list[Question]:
        """The questions of a unit that is whole."""
        rows = pq.read_table(self._file(unit), schema=SCHEMA).to_pylist()
        return [Question(**row) for row in rows]

    def write_manifest(self) -> list[Unit]:
        """Finish the output and write its manifest if every unit is whole; returns those that are
        not. Raises `BadInput` for a plan or a unit that is not ours."""
        markers = {unit.name: self._whole(unit) for unit in self.units}
        if missing := [unit for unit in self.units if markers[unit.name] is None]:
            return missing
        plan = read_json(self.directory / PLAN_FILE)
        if not isinstance(plan, dict) or plan.get("digest") != self.digest:
            raise BadInput(f"{self.directory / PLAN_FILE}: is of others; choose another output_dir")
        check_facts(plan, source=self.directory / PLAN_FILE, advice="choose another output_dir")
        for folder in (self.directory, self.directory / UNIT_DIR):
            remove_temporaries(folder)
        # What follows replaces what an older manifest speaks of, which was made by other filters.
        (self.directory / MANIFEST_FILE).unlink(missing_ok=True)
        entries = self.finish(self)
        whole = {**plan, "settings": dict(self.settings), **entries, "units": markers}
        write_json(self.directory / MANIFEST_FILE, sealed(whole))
        return []

    def is_in_manifest(self, names: Iterable[str]) -> bool:
        """Whether a whole manifest exists that repeats the markers of these units, and was made by
        the same settings."""
        try:
            manifest = read_json(self.directory / MANIFEST_FILE)
            stem, markers = self.directory / UNIT_DIR, manifest["units"]
            ours = is_sealed(manifest) and manifest["settings"] == dict(self.settings)
            return ours and all(markers[n] == read_json(stem / f"{n}.json") for n in names)
        except (BadInput, KeyError, TypeError):
            return False

    def _whole(self, unit: Unit) -> dict[str, Any] | None:
        """A unit's marker, if the unit is what the marker says; otherwise None, so that it is made
        again. `BadInput` for the marker of other questions, which somebody must have put here."""
        path, file = self._marker_file(unit), self._file(unit)
        try:
            marker: dict[str, Any] = read_json(path)
            checked(marker, Marker, source=path, advice=AGAIN)
        except BadInput:
            return None
        if not is_sealed(marker):
            return None
        if marker["plan"] != self.digest:
            raise BadInput(
                f"{path}: belongs to other questions; choose another output_dir, or delete it, and "
                f"{AGAIN}"
            )
        is_whole = marker["start"] == unit.start and file.is_file()
        return marker if is_whole and sha256_of(file) == marker["sha256"] else None

    def _file(self, unit: Unit) -> Path:
        return self.directory / UNIT_DIR / f"{unit.name}.parquet"

    def _marker_file(self, unit: Unit) -> Path:
        return self.directory / UNIT_DIR / f"{unit.name}.json"
