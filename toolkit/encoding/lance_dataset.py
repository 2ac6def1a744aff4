"""An encoding as a Lance dataset, which LanceDB opens as a table.

Knows pylance, which is optional. The columns are those of the Parquet file (`parquet`).
"""

import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from toolkit.base.errors import BadInput
from toolkit.base.files import naming, temporary_of
from toolkit.encoding.parquet import open_for_export, schema_of, tables_of, taken
from toolkit.encoding.store import VectorStore

TAKEN = (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR)


def write_lance(encoding: Path, *, out: Path) -> int:
    """Write all rows of an encoding, in order, all or nothing; returns the number of rows.

    Raises `BadInput` without pylance, when the encoding is unfinished or damaged, or `out` cannot
    be written to.
    """
    try:
        import lance
    except ImportError as error:
        raise BadInput(f"{out}: a Lance dataset needs pylance; pip install pylance") from error
    store = open_for_export(encoding, out=out, suffix=".lance")
    schema, temporary = schema_of(store), temporary_of(out)
    refusals: list[BadInput] = []
    try:
        with naming(out):
            # Its digest is metadata of the schema, which is stored with the dataset.
            reader = pa.RecordBatchReader.from_batches(schema, _batches(store, refusals))
            try:
                lance.write_dataset(reader, str(temporary), mode="create")
            except OSError as error:
                raise next(iter(refusals), error) from None
            try:
                os.rename(temporary, out)
            except OSError as error:
                if error.errno not in TAKEN:
                    raise
                raise taken(out) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return store.num_rows


def _batches(store: VectorStore, refusals: list[BadInput]) -> Iterator[pa.RecordBatch]:
    """The rows of an encoding. What is damaged is noted: lance hides it in an error of its own."""
    try:
        for table in tables_of(store):
            yield from table.to_batches()
    except BadInput as error:
        refusals.append(error)
        raise
