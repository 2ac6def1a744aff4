"""An encoding as one Parquet file, for DuckDB, LanceDB, Qdrant and whatever else reads Arrow.

The columns are those of `VectorStore.table`, with the vector as fixed_size_list<float>. Each unit
is a row group, so that one unit is in memory at a time. The file's metadata has the encoding's
digest.
"""

from pathlib import Path

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
    if out.suffix != ".parquet":
        raise BadInput(f"{out}: an encoding becomes one file; give a name that ends in .parquet")
    if out.exists():
        raise BadInput(f"{out}: is there already; choose another")
    store = VectorStore(encoding)
    if not store.num_rows:
        raise BadInput(f"{encoding}: has no rows to export")
    out.parent.mkdir(parents=True, exist_ok=True)
    remove_temporaries(out.parent, out.name, old_s=OLD_S)
    temporary = temporary_of(out)
    progress = Progress("export", total=store.num_rows, unit="rows")
    schema = store.table([]).schema.with_metadata({"encoding": store.manifest[SELF_DIGEST]})
    try:
        with naming(out), pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
            for unit, vectors_RD in store.blocks():
                facts = store.facts(slice(unit.start, unit.stop))
                table = facts.append_column("vector", vector_column(vectors_RD))
                writer.write_table(table)
                progress.advance(len(table))
        sync(temporary)
        if not place_new(temporary, out):  # somebody else has created it since we looked
            raise BadInput(f"{out}: is there already; choose another")
    finally:
        progress.close()
        temporary.unlink(missing_ok=True)
    return store.num_rows
