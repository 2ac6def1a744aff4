"""A directory of training pairs: queries, texts that answer them, and texts that only seem to.

Knows the manifest, the Parquet columns, and several data sets side by side, each with instructions
of its own. Refuses to know where pairs come from (`pair_formats`) and how they are trained on.

    DIR/pairs-00000-00000.parquet (data set, shard)  DIR/manifest.json  DIR/quarantine.jsonl
    DIR/COMMITTED
"""

import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from typing_extensions import TypedDict

from toolkit.base.documents import Count, Digest, checked
from toolkit.base.errors import BadInput
from toolkit.base.files import committed_directory, sha256_of, write_atomic
from toolkit.base.layout import MANIFEST_FILE
from toolkit.text.copies import ArrowCopy, open_copy
from toolkit.text.duplicates import key_of
from toolkit.text.manifest import (
    Manifest,
    again,
    check_files,
    read_manifest,
    write_manifest,
)

FORMAT = "toolkit-pairs/2"
# Format 1 has the same columns and also hashes, which are ignored: "C++" and "C#" shared one.
OLDER = ("toolkit-pairs/1",)
QUARANTINE = "quarantine.jsonl"
HOW_TO_MAKE = "make it with: python data_scripts/prepare_pairs.py --input FILES --output"
ROWS_PER_SHARD = 50_000
SCHEMA = pa.schema(
    [
        ("query", pa.string()),
        ("positive", pa.string()),
        ("negatives", pa.list_(pa.string())),
    ]
)
_FILE_NAME = re.compile(r"pairs-[0-9]{5,}-[0-9]{5,}\.parquet")


@dataclass(frozen=True)
class Pair:
    """A query, its positive, and its hard negatives, the hardest first.

    Equal texts have equal hashes, by which a loss finds a negative that is the positive of another
    row. Hashes are computed from the texts and never stored, so they always match them.
    """

    query: str
    positive: str
    negatives: tuple[str, ...] = ()

    @property
    def query_hash(self) -> int:
        """The 64-bit `text_hash` of the query."""
        return text_hash(self.query)

    @property
    def positive_hash(self) -> int:
        """The 64-bit `text_hash` of the positive."""
        return text_hash(self.positive)

    @property
    def negative_hashes(self) -> tuple[int, ...]:
        """The 64-bit `text_hash` of each negative, in order."""
        return tuple(map(text_hash, self.negatives))


@dataclass(frozen=True)
class PairTask:
    """One data set of pairs and its instructions; an empty instruction means none.

    For a symmetric task, such as finding duplicates, both sides have the same instruction.
    `max_negatives` is the largest number of hard negatives of a pair, known once the pairs are
    written.
    """

    name: str
    query_instruction: str = ""
    document_instruction: str = ""
    max_negatives: int = 0


def text_hash(text: str) -> int:
    """64 bits that are equal for identical texts and, in practice, only for those.

    Texts must be identical to the character: of two texts that differ in a sign, an accent or the
    case of a letter, one may be right and the other wrong, and such a text is a good hard negative.
    """
    return int.from_bytes(key_of(text)[:8], "little", signed=True)


def text_id(text: str) -> str:
    """`text_hash` as 16 hexadecimal digits: the id of a text whose vector a teacher gives."""
    return f"{text_hash(text) % 2**64:016x}"


def write_pairs(
    sets: Iterable[tuple[PairTask, Iterable[Pair]]],
    *,
    output: Path,
    sources: Sequence[dict[str, Any]],
    quarantine: Sequence[str],
    counts: Mapping[str, Mapping[str, Any]] | None = None,
) -> Manifest:
    """Write a whole directory of pairs, or nothing; returns its manifest.

    `quarantine` holds JSON lines. It is read after the last pair, so that the lazy readers in
    `sets` can fill it. So are `counts`: by the name of a data set, the rows that gave no pair,
    which go into its entry in the manifest. Equal input gives equal bytes. Raises `BadInput` when a
    data set has no pair.
    """
    with committed_directory(output) as folder:
        entries = []
        for number, (task, pairs) in enumerate(sets):
            shards = list(_write_set(pairs, folder=folder, number=number))
            if not shards:
                raise BadInput(f"data set {task.name!r}: no pair to train on")
            summary = {
                **vars(task),
                "max_negatives": max(shard["max_negatives"] for shard in shards),
                "rows": sum(shard["rows"] for shard in shards),
            }
            summary |= (counts or {}).get(task.name, {})
            entries.append({**summary, "shards": shards})
        if quarantine:
            write_atomic(folder / QUARANTINE, "".join(quarantine))
        content = {
            "format": FORMAT,
            "sets": entries,
            "rows": sum(entry["rows"] for entry in entries),
            "quarantined": len(quarantine),
            "sources": list(sources),
        }
        return write_manifest(folder, content)


