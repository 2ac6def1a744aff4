"""An approximate index of an encoding by faiss: built unit by unit, and resumed after a kill.

    ENC/index/hnsw.json               the file's name, its number of rows, the encoding's digest
    ENC/index/hnsw-1f2e3d4c.faiss     the index, whole or as far as it has been built

The JSON is written last and names the other file by its digest. So the file that it names is whole,
even if somebody else builds at the same time. An index proposes rows; their cosines are computed
from the stored vectors.
Knows faiss, which is optional. Shapes: Q queries, C candidates, K hits, D width.
"""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from typing_extensions import TypedDict

from toolkit.base.console import at_work
from toolkit.base.documents import Count, Digest, FileName, checked
from toolkit.base.errors import ROOM, BadInput, RunFailed, is_full
from toolkit.base.files import (
    read_json,
    remove_temporaries,
    sha256_of,
    sync,
    temporary_of,
    write_json,
)
from toolkit.base.layout import INDEX_DIR
from toolkit.base.sealed import SELF_DIGEST
from toolkit.encoding.formats import Vectors, unit_length
from toolkit.encoding.search import Found, check_queries, cosines, nearest_rows
from toolkit.encoding.store import VectorStore

FORMAT = "toolkit-index/1"
FLAT, IVF, HNSW, PQ = "flat", "ivf", "hnsw", "pq"
KINDS = (FLAT, IVF, HNSW, PQ)
_CLASSES = {FLAT: "IndexFlat", IVF: "IndexIVFFlat", HNSW: "IndexHNSWFlat", PQ: "IndexPQ"}  # faiss's
SAVE_EVERY_S = 600.0
YOUNG_S = 6 * SAVE_EVERY_S
TRAINING_ROWS = 39  # per centroid; faiss warns of fewer
MOST_TRAINING_ROWS = 2**18
CANDIDATES = 4  # per hit
ROWS_AT_ONCE = 2**14  # stored vectors in memory at a time
OnRows = Callable[[int], None]


@dataclasses.dataclass(frozen=True)
class Record:
    """The content of the JSON. `encoding` is the digest of the encoding's manifest."""

    format: str
    kind: str
    encoding: str
    parameters: dict[str, int]
    file: str
    sha256: str
    bytes: int
    rows: int


class _RecordJson(TypedDict):
    """A `Record` as JSON, to check it."""

    format: str
    kind: str
    encoding: str
    parameters: dict[str, Annotated[int, Field(ge=0, le=2**31)]]
    file: FileName
    sha256: Digest
    bytes: Count
    rows: Count


