"""Reading a finished encoding: by unit, by row or by id, as numpy, torch or Arrow.

    store = VectorStore(Path("embeddings/wikipedia"))
    store.read([5, 17])                       # (2, D) fp32
    store.read(store.rows_of(["Q42"]))        # by id
    store.tensor(slice(0, 1000)), store.table(slice(0, 1000)), store.dataset()

`toolkit.encoding.output` writes it. Shapes: R rows of a unit, K rows asked for, D width, N rows in
all.
"""

import bisect
import functools
import hashlib
import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NotRequired

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import AfterValidator, Field
from typing_extensions import TypedDict

from toolkit.base.documents import Count, checked
from toolkit.base.errors import BadInput
from toolkit.base.files import read_json, sha256_of
from toolkit.base.layout import MANIFEST_FILE, PLAN_FILE
from toolkit.base.sealed import is_sealed
from toolkit.encoding.agreement import agreed_units, check_ids
from toolkit.encoding.completeness import Counts
from toolkit.encoding.formats import MappedVectors, Vectors, open_vectors
from toolkit.encoding.output import AGAIN, KEY, Marker, facts_schema, unit_files
from toolkit.encoding.units import FORMAT, NO_PLAN, Unit, check_facts, units
from toolkit.settings.schema import VectorFormat
from toolkit.text.tally import Tally

if TYPE_CHECKING:
    import torch

Rows = slice | Sequence[int] | NDArray[np.int64]
MAX_PATH, MAX_NAME = 4095, 255  # Linux's limits in bytes
MAX_OPEN = 1024  # memory maps at a time; the kernel allows a process some 65,000


class _Output(TypedDict):
    vectors: VectorFormat
    dims: NotRequired[Annotated[int, Field(ge=1, le=2**24)] | None]


def _is_path(text: str) -> str:
    """The text, if the system would accept it as a path; else raise `ValueError`."""
    name = os.fsencode(text)
    if b"\0" in name or len(name) > MAX_PATH or max(map(len, name.split(b"/"))) > MAX_NAME:
        raise ValueError("is not a path")
    return text


PathText = Annotated[str, AfterValidator(_is_path)]


class Manifest(TypedDict):
    """The entries that a manifest must have for its encoding to be read."""

    bounds: list[Count]
    rows: Count
    output: _Output
    encoder: NotRequired[dict[str, Any]]
    units: dict[str, Marker]
    digest: str
    corpus: str
    model: str
    corpus_path: PathText
    model_path: PathText
    adapter_paths: NotRequired[list[PathText]]
    source: NotRequired[Tally]
    counts: NotRequired[Counts]