def _write_set(pairs: Iterable[Pair], *, folder: Path, number: int) -> Iterator[dict[str, Any]]:
    remaining = iter(pairs)  # lazy: a data set need not fit into memory, a shard must
    for shard in itertools.count():
        rows = list(itertools.islice(remaining, ROWS_PER_SHARD))
        if not rows:
            return
        table = pa.table(
            {
                "query": [pair.query for pair in rows],
                "positive": [pair.positive for pair in rows],
                "negatives": [list(pair.negatives) for pair in rows],
            },
            schema=SCHEMA,
        )
        path = folder / f"pairs-{number:05d}-{shard:05d}.parquet"
        pq.write_table(table, path, compression="zstd", row_group_size=1000)
        yield {
            "file": path.name,
            "rows": len(rows),
            "max_negatives": max(len(pair.negatives) for pair in rows),
            "bytes": path.stat().st_size,
            "sha256": sha256_of(path),
        }


def open_pairs(directory: Path, *, verify: bool = True) -> "PairSet":
    """Open a directory of pairs after checking that it is whole. With `verify` the SHA-256 of every
    shard and of its Arrow copy is compared now; otherwise that of the copy when it is read. Raises
    `BadInput`, which names what is absent or damaged."""
    directory = directory.absolute()  # a loader process may have another working directory
    manifest = checked_manifest(directory, verify=verify)
    shards = [shard for entry in manifest["sets"] for shard in entry["shards"]]
    copy = open_copy(directory, entries=shards, schema=SCHEMA, verify=verify)
    return PairSet(copy, manifest=manifest)


class _Shard(TypedDict):
    file: str
    rows: Count
    max_negatives: Count
    bytes: Count
    sha256: Digest


class _Set(TypedDict):
    name: str
    query_instruction: str
    document_instruction: str
    max_negatives: Count
    rows: Count
    shards: list[_Shard]


class Listed(TypedDict):
    """The keys that a manifest of pairs must have to be read."""

    rows: Count
    sets: list[_Set]


def checked_manifest(directory: Path, *, verify: bool) -> Manifest:
    """The manifest of a complete directory; `BadInput` names what is absent or damaged."""
    manifest = read_manifest(directory, form=FORMAT, older=OLDER, how_to_make=HOW_TO_MAKE)
    checked(manifest, Listed, source=directory / MANIFEST_FILE, advice=again(directory))
    shards = itertools.chain(*(entry["shards"] for entry in manifest["sets"]))
    check_files(directory, shards, names=_FILE_NAME, verify=verify)
    return manifest


class PairSet:
    """The pairs of all data sets, memory-mapped as Arrow: a row is read when it is asked for.

    `tasks` are the data sets in order, `num_rows` their sizes; `digest` identifies all content.
    """

    def __init__(self, copy: ArrowCopy, *, manifest: Manifest) -> None:
        names = PairTask.__dataclass_fields__
        self.tasks = [
            PairTask(**{name: entry[name] for name in names}) for entry in manifest["sets"]
        ]
        self.num_rows: NDArray[np.int64] = np.array(
            [entry["rows"] for entry in manifest["sets"]], dtype=np.int64
        )
        shards = [shard for entry in manifest["sets"] for shard in entry["shards"]]
        # Instructions are not in the shards, but they change what is trained on.
        digests = "\n".join(shard["sha256"] for shard in shards)
        texts = json.dumps([vars(task) for task in self.tasks])
        self.digest = hashlib.sha256(f"{digests}\n{texts}".encode()).hexdigest()
        self._starts = np.cumsum([0, *self.num_rows[:-1]], dtype=np.int64)
        self._copy = copy

    def pair(self, number: int, row: int) -> Pair:
        """The pair in row `row` of data set `number`."""
        place = int(self._starts[number]) + int(row)
        self._copy.need(place, place + 1)
        record = self._copy.rows[place]
        return Pair(
            query=record["query"],
            positive=record["positive"],
            negatives=tuple(record["negatives"]),
        )
