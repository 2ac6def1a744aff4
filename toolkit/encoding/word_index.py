"""Search in the texts of an encoding by their words (BM25), alone or fused with vectors.

    ENC/index/words.safetensors       the index; it has the digest of all that is in it

The index is made at the first search by words, and written whole: of two that make it at the same
time both write the same. It is loaded whole, too, and compared with its digest.
Knows BM25 and where texts are. Refuses to know how vectors are searched. Shapes: Q queries, K hits.
"""

import errno
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from toolkit.base.console import say_beside
from toolkit.base.errors import BadInput
from toolkit.base.files import write_atomic
from toolkit.base.layout import INDEX_DIR, WORD_INDEX_FILE
from toolkit.base.sealed import SELF_DIGEST
from toolkit.encoding.formats import Vectors
from toolkit.encoding.search import Find, Found, exact
from toolkit.encoding.snippets import corpus_of
from toolkit.encoding.store import VectorStore
from toolkit.text.bm25 import K1, NO_ROW, WORDS, B, Bm25
from toolkit.text.fusion import DEPTH, fused
from toolkit.text.shards import ShardSet

FORMAT = "toolkit-words/1"
OnRows = Callable[[int], None]


def word_index(
    store: VectorStore, *, corpus: Path | None = None, on_rows: OnRows | None = None
) -> Bm25:
    """The index of the words of an encoding's texts, from its file. Without a file, or if that is
    of another encoding or by other rules, it is made of the texts (`corpus`: where their shards
    are, if they were moved) and kept, where it can be; `on_rows` is told of the rows done.

    Raises `BadInput` when the file is damaged, and when texts are needed and not there.
    """
    path = store.directory / INDEX_DIR / WORD_INDEX_FILE
    if index := _read(path, store=store):
        return index
    shards = corpus_of(store, corpus=corpus, verify=False)
    index = Bm25(_texts(store, shards, on_rows=on_rows))
    arrays = {**index.arrays(), "facts": _bytes(json.dumps(_facts(store), sort_keys=True))}
    try:
        path.parent.mkdir(exist_ok=True)
        write_atomic(path, save({**arrays, "sha256": _digest(arrays)}))
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        say_beside(f"the index of words is not kept: {error}")
    return index


def check_word_index(store: VectorStore) -> bool:
    """Whether an encoding has an index of words, after reading every byte of it. Raises `BadInput`
    when it is damaged."""
    return _read(store.directory / INDEX_DIR / WORD_INDEX_FILE, store=store) is not None


def by_words(index: Bm25, queries: Sequence[str]) -> Find:
    """The search of `queries` by words alone, as a `Find`; it looks at no vector. Row -1 stands
    where fewer texts have a word of a query."""

    def find(_: Vectors, top: int) -> Found:
        rows_QK, scores_QK = index.search(queries, top=top)
        return scores_QK, rows_QK

    return find


def hybrid(
    store: VectorStore, index: Bm25, *, queries: Sequence[str], near: Find | None = None
) -> Find:
    """The search of `queries` by vectors and by words, as a `Find`: scores are those of reciprocal
    rank fusion, of the first 1,000 of each, or as many as are asked for. `near` finds by vectors in
    the place of the exact search."""
    near = near or exact(store)

    def find(queries_QD: Vectors, top: int) -> Found:
        depth = min(max(DEPTH, top), store.num_rows)
        cosines_QK, near_QK = near(queries_QD, depth)
        words_QK, scores_QK = index.search(queries, top=depth)
        found_QK = np.full((len(queries), min(top, store.num_rows)), NO_ROW, np.int64)
        fused_QK = np.zeros(found_QK.shape, np.float32)
        for number in range(len(queries)):
            rankings = [
                (near_QK[number], cosines_QK[number]),
                (words_QK[number], scores_QK[number]),
            ]
            rows, scores = (one[: found_QK.shape[1]] for one in fused(rankings))
            found_QK[number, : len(rows)], fused_QK[number, : len(rows)] = rows, scores
        return fused_QK, found_QK

    return find


def _texts(store: VectorStore, shards: ShardSet, *, on_rows: OnRows | None) -> Iterator[str]:
    """The text of each row; of a chunk only what it covers."""
    for unit in store.units:
        facts = store.unit_facts(unit)
        if store.has_chunks:
            columns = (facts[name].to_pylist() for name in ("row", "begin", "end"))
            for row, begin, end in zip(*columns, strict=True):
                yield shards.text(row)[begin:end]
        else:
            for record in shards.records(unit.start, unit.stop):
                yield record["text"]
        if on_rows:
            on_rows(unit.stop - unit.start)


def _read(path: Path, *, store: VectorStore) -> Bm25 | None:
    """The index of a file; None if there is none for this encoding and by these rules."""
    try:
        arrays = load(path.read_bytes())
        digest = arrays.pop("sha256")
        if not np.array_equal(digest, _digest(arrays)):
            raise ValueError("other bytes")
        facts = json.loads(arrays.pop("facts").tobytes())
        if facts != _facts(store):
            return None
        index = Bm25.of_arrays(arrays)
        if index.num_texts != store.num_rows:
            raise ValueError("other rows")
        return index
    except FileNotFoundError:
        return None
    except (SafetensorError, LookupError, TypeError, ValueError) as error:
        raise BadInput(f"{path}: is damaged; delete it, and it is made anew") from error


def _facts(store: VectorStore) -> dict[str, Any]:
    """All that decides what is in the file."""
    encoding = store.manifest[SELF_DIGEST]
    return {"format": FORMAT, "encoding": encoding, "words": WORDS, "k1": K1, "b": B}


def _digest(arrays: Mapping[str, NDArray[Any]]) -> NDArray[np.uint8]:
    """The SHA-256 of some arrays with their names, types and shapes."""
    found = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        found.update(f"{name} {array.dtype} {array.shape}\n".encode())
        found.update(np.ascontiguousarray(array).data)
    return _bytes(found.digest())


def _bytes(content: bytes | str) -> NDArray[np.uint8]:
    return np.frombuffer(content.encode() if isinstance(content, str) else content, np.uint8)