class VectorStore:
    """A finished encoding. It never returns damaged data: what is read is compared with what was
    written, when a process first reads it.

    - The manifest has its own digest, which is checked when the store is opened.
    - Vectors are mapped and read in place. When a unit is first read, a SHA-256 checks the header
      and the checksums of its file. Then each 64 KiB from which rows are read is checked once (by a
      CRC-32, at some 4 GB/s per core). A unit of an older toolkit has no checksums: its whole file
      is checked (by a SHA-256, at some 1.8 GB/s) when a row of it is first read.
    - Ids and titles are checked every time, since their whole file is read anyway.

    With `verify` every byte of every file is compared with its SHA-256 at once. Raises `BadInput`
    that names what is absent or damaged.
    """

    def __init__(self, output_dir: Path, *, verify: bool = False) -> None:
        if not (output_dir / MANIFEST_FILE).is_file():
            hint = "is not finished: run the same toolkit.encode again"
            if not (output_dir / PLAN_FILE).is_file():
                hint = "is not an encoding: make one with python -m toolkit.encode"
            raise BadInput(f"{output_dir}: {hint}")
        self.directory = output_dir
        self.manifest: dict[str, Any] = _manifest(output_dir)
        self.form: VectorFormat = self.manifest["output"]["vectors"]
        # The plan counts texts. With chunks a unit has more rows, and so other bounds here.
        planned = agreed_units(output_dir, self.manifest)
        markers = [self.manifest["units"][unit.name] for unit in planned]
        self.units = units(list(itertools.accumulate((m["rows"] for m in markers), initial=0)))
        self.num_rows = self.units[-1].stop if self.units else 0
        self.has_chunks = "chunks" in self.manifest
        self.schema = facts_schema(self.manifest)
        self.width = next((int(marker["width"]) for marker in markers), 0)
        self._starts = [unit.start for unit in self.units]
        self._whole: set[int] = set()  # units without checksums, whose file was compared
        self._mapped = functools.lru_cache(maxsize=MAX_OPEN)(self._open)
        if verify:
            self._check_files()

    def read(self, rows: Rows) -> Vectors:
        """The vectors (K, D) of these rows of the corpus, in that order, fp32. Only these rows are
        read. `BadInput` for a row that does not exist."""
        wanted = self._numbers(rows)
        vectors_KD = np.empty((len(wanted), self.width), dtype=np.float32)
        for places, unit in self._places_by_unit(wanted):
            vectors_KD[places] = self._rows(unit, wanted[places] - unit.start)
        return vectors_KD

    def stored(self, rows_K: NDArray[np.int64]) -> tuple[Vectors, dict[str, NDArray[Any]]]:
        """The vectors (K, D) of these rows, fp32, and the arrays in which they are stored."""
        vectors_KD = np.empty((len(rows_K), self.width), dtype=np.float32)
        arrays: dict[str, NDArray[Any]] = {}
        for places, unit in self._places_by_unit(rows_K):
            try:
                mapped = self._mapped(unit)
                some = mapped.stored(rows_K[places] - unit.start)
            except (OSError, ValueError) as error:
                raise _damaged(unit_files(self.directory, unit=unit).vectors) from error
            vectors_KD[places] = mapped.decoded(some)
            for name, array in some.items():
                if name not in arrays:
                    arrays[name] = np.ones((len(rows_K), array.shape[1]), dtype=array.dtype)
                arrays[name][places] = array
        return vectors_KD, arrays

    def tensor(self, rows: Rows) -> "torch.Tensor":
        """The vectors of `read` as a tensor (K, D) on the CPU."""
        import torch

        return torch.from_numpy(self.read(rows))

    def table(self, rows: Rows) -> pa.Table:
        """The columns of `facts` and the vector of these rows, as Arrow, in memory."""
        wanted = self._numbers(rows)
        vectors = vector_column(self.read(wanted))
        return self.facts(wanted).append_column("vector", vectors)

    def dataset(self, rows: Rows = slice(None)) -> Any:
        """`table` as a data set of Hugging Face's `datasets`, in memory. What does not fit can be
        exported to Parquet and loaded from there."""
        import datasets

        return datasets.Dataset(self.table(rows))

    def facts(self, rows: Rows) -> pa.Table:
        """id, title and empty (a text without tokens, whose vector is zero) of these rows, in that
        order, as Arrow. A chunk also has its row in the corpus, its number in that text, and the
        characters from begin to end that it covers; a late one also the window of its text in
        which it was read."""
        wanted = self._numbers(rows)
        numbers = [self._unit_of(row) for row in wanted.tolist()]
        tables = {number: self.unit_facts(self.units[number]) for number in sorted(set(numbers))}
        # The rows of the units needed stand one after another in one table.
        offsets = dict(zip(tables, np.cumsum([0, *map(len, tables.values())]), strict=False))
        places = [
            int(offsets[number]) + row - self._starts[number]
            for number, row in zip(numbers, wanted.tolist(), strict=True)
        ]
        table = pa.concat_tables([self.schema.empty_table(), *tables.values()])
        return table.take(pa.array(places, pa.int64()))

    def rows_of(self, ids: Sequence[str]) -> NDArray[np.int64]:
        """The rows (K,) that have these ids; of the chunks of a text, the first. This reads all
        ids, one unit at a time. `BadInput` for an id that no row, or more than one text, has."""
        try:
            if isinstance(ids, str):
                raise TypeError("a single text")
            wanted = pa.array(ids, pa.string())
        except (pa.ArrowException, TypeError, ValueError) as error:
            said = f"rows_of({ids!r:.60}): an id is a text of valid Unicode"
            raise BadInput(f"{said}; give a list of them") from error
        rows = np.full(len(ids), -1, dtype=np.int64)
        for unit in self.units:
            column = self.unit_facts(unit)["id"].combine_chunks()
            places = pc.index_in(wanted, value_set=column).fill_null(-1).to_numpy()
            here = places >= 0
            if (again := np.flatnonzero(here & (rows >= 0))).size:
                raise BadInput(f"{self.directory}: two rows have the id {ids[again[0]]!r}")
            rows[here] = places[here] + unit.start
        if (absent := np.flatnonzero(rows < 0)).size:
            raise BadInput(f"{self.directory}: no row has the id {ids[absent[0]]!r}")
        return rows

    def blocks(self, *, start: int = 0) -> Iterator[tuple[Unit, Vectors]]:
        """Each unit with its vectors (R, D), read when it is asked for. The first is the unit that
        holds row `start`."""
        for unit in self.units[self._unit_of(start) :]:
            yield unit, self._rows(unit, slice(None))

    def records(self, unit: Unit) -> list[dict[str, Any]]:
        """id, title and empty of a unit's rows."""
        rows: list[dict[str, Any]] = self.unit_facts(unit).to_pylist()
        return rows

    def unit_facts(self, unit: Unit) -> pa.Table:
        """The columns of `facts` of all rows of a unit."""
        table = self._unit_table(unit)
        return table.drop_columns([KEY.name]) if KEY.name in table.column_names else table

    def unit_ids(self, unit: Unit) -> list[str]:
        """The id of each text of a unit, of which each has one chunk or more."""
        table = self.unit_facts(unit)
        if self.has_chunks:
            table = table.filter(pc.equal(table["chunk"], 0))
        ids: list[str] = table["id"].to_pylist()
        return ids

    def unit_keys(self, unit: Unit) -> list[bytes] | None:
        """The digest of each row's text (`key_of`); None for units of an older toolkit."""
        table = self._unit_table(unit)
        return table[KEY.name].to_pylist() if KEY.name in table.column_names else None

    def _unit_table(self, unit: Unit) -> pa.Table:
        path = unit_files(self.directory, unit=unit).ids
        try:
            data = path.read_bytes()
            if hashlib.sha256(data).hexdigest() != self._digest(path, unit=unit):
                raise _damaged(path)
            table = pq.read_table(pa.BufferReader(data))
        except (OSError, pa.ArrowException) as error:
            raise _damaged(path) from error
        known = any(table.schema.equals(one) for one in (self.schema, self.schema.append(KEY)))
        if len(table) != unit.stop - unit.start or not known:
            raise _damaged(path)
        return table

    def vectors(self) -> Vectors:
        """All vectors (N, D) in corpus order; for corpora that fit in memory."""
        return np.concatenate([vectors_RD for _, vectors_RD in self.blocks()])

    def ids(self) -> list[str]:
        """All ids in corpus order."""
        return [record["id"] for unit in self.units for record in self.records(unit)]

    def _numbers(self, rows: Rows) -> NDArray[np.int64]:
        if isinstance(rows, slice):
            return np.arange(*rows.indices(self.num_rows), dtype=np.int64)
        try:
            given = np.asarray(rows)
        except ValueError as error:  # lists of different lengths
            raise BadInput(f"rows={rows!r:.60}: give whole numbers, a mask or a slice") from error
        if given.ndim != 1:
            raise BadInput(f"rows are {given.shape}: give a list of them, not {rows!r:.60}")
        if given.dtype == bool:
            if given.shape != (self.num_rows,):
                raise BadInput(
                    f"a mask of {given.shape}: {self.directory} has {self.num_rows} rows"
                )
            return np.flatnonzero(given)
        if given.size and not np.issubdtype(given.dtype, np.integer):
            raise BadInput(f"rows are {given.dtype}: give whole numbers, a mask or a slice")
        numbers = given.astype(np.int64)
        if (wrong := np.flatnonzero((numbers < 0) | (numbers >= self.num_rows))).size:
            where = f"{self.directory} has rows 0 to {self.num_rows - 1}"
            raise BadInput(f"row {numbers[wrong[0]]}: {where}")
        return numbers

    def _places_by_unit(
        self, wanted: NDArray[np.int64]
    ) -> Iterator[tuple[NDArray[np.int64], Unit]]:
        """The units that hold these rows, each with the places of its rows among them."""
        order = np.argsort(wanted, kind="stable")
        # Where in the sorted rows those of each unit begin and end.
        cuts = np.searchsorted(wanted[order], [*self._starts, self.num_rows])
        for unit, begin, end in zip(self.units, cuts, cuts[1:], strict=False):
            if end > begin:
                yield order[begin:end], unit

    def _unit_of(self, row: int) -> int:
        return bisect.bisect_right(self._starts, row) - 1

    def _rows(self, unit: Unit, which: slice | NDArray[np.int64]) -> Vectors:
        try:
            return self._mapped(unit).rows(which)
        except (OSError, ValueError) as error:
            raise _damaged(unit_files(self.directory, unit=unit).vectors) from error

    def _open(self, unit: Unit) -> MappedVectors:
        path = unit_files(self.directory, unit=unit).vectors
        seal = self.manifest["units"][unit.name].get("blocks")
        if seal is None and unit.number not in self._whole:
            self._checked(path, unit=unit)
            self._whole.add(unit.number)
        rows = unit.stop - unit.start
        return open_vectors(path, form=self.form, rows=rows, width=self.width, seal=seal)

    def _check_files(self) -> None:
        """Compare plan, markers, vectors and ids with the manifest, which was checked before."""
        plan = {key: value for key, value in self.manifest.items() if key not in NO_PLAN}
        path = self.directory / PLAN_FILE
        if read_json(path) != plan:
            raise BadInput(f"{path}: is damaged (it is not the plan that {MANIFEST_FILE} repeats)")
        for unit in self.units:
            files = unit_files(self.directory, unit=unit)
            if read_json(files.marker) != self.manifest["units"][unit.name]:
                raise _damaged(files.marker)
            self._checked(files.vectors, unit=unit)
        planned = units(self.manifest["bounds"])
        check_ids(
            self.directory, planned, records=lambda unit: self.unit_facts(self.units[unit.number])
        )

    def _checked(self, path: Path, *, unit: Unit) -> Path:
        """The path, if the file still has the digest that the manifest records."""
        if not path.is_file() or sha256_of(path) != self._digest(path, unit=unit):
            raise _damaged(path)
        return path

    def _digest(self, path: Path, *, unit: Unit) -> str | None:
        digest: str | None = self.manifest["units"][unit.name]["sha256"].get(path.name)
        return digest


def _manifest(output_dir: Path) -> dict[str, Any]:
    """Read the manifest of an encoding, and check its digest, its entries and its facts."""
    path = output_dir / MANIFEST_FILE
    content = read_json(path)
    if not isinstance(content, dict):
        raise _damaged(path)
    if content.get("format") != FORMAT:
        raise BadInput(f"{output_dir}: is not of the format {FORMAT}; encode the corpus anew")
    if not is_sealed(content):
        raise _damaged(path)
    checked(content, Manifest, source=path, advice=AGAIN)
    check_facts(content, source=path, advice=AGAIN)
    return content


def vector_column(vectors_KD: Vectors) -> pa.Array:
    """Vectors (K, D) as Arrow's lists of fixed size."""
    return pa.FixedSizeListArray.from_arrays(pa.array(vectors_KD.ravel()), vectors_KD.shape[1])


def _damaged(path: Path) -> BadInput:
    return BadInput(f"{path}: is missing or damaged; {AGAIN}")
