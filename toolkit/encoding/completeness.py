"""Has every row of the source its vector? Counted from the files, and said in one line.

Knows how many rows source, corpus and units have. Refuses to know who writes a unit, and whether
its bytes are still those that were written (`store`). Shapes: R rows of a unit.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from typing_extensions import TypedDict  # pydantic wants this one before Python 3.12

from toolkit.base.documents import Count
from toolkit.base.errors import BadInput
from toolkit.base.files import digest_of
from toolkit.base.layout import MANIFEST_FILE
from toolkit.encoding.formats import open_vectors
from toolkit.settings.schema import VectorFormat
from toolkit.text.shards import ids_of_shards
from toolkit.text.tally import in_words, tally_fault

if TYPE_CHECKING:
    from toolkit.encoding.store import VectorStore


class Counts(TypedDict):
    """What the files of units hold: texts, vectors (with chunks there are more of them), and texts
    without tokens, whose vector is zero."""

    texts: Count
    vectors: Count
    empty: Count


def counts_of_unit(
    vectors: Path, ids: Path, *, marker: Mapping[str, Any], form: VectorFormat
) -> Counts | None:
    """What the files of a unit hold; None if one of them is missing, cut off, or holds other rows
    than the unit's marker says. Headers and short columns are read, and no vector."""
    try:
        with pq.ParquetFile(ids) as file:
            table = file.read(columns=["empty", "chunk"])  # of those that there are
        open_vectors(
            vectors,
            form=form,
            rows=marker["rows"],
            width=marker["width"],
            seal=marker.get("blocks"),
        )
    except (OSError, ValueError, pa.ArrowException):
        return None
    return _counts(table) if len(table) == marker["rows"] else None


def total(counts: Iterable[Counts]) -> Counts:
    """What several units hold together."""
    summed = Counter[str]()
    for one in counts:
        summed.update(one)
    return {"texts": summed["texts"], "vectors": summed["vectors"], "empty": summed["empty"]}


def require_complete(manifest: Mapping[str, Any], counts: Counts, *, source: Path) -> None:
    """Raise `BadInput`, with the numbers, unless every row of the source has become a vector, or is
    counted as left out or as bad. `source` names the encoding."""
    fault = ""
    if counts["texts"] != manifest["rows"]:
        fault = f"{counts['texts']:,} of {manifest['rows']:,} rows have a vector"
    elif manifest.get("counts", counts) != counts:
        fault = f"{MANIFEST_FILE} says {manifest['counts']}, and the units hold {counts}"
    elif "source" in manifest:
        fault = tally_fault(manifest["source"], documents=counts["texts"])
    if fault:
        raise BadInput(
            f"{source}: its rows do not add up: {fault}; encode the corpus anew, into another "
            "output_dir"
        )


def completeness_line(manifest: Mapping[str, Any], counts: Counts) -> str:
    """What became of every row, as a sum, and the digest of what the encoding is and holds: equal
    for equal vectors and ids, wherever they are."""
    tally = manifest.get("source")
    chunks = f" in {counts['vectors']:,} chunks" if "chunks" in manifest else ""
    remarks = [f"{counts['empty']:,} empty"]
    if tally and tally.get("without_id"):
        remarks.append(f"{tally['without_id']:,} without an id of their own")
    kept = f"{counts['texts']:,} with vectors{chunks} ({', '.join(remarks)})"
    said = in_words(tally, kept=kept) if tally else f"{kept}, rows of the source not recorded"
    files = {name: marker["sha256"] for name, marker in manifest["units"].items()}
    digest = digest_of({"encoding": manifest["digest"], "units": files})
    return f"{said}; sha256 {digest[:16]}"


def proven_line(store: "VectorStore") -> str:
    """`completeness_line` after counting the ids of all units again, and comparing them row by row
    with those of the corpus, if it is still where it was encoded. Raises `BadInput` when they do
    not add up."""
    tables = (store.unit_facts(unit) for unit in store.units)
    counts = total(map(_counts, tables))
    require_complete(store.manifest, counts, source=store.directory)
    corpus = Path(store.manifest["corpus_path"])
    theirs = ids_of_shards(corpus, digest=store.manifest["corpus"])
    if theirs is None:
        said = f"ids not compared: {corpus} is not there any more, or has changed"
    else:
        _require_same_ids(store, theirs)
        said = "ids are those of the corpus"
    return f"{completeness_line(store.manifest, counts)}, {said}"


def _counts(table: pa.Table) -> Counts:
    is_chunked = "chunk" in table.column_names
    texts = pc.sum(pc.equal(table["chunk"], 0)).as_py() or 0 if is_chunked else len(table)
    return {
        "texts": texts,
        "vectors": len(table),
        "empty": pc.sum(table["empty"]).as_py() or 0,
    }


def _require_same_ids(store: "VectorStore", theirs: Iterable[list[str]]) -> None:
    """Compare the ids of all texts with those of the corpus, both read a piece at a time."""
    wanted = (one for piece in theirs for one in piece)
    row = 0
    for unit in store.units:
        for one in store.unit_ids(unit):
            if one != (other := next(wanted, None)):
                raise BadInput(
                    f"{store.directory}: row {row} has the id {one!r}, and in the corpus "
                    f"{other!r}; encode the corpus anew, into another output_dir"
                )
            row += 1
