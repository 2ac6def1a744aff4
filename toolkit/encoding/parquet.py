"""An encoding as one Parquet file, for DuckDB, Qdrant and whatever else reads Arrow.

The columns are those of `VectorStore.table`, with the vector as fixed_size_list<float>. Each unit
is a row group, so that one unit is in memory at a time. The file's metadata has the encoding's
digest.
"""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from toolkit.base.console import Progress
from toolkit.base.errors import BadInput
from toolkit.base.files import naming, place_new, remove_temporaries, sync, temporary_of
from toolkit.base.sealed import SELF_DIGEST
from toolkit.encoding.store import VectorStore, vector_column

OLD_S = 3600.0  # a writer on another host that was silent for so long was killed


def write_parquet(encoding: Path, *, out: Path) -> int:
    """Write all rows of an encoding, in order, all or nothing; returns the number of rows.

    Raises `BadInput` when the encoding is unfinished or damaged, or `out` cannot be written to.
    """
    store = open_for_export(encoding, out=out, suffix=".parquet")
    temporary = temporary_of(out)
    try:
        with (
            naming(out),
            pq.ParquetWriter(temporary, schema_of(store), compression="zstd") as writer,
        ):
            for table in tables_of(store):
                writer.write_table(table)
        sync(temporary)
        if not place_new(temporary, out):  # somebody else has created it since we looked
            raise taken(out)
    finally:
        temporary.unlink(missing_ok=True)
    return store.num_rows


def open_for_export(encoding: Path, *, out: Path, suffix: str) -> VectorStore:
    """The encoding, whose rows may be written to `out`; what killed exports left there is removed.
    Raises `BadInput` when there is nothing to export, or `out` exists or ends otherwise."""
    if out.suffix != suffix:
        raise BadInput(f"{out}: an encoding is exported here; give a name that ends in {suffix}")
    if out.exists():
        raise taken(out)
    store = VectorStore(encoding)
    if not store.num_rows:
        raise BadInput(f"{encoding}: has no rows to export")
    out.parent.mkdir(parents=True, exist_ok=True)
    remove_temporaries(out.parent, out.name, old_s=OLD_S)
    return store


def taken(out: Path) -> BadInput:
    """The error for an output that exists."""
    return BadInput(f"{out}: is there already; choose another")


def schema_of(store: VectorStore) -> pa.Schema:
    """The columns of an export, with the encoding's digest as metadata."""
    schema: pa.Schema = store.table([]).schema
    return schema.with_metadata({"encoding": store.manifest[SELF_DIGEST]})


def tables_of(store: VectorStore) -> Iterator[pa.Table]:
    """The rows of each unit, in order, with their vectors; shows the progress."""
    progress = Progress("export", total=store.num_rows, unit="rows")
    try:
        for unit, vectors_RD in store.blocks():
            facts = store.facts(slice(unit.start, unit.stop))
            yield facts.append_column("vector", vector_column(vectors_RD))
            progress.advance(unit.stop - unit.start)
    finally:
        progress.close()