def parameters_of(kind: str, *, num_rows: int, width: int) -> dict[str, int]:
    """The parameters of an index of `num_rows` vectors of `width` numbers."""
    if kind == IVF:
        lists = max(1, min(int(4 * num_rows**0.5), num_rows // TRAINING_ROWS))
        return {"lists": lists, "probes": min(lists, 16 + lists // 32)}
    if kind == HNSW:
        return {"links": 32, "ef_construction": 200, "ef_search": 128}
    if kind == PQ:
        parts = max(n for n in range(1, max(1, width // 4) + 1) if width % n == 0)
        # So many centroids per part as there are rows to train them.
        bits = max(1, min(8, (max(2, num_rows // TRAINING_ROWS)).bit_length() - 1))
        return {"parts": parts, "bits": bits}
    return {}


def build_index(
    store: VectorStore,
    *,
    kind: str,
    save_every_s: float = SAVE_EVERY_S,
    now: Callable[[], float] = time.monotonic,
    on_rows: OnRows | None = None,
) -> Record:
    """Build the index of that kind, or go on with one that was begun.

    An index of another encoding or with other parameters is built anew. Raises `BadInput` without
    faiss, or when a unit is damaged.
    """
    _faiss()
    wanted = {
        "format": FORMAT,
        "kind": kind,
        "encoding": store.manifest[SELF_DIGEST],
        "parameters": parameters_of(kind, num_rows=store.num_rows, width=store.width),
    }
    folder = store.directory / INDEX_DIR
    record = _go_on_from(folder, wanted=wanted)
    if record and record.rows == store.num_rows:
        return record
    if record:
        index = _loaded(folder / record.file, record=record, width=store.width)
    else:
        index = _new_index(store, kind=kind, parameters=wanted["parameters"])
    begun = record.rows if record else 0
    if on_rows:
        on_rows(begun)
    saved_at = now()
    for unit, vectors_RD in store.blocks(start=begun):
        index.add(unit_length(vectors_RD))
        if on_rows:
            on_rows(unit.stop - unit.start)
        if unit.stop < store.num_rows and now() - saved_at >= save_every_s:
            _save(index, folder=folder, wanted=wanted)
            saved_at = now()
    return _save(index, folder=folder, wanted=wanted)


class Index:
    """An index, to be searched. faiss loads its file whole, so that the file is compared with its
    SHA-256 first: some 0.6 s of a core per GB. The rows of units that are not in it, because its
    build was not finished, are `num_missing`; they are searched exactly."""

    def __init__(self, store: VectorStore, *, kind: str) -> None:
        """Raises `BadInput` when there is none, or it is damaged or of another encoding."""
        self._store = store
        record = _checked(store, kind=kind)
        path = store.directory / INDEX_DIR / record.file
        self._index = _loaded(path, record=record, width=store.width)
        self._begun = record.rows
        self.num_missing = store.num_rows - record.rows
        self._ef_search = record.parameters.get("ef_search", 0)
        if kind == IVF:
            self._index.nprobe = record.parameters["probes"]

    def nearest_rows(self, queries_QD: Vectors, top: int) -> Found:
        """The cosines (Q, K) and rows (Q, K) that the index finds, best first, with row -1 where it
        finds fewer. It proposes `CANDIDATES` times as many rows, of which those with the highest
        cosine of stored vectors are kept. `BadInput` for what `check_queries` refuses."""
        found = self._proposed(queries_QD, top)
        if not self.num_missing or not len(queries_QD):
            return found
        others = nearest_rows(self._store, queries_QD=queries_QD, top=top, start=self._begun)
        scores_QK = np.concatenate([found[0], others[0]], axis=1)
        rows_QK = np.concatenate([found[1], others[1]], axis=1)
        # Those of the index come first: of equal cosines the first row of the corpus.
        best_QK = np.argsort(-scores_QK, axis=1, kind="stable")[:, : found[0].shape[1]]
        return (
            np.take_along_axis(scores_QK, best_QK, axis=1),
            np.take_along_axis(rows_QK, best_QK, axis=1),
        )

    def _proposed(self, queries_QD: Vectors, top: int) -> Found:
        """What `nearest_rows` finds among the rows of the index."""
        all_QD = check_queries(queries_QD, width=self._store.width, top=top)
        top = min(top, self._store.num_rows)
        depth = min(CANDIDATES * top, self._store.num_rows)
        if self._ef_search:
            self._index.hnsw.efSearch = max(self._ef_search, depth)
        scores_QK = np.full((len(queries_QD), top), -np.inf, dtype=np.float32)
        rows_QK = np.full((len(queries_QD), top), -1, dtype=np.int64)
        at_once = max(1, ROWS_AT_ONCE // depth)
        for start in range(0, len(queries_QD), at_once):
            query = all_QD[start : start + at_once]
            # Ascending, so that of equal cosines the first row of the corpus comes first.
            rows_QC = np.sort(self._index.search(query, depth)[1], axis=1)
            score_QC = self._cosines(query, rows_QC=rows_QC)
            best_QK = np.argsort(-score_QC, axis=1, kind="stable")[:, :top]
            part = slice(start, start + len(query))
            scores_QK[part] = np.take_along_axis(score_QC, best_QK, axis=1)
            rows_QK[part] = np.take_along_axis(rows_QC, best_QK, axis=1)
        return scores_QK, rows_QK

    def _cosines(self, query_QD: Vectors, *, rows_QC: NDArray[np.int64]) -> NDArray[np.float32]:
        """The cosines (Q, C) of stored vectors; -inf where a row is -1."""
        rows_N, place_QC = np.unique(rows_QC, return_inverse=True)
        vectors_ND = self._store.read(np.maximum(rows_N, 0))
        places = place_QC.reshape(rows_QC.shape)
        score_QC = np.stack(
            [cosines(one, vectors_ND[of]) for of, one in zip(places, query_QD, strict=True)]
        )
        return np.where(rows_QC >= 0, score_QC, -np.inf).astype(np.float32)


def check_indexes(store: VectorStore) -> list[str]:
    """The kinds of finished indexes that an encoding has, after reading every byte of them. Raises
    `BadInput` for one that is damaged or of another encoding."""
    folder = store.directory / INDEX_DIR
    kinds = []
    for kind in KINDS:
        is_there = (folder / f"{kind}.json").is_file()
        if is_there and _record(folder, kind=kind).rows >= store.num_rows:
            _checked(store, kind=kind)
            kinds.append(kind)
    return kinds


def _loaded(path: Path, *, record: Record, width: int) -> Any:
    """Load an index from its file. `BadInput` when it is not what its record says: a record may
    have come to name the file of another kind, with its digest."""
    faiss = _faiss()
    try:
        index = faiss.read_index(str(path))
    except RuntimeError as error:
        raise _damaged(path, kind=record.kind) from error
    wanted = (_CLASSES[record.kind], width, record.rows)
    actual = (type(index).__name__.removesuffix("IP"), int(index.d), int(index.ntotal))
    if actual != wanted:
        raise _damaged(path, kind=record.kind)
    return index


def _new_index(store: VectorStore, *, kind: str, parameters: dict[str, int]) -> Any:
    """A new index of that kind: trained, but without rows."""
    faiss = _faiss()
    description = {
        FLAT: "Flat",
        IVF: "IVF{lists},Flat",
        HNSW: "HNSW{links},Flat",
        PQ: "PQ{parts}x{bits}",
    }[kind].format(**parameters)
    index = faiss.index_factory(store.width, description, faiss.METRIC_INNER_PRODUCT)
    if kind == HNSW:
        index.hnsw.efConstruction = parameters["ef_construction"]
    if not index.is_trained:
        step = -(-store.num_rows // MOST_TRAINING_ROWS)
        with at_work(f"index {kind}: learns from a part of the rows"):
            index.train(unit_length(store.read(slice(0, None, step))))
    return index


def _save(index: Any, *, folder: Path, wanted: dict[str, Any]) -> Record:
    """Write the index as it stands, then the record that names it; remove older files."""
    faiss = _faiss()
    folder.mkdir(exist_ok=True)
    kind = wanted["kind"]
    temporary = temporary_of(folder / f"{kind}.faiss")
    try:
        faiss.write_index(index, str(temporary))
        sync(temporary)
        digest = sha256_of(temporary)
        size = temporary.stat().st_size
        path = temporary.replace(folder / f"{kind}-{digest[:16]}.faiss")
    except RuntimeError as error:  # faiss reports a full disk only in the text of its error
        said = " ".join(str(error).split())
        raise RunFailed(
            f"{temporary}: cannot be written ({said}){ROOM * is_full(error)}"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    sync(folder)
    record = Record(**wanted, file=path.name, sha256=digest, bytes=size, rows=int(index.ntotal))
    write_json(folder / f"{kind}.json", dataclasses.asdict(record))
    # Another process may build the same index: the file that its record names by now must stay,
    # and so must a file that it is writing.
    with contextlib.suppress(BadInput):
        named = {path.name, _record(folder, kind=kind).file}
        for old in folder.glob(f"{kind}-*.faiss"):
            if old.name not in named:
                old.unlink(missing_ok=True)
    remove_temporaries(folder, kind, old_s=YOUNG_S)
    # The other process may have removed our file before our record named it: write it again.
    return record if path.is_file() else _save(index, folder=folder, wanted=wanted)


def _go_on_from(folder: Path, *, wanted: dict[str, Any]) -> Record | None:
    """The record of an unfinished or finished index like `wanted`, if its file is undamaged."""
    try:
        record = _record(folder, kind=wanted["kind"])
    except BadInput:
        return None
    there = dataclasses.asdict(record)
    path = folder / record.file
    if any(there[key] != value for key, value in wanted.items()) or not path.is_file():
        return None
    return record if sha256_of(path) == record.sha256 else None


def _checked(store: VectorStore, *, kind: str) -> Record:
    """The record of a finished index of this encoding, after reading every byte of its file."""
    folder = store.directory / INDEX_DIR
    build = f"build it with python -m toolkit.search {store.directory} --build-index {kind}"
    if not (folder / f"{kind}.json").is_file():
        raise BadInput(f"{store.directory}: has no index of kind {kind}; {build}")
    record = _record(folder, kind=kind)
    if record.encoding != store.manifest[SELF_DIGEST]:
        raise BadInput(f"{folder / record.file}: was built from another encoding; {build}")
    if record.rows > store.num_rows:
        raise BadInput(
            f"{folder / record.file}: has {record.rows:,} rows of {store.num_rows:,}; {build}"
        )
    if record.parameters != parameters_of(kind, num_rows=store.num_rows, width=store.width):
        raise BadInput(f"{folder / record.file}: was built with other parameters; {build}")
    path = folder / record.file
    if not path.is_file() or path.stat().st_size != record.bytes:
        raise _damaged(path, kind=kind)
    if sha256_of(path) != record.sha256:
        raise _damaged(path, kind=kind)
    return record


def _record(folder: Path, *, kind: str) -> Record:
    path = folder / f"{kind}.json"
    advice = "delete it and build the index anew"
    content = checked(read_json(path), _RecordJson, source=path, advice=advice)
    names = {field.name for field in dataclasses.fields(Record)}
    if set(content) != names or content["kind"] != kind or content["format"] != FORMAT:
        raise BadInput(f"{path}: is not the record of an index of kind {kind}; {advice}")
    return Record(**content)


def _damaged(path: Path, *, kind: str) -> BadInput:
    return BadInput(f"{path}: is missing or damaged; --build-index {kind} makes it anew")


@functools.cache
def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise BadInput("an index needs faiss: pip install faiss-cpu") from error
    return faiss
