"""Vectors of an older encoding, for the texts of a corpus that have not changed.

Knows the older encoding and the keys of its texts. Refuses to know who embeds what is new.

A vector depends on its text, the model and the settings. So a text whose key (`key_of`) stands in
the older encoding gets that vector, with the bytes in which it is stored, wherever the text stands
now. Shapes: K texts, M rows of the older encoding, D width.
"""

import functools
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from toolkit.base.console import say
from toolkit.base.errors import BadInput
from toolkit.base.files import create_json, read_json, write_json
from toolkit.base.layout import REUSE_FILE
from toolkit.base.sealed import sealed
from toolkit.encoding.formats import Kept
from toolkit.encoding.store import VectorStore
from toolkit.encoding.units import Unit
from toolkit.runs.records import Reuse, reuse_line
from toolkit.text.duplicates import KEY_BYTES

Ints = NDArray[np.int64]
NO_KEY = bytes(KEY_BYTES)
SAME = ("format", "model", "encoder", "output", "chunks")  # the facts that decide a vector


class OldVectors:
    """The finished encoding in `store`, for a new one with these `facts`.

    `why_none` says why nothing can be reused, if so: another model, other settings, or no keys.
    """

    def __init__(self, store: VectorStore, *, facts: Mapping[str, Any]) -> None:
        self.store = store
        there = self.store.manifest
        differing = [name for name in SAME if there.get(name) != facts.get(name)]
        self.why_none = ""
        if differing:
            self.why_none = f"it is of another {' and '.join(differing)}"
        elif self.store.units and self.store.unit_keys(self.store.units[0]) is None:
            self.why_none = "it was made by an older toolkit, which kept no digests of texts"

    def find(self, keys: Sequence[bytes]) -> Ints:
        """The first row (K,) of each text with one of these keys; -1 for a text that is not there.
        Of two equal texts the first one is found."""
        if self.why_none:
            return np.full(len(keys), -1, dtype=np.int64)
        wanted = _halves(keys)
        sorted_M2, row_M = self._index
        if not len(row_M):
            return np.full(len(keys), -1, dtype=np.int64)
        places = np.searchsorted(sorted_M2[:, 0], wanted[:, 0])
        places = np.minimum(places, len(row_M) - 1)
        # Two texts that share the first half of a key only: the later one counts as new.
        found = (sorted_M2[places] == wanted).all(axis=1)
        return np.where(found, row_M[places], -1)

    def rows_from(self, first: int) -> range:
        """All rows of the text whose first row this is: its chunks, or the row alone."""
        firsts = self._firsts
        number = int(np.searchsorted(firsts, first))
        stop = int(firsts[number + 1]) if number + 1 < len(firsts) else self.store.num_rows
        return range(first, stop)

    def records_of(
        self, rows: range, *, record: Mapping[str, Any], row: int
    ) -> list[Mapping[str, Any]]:
        """The records of a text's rows here, for the `record` and the row that it has now."""
        if not self.store.has_chunks:
            return [record]
        now = {"id": record["id"], "title": record["title"], "key": record["key"], "row": row}
        return [
            {**now, **{name: int(column[place]) for name, column in self._chunks.items()}}
            for place in rows
        ]

    def kept(self, places: Sequence[int], rows: Sequence[int]) -> Kept:
        """The vectors of these rows for these places of a unit."""
        rows_M = np.asarray(rows, dtype=np.int64)
        vectors_MD, stored = self.store.stored(rows_M)
        return Kept(np.asarray(places, dtype=np.int64), vectors_MD, stored)

    @functools.cached_property
    def _firsts(self) -> Ints:
        """The first row of each text, in ascending order."""
        if not self.store.has_chunks:
            return np.arange(self.store.num_rows, dtype=np.int64)
        return np.flatnonzero(self._chunks["chunk"] == 0)

    @functools.cached_property
    def _chunks(self) -> Mapping[str, Ints]:
        """Number, begin, end and, if it has one, window of all chunks."""
        there = self.store.schema
        names = [name for name in there.names if name in ("chunk", "begin", "end", "window")]
        tables = [self.store.unit_facts(unit).select(names) for unit in self.store.units]
        whole = pa.concat_tables([there.empty_table().select(names), *tables])
        return {name: whole[name].to_numpy() for name in names}

    @functools.cached_property
    def _index(self) -> tuple[NDArray[np.uint64], Ints]:
        """The keys of all texts as two numbers each, in the order of the first; and their rows."""
        # Unit by unit: as Python objects the keys would take three times as much.
        keys = [_halves(_keys(self.store, unit)) for unit in self.store.units]
        key_M2 = np.concatenate([_halves([]), *keys])
        order = np.argsort(key_M2[:, 0], kind="stable")
        return key_M2[order], self._firsts[order]


