"""A unit's texts as the rows to write: those to embed, and those that an older encoding has.

Knows chunks, keys of texts, and the older encoding. Refuses to know the model and the files.
Shapes: R rows of a unit, F of them to embed, D width.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.encoding.batches import Prepared
from toolkit.encoding.chunks import chunks_of, records_of
from toolkit.encoding.encoder import Encoder
from toolkit.encoding.formats import Kept, Vectors
from toolkit.encoding.reuse import OldVectors
from toolkit.encoding.units import ChunkRules, Unit
from toolkit.text.duplicates import key_of

Records = Sequence[Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class UnitRows:
    """The rows of a unit: their records, in order; what is to be embedded, with the places of these
    rows; and what is kept of an older encoding, if anything is, with its number of texts."""

    records: Records
    prepared: Prepared
    fresh_F: NDArray[np.int64]
    kept: Kept | None = None
    num_kept_texts: int = 0

    def vectors(self, fresh_FD: Vectors) -> Vectors:
        """The vectors (R, D) of all rows, from those that were embedded."""
        if self.kept is None:
            return fresh_FD
        vectors_RD = np.empty((len(self.records), self.kept.vectors_MD.shape[1]), dtype=np.float32)
        vectors_RD[self.fresh_F] = fresh_FD
        vectors_RD[self.kept.places_M] = self.kept.vectors_MD
        return vectors_RD


class Preparer:
    """Prepares units for an encoder. With `chunks` each chunk of a text is a row. Texts that stand
    in `old` are not embedded."""

    def __init__(
        self, encoder: Encoder, *, chunks: ChunkRules | None = None, old: OldVectors | None = None
    ) -> None:
        self._encoder, self._chunks, self._old = encoder, chunks, old

    def prepare(self, unit: Unit, records: Records) -> UnitRows:
        """The rows of a unit. `records` are those of its texts, with the texts."""
        keyed = [{**record, "key": key_of(record["text"])} for record in records]
        found = [-1] * len(keyed)
        if self._old is not None:
            found = self._old.find([record["key"] for record in keyed]).tolist()
        fresh = [number for number, row in enumerate(found) if row < 0]
        prepared, made = self._fresh(unit, keyed, numbers=fresh)
        if len(fresh) == len(keyed):
            everything = [record for number in fresh for record in made[number]]
            return UnitRows(everything, prepared, fresh_F=np.arange(len(everything)))
        assert self._old is not None
        return _joined(
            keyed, found=found, made=made, prepared=prepared, old=self._old, first_row=unit.start
        )

    def _fresh(
        self, unit: Unit, records: Records, *, numbers: Sequence[int]
    ) -> tuple[Prepared, dict[int, list[Mapping[str, Any]]]]:
        """The texts with these numbers as rows to embed, and the records of each one's rows."""
        texts = [records[number]["text"] for number in numbers]
        if not self._chunks:
            return self._encoder.prepare(texts), {number: [records[number]] for number in numbers}
        if self._chunks.is_late:
            chunks, prepared = self._encoder.prepare_late(texts, chunks=self._chunks)
        else:
            chunks = chunks_of(texts, tokenizer=self._encoder.tokenizer, rules=self._chunks)
            prepared = self._encoder.prepare_rows([chunk.ids_C for chunk in chunks])
        some = [records[number] for number in numbers]
        rows = [unit.start + number for number in numbers]
        made: dict[int, list[Mapping[str, Any]]] = {number: [] for number in numbers}
        for chunk, record in zip(chunks, records_of(chunks, records=some, rows=rows), strict=True):
            made[numbers[chunk.text]].append(record)
        return prepared, made


def _joined(
    records: Records,
    *,
    found: Sequence[int],
    made: Mapping[int, Sequence[Mapping[str, Any]]],
    prepared: Prepared,
    old: OldVectors,
    first_row: int,
) -> UnitRows:
    """The rows of all texts in order: those that were made, and those that were `found`."""
    everything: list[Mapping[str, Any]] = []
    fresh: list[int] = []
    places: list[int] = []
    rows: list[int] = []
    for number, first in enumerate(found):
        start = len(everything)
        if first < 0:
            everything += made[number]
            fresh += range(start, len(everything))
            continue
        there = old.rows_from(first)
        everything += old.records_of(there, record=records[number], row=first_row + number)
        places += range(start, len(everything))
        rows += there
    return UnitRows(
        everything,
        prepared,
        fresh_F=np.array(fresh, dtype=np.int64),
        kept=old.kept(places, rows),
        num_kept_texts=sum(first >= 0 for first in found),
    )
