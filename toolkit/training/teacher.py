"""A teacher: an encoding of the training texts by another encoder, looked up by text, and what it
adds to a contrastive loss.

Shapes: K texts, B local queries, N candidates of all ranks, D width, E width of the teacher.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from toolkit.base.errors import BadInput
from toolkit.encoding.formats import Vectors, unit_length
from toolkit.encoding.store import VectorStore
from toolkit.encoding.units import Unit
from toolkit.model.distillation import Excluded, similarity_kl
from toolkit.model.losses import FILLER, Taught, TeacherLimit, matryoshka
from toolkit.parallel import comm
from toolkit.settings import schema
from toolkit.training.objective import Figures

HOW_TO_MAKE = "encode the texts that data_scripts/list_texts.py lists for this recipe"
ID_DIGITS = 16  # of `text_id`


class Teacher:
    """The vectors of an encoding of texts whose ids are their hashes.

    Raises `BadInput` for an encoding that is absent, damaged, or of other texts or of chunks.
    """

    def __init__(self, directory: Path, *, name: str) -> None:
        self._name = f"{name}={directory}"
        self._store = VectorStore(directory)
        if self._store.has_chunks:
            raise BadInput(f"{self._name}: holds vectors of chunks; encode without chunk_tokens")
        if self._store.units:
            self._hashes_of(self._store.units[0])  # refuses other texts at once
        self.width = self._store.width
        self.digest: str = self._store.manifest["digest"]

    def vectors(self, hashes: Sequence[int]) -> Vectors:
        """The vectors (K, E) of texts by their `text_hash`, of unit length; zero for `FILLER`.
        `BadInput` for a text without a vector."""
        wanted = np.asarray(hashes, dtype=np.int64)
        vectors_KE = np.zeros((len(wanted), self.width), dtype=np.float32)
        (real,) = np.nonzero(wanted != FILLER)
        rows = self._rows_of(wanted[real])
        vectors_KE[real] = unit_length(self._store.read(rows))
        return vectors_KE

    def check(self, hashes: Iterable[int]) -> None:
        """Raise `BadInput` when texts with these hashes have no vector."""
        self._rows_of(np.fromiter(set(hashes), dtype=np.int64))

    def _rows_of(self, wanted: NDArray[np.int64]) -> NDArray[np.int64]:
        hashes, rows = self._index
        places = np.searchsorted(hashes, wanted)
        found = places < len(hashes)
        found[found] = hashes[places[found]] == wanted[found]
        if missing := int((~found).sum()):
            raise BadInput(
                f"{self._name}: has no vector for {missing:,} of {len(wanted):,} texts that this "
                f"recipe reads; {HOW_TO_MAKE}"
            )
        return rows[places]

    @functools.cached_property
    def _index(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """All hashes in ascending order, and the row of each. Read when a text is first asked for:
        a rank that only needs the digest does not read it."""
        parts = [np.empty(0, np.int64), *map(self._hashes_of, self._store.units)]
        hashes = np.concatenate(parts)
        order = np.argsort(hashes, kind="stable")
        return hashes[order], order

    def _hashes_of(self, unit: Unit) -> NDArray[np.int64]:
        ids = self._store.unit_ids(unit)
        whole = "".join(ids)
        if len(whole) != ID_DIGITS * len(ids):
            raise self._other_texts(ids)
        try:
            found = np.frombuffer(bytes.fromhex(whole), dtype=">u8")
        except ValueError as error:
            raise self._other_texts(ids) from error
        return found.astype(np.uint64).view(np.int64)

    def _other_texts(self, ids: Sequence[str]) -> BadInput:
        return BadInput(f"{self._name}: has ids such as {ids[0]!r}, no hashes; {HOW_TO_MAKE}")


@dataclasses.dataclass(frozen=True)
class Lesson:
    """What a teacher says about the local queries and the candidates of all ranks, and which
    candidates do not count."""

    settings: schema.Teacher
    taught: Taught
    excluded: Excluded

    @property
    def limit(self) -> TeacherLimit | None:
        """How near a negative may be; None where the recipe says nothing about that."""
        ratio, margin = self.settings.false_negative_ratio, self.settings.false_negative_margin
        if ratio is None and margin is None:
            return None
        return TeacherLimit(self.taught, ratio=1.0 if ratio is None else ratio, margin=margin or 0)

    def add(
        self,
        contrastive: Tensor,
        query_BD: Tensor,
        *,
        candidate_ND: Tensor,
        dims: Sequence[int] = (),
    ) -> tuple[Tensor, Figures]:
        """The loss to train on, and what to report of the teacher: "teacher_kl", the summed
        divergence for the whole vectors."""

        def kl_of(dim: int) -> tuple[Tensor, Tensor]:
            found = similarity_kl(
                query_BD[:, :dim],
                candidate_ND=candidate_ND[:, :dim],
                taught=self.taught,
                excluded=self.excluded,
                scale=self.settings.scale,
            )
            return found, found.detach()

        kl, kl_of_whole = matryoshka(kl_of, dims=dims, width=query_BD.shape[1])
        weight = self.settings.weight
        return (1 - weight) * contrastive + weight * kl, {"teacher_kl": kl_of_whole}


def lesson_of(
    settings: schema.Teacher,
    *,
    query_BE: Tensor,
    candidate_BE: Tensor,
    excluded: Excluded,
) -> Lesson:
    """The lesson on our queries, of all ranks' candidates; `candidate_BE` are ours. Collective."""
    taught = Taught(query_BE, comm.gather_values(candidate_BE))
    return Lesson(settings, taught=taught, excluded=excluded)


class Teaching:
    """The teacher of a recipe's queries and documents, which may be two encodings of one width."""

    def __init__(self, settings: schema.Teacher, *, key: str) -> None:
        self.settings = settings
        self._documents = Teacher(Path(settings.embeddings), name=f"{key}.embeddings")
        self._queries = self._documents
        if settings.query_embeddings is not None:
            name = f"{key}.query_embeddings"
            self._queries = Teacher(Path(settings.query_embeddings), name=name)
        if self._queries.width != self._documents.width:
            raise BadInput(
                f"{key}.query_embeddings: vectors of {self._queries.width} numbers, and "
                f"{self._documents.width} in {key}.embeddings; give two encodings of one teacher"
            )

    @property
    def digest(self) -> str:
        """The digest of all vectors of both."""
        both = f"{self._documents.digest}\n{self._queries.digest}"
        return hashlib.sha256(both.encode()).hexdigest()

    def of_queries(self, hashes: Sequence[int]) -> Vectors:
        """The vectors of queries, as `Teacher.vectors` gives them."""
        return self._queries.vectors(hashes)

    def of_documents(self, hashes: Sequence[int]) -> Vectors:
        """`Teacher.vectors` of positives and negatives, and of SimCSE's sentences."""
        return self._documents.vectors(hashes)

    def check(self, *, queries: Iterable[int], documents: Iterable[int]) -> None:
        """Raise `BadInput` when texts with these hashes have no vector."""
        self._queries.check(queries)
        self._documents.check(documents)


def open_teaching(recipe: schema.TrainingRecipe) -> Teaching | None:
    """The teacher that a recipe names, if it names one. Raises `BadInput` as `Teacher` does."""
    return Teaching(recipe.teacher, key=f"{recipe.kind}.teacher") if recipe.teacher else None