def _keys(store: VectorStore, unit: Unit) -> list[bytes]:
    """The key of each text of a unit. A unit of an older toolkit has none: nothing is found."""
    keys = store.unit_keys(unit) or [NO_KEY] * (unit.stop - unit.start)
    if not store.has_chunks:
        return keys
    begins = store.unit_facts(unit)["chunk"].to_numpy() == 0
    return list(itertools.compress(keys, begins))


def _halves(keys: Sequence[bytes]) -> NDArray[np.uint64]:
    return np.frombuffer(b"".join(keys), dtype=np.uint64).reshape(-1, 2)


def begin_reuse(output_dir: Path, old: OldVectors, *, is_new: bool) -> None:
    """Note that an encoding reuses `old`, before its first unit is made (`is_new`)."""
    if is_new:
        create_json(output_dir / REUSE_FILE, sealed(_of(old)))


def record_reuse(new: VectorStore, old: OldVectors) -> str:
    """Count what became of the texts, by their keys and ids in both encodings; in one line. It is
    written beside the manifest, unless units were made before `old` was named: nobody knows of
    which of them the vectors were taken over. `reused`: the text was there. `changed`: only its id
    was there. `new`: neither. `gone`: ids that are not there any more."""
    path = new.directory / REUSE_FILE
    try:
        begun_with = read_json(path)["digest"]
    except (BadInput, KeyError, TypeError):
        begun_with = None
    if begun_with != old.store.manifest["digest"]:
        return (
            f"reuse={old.store.directory}: units were made before it was named, so that what was "
            "taken over is not counted"
        )
    ours, theirs = _ids(new), _ids(old.store)
    rows = [np.empty(0, np.int64), *(old.find(_keys(new, unit)) for unit in new.units)]
    found = np.concatenate(rows) >= 0
    known = np.isin(ours, theirs)
    record: Reuse = {
        **_of(old),
        "reused": int(found.sum()),
        "changed": int((~found & known).sum()),
        "new": int((~found & ~known).sum()),
        "gone": int((~np.isin(theirs, ours)).sum()),
    }
    write_json(path, sealed(record))
    return reuse_line(record)


def _of(old: OldVectors) -> Reuse:
    """What is known of a reuse before the first unit is made."""
    manifest = old.store.manifest
    return {
        "encoding": str(old.store.directory),
        "digest": manifest["digest"],
        "why_none": old.why_none,
    }


def _ids(store: VectorStore) -> Ints:
    """A hash of the id of each text: 8 bytes of memory each, as in `agreement.check_ids`."""
    ids = (one for unit in store.units for one in store.unit_ids(unit))
    return np.fromiter(map(hash, ids), dtype=np.int64)


def open_old(
    directory: str | None, *, output_dir: Path, facts: Mapping[str, Any]
) -> OldVectors | None:
    """The older encoding that a recipe names, if it names one. Raises `BadInput` for the encoding
    itself, and for one that is not finished or is damaged."""
    if directory is None:
        return None
    old = OldVectors(store_of_old(directory, output_dir=output_dir), facts=facts)
    if old.why_none:
        say(f"embed: reuse={directory}: {old.why_none}; all texts are embedded")
    return old


def store_of_old(directory: str, *, output_dir: Path) -> VectorStore:
    """The older encoding that `reuse` names. Raises `BadInput` for the output itself, and for an
    encoding that is not finished or is damaged."""
    path = Path(directory)
    if path.resolve() == output_dir.resolve():
        raise BadInput(f"reuse={directory} is the output_dir itself; name an older encoding")
    return VectorStore(path)
