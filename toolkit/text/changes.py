"""Which documents of a corpus are new, changed or gone since an older one, by id and text.

Knows two directories of shards. Takes 16 bytes of memory per document. Shapes: N documents.
"""

from collections.abc import Iterator
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from toolkit.text.pairs import text_hash
from toolkit.text.shards import ShardSet

Change = Literal["same", "changed", "new", "gone"]
Hashes = NDArray[np.int64]
AT_ONCE = 1000  # documents


def changes(old: ShardSet, new: ShardSet) -> Iterator[tuple[str, Change]]:
    """The id of each document of `new`, in order, and what became of it; then the ids of `old` that
    `new` does not have, in order."""
    known_N, text_N = _sorted(old)
    seen = np.zeros(len(known_N), dtype=np.bool_)
    for name, id_hash, content in _hashes(new):
        place = int(np.searchsorted(known_N, id_hash))
        if place == len(known_N) or known_N[place] != id_hash:
            yield name, "new"
            continue
        seen[place] = True
        yield name, "same" if text_N[place] == content else "changed"
    gone = known_N[~seen]
    for name, id_hash, _ in _hashes(old) if len(gone) else ():
        place = int(np.searchsorted(gone, id_hash))
        if place < len(gone) and gone[place] == id_hash:
            yield name, "gone"


def _sorted(shards: ShardSet) -> tuple[Hashes, Hashes]:
    """The hashes of all ids in ascending order, and those of their texts."""
    hash_N2 = np.empty((len(shards), 2), dtype=np.int64)
    for row, (_, id_hash, content) in enumerate(_hashes(shards)):
        hash_N2[row] = id_hash, content
    order = np.argsort(hash_N2[:, 0])
    return hash_N2[order, 0], hash_N2[order, 1]


def _hashes(shards: ShardSet) -> Iterator[tuple[str, int, int]]:
    for start in range(0, len(shards), AT_ONCE):
        for record in shards.records(start, start + AT_ONCE):
            yield record["id"], text_hash(record["id"]), text_hash(record["text"])
