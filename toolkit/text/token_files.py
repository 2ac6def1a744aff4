"""The files of tokens and of blocks. Beside each lies a note, a JSON file that says what it holds.

Knows safetensors files of flat arrays, their notes and the manifest that lists them. Refuses to
know how documents become tokens, and tokens become blocks.
"""

import hashlib
import math
import mmap
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save
from typing_extensions import TypedDict

from toolkit.base.documents import Count, Digest, FileName, checked
from toolkit.base.errors import BadInput
from toolkit.base.files import read_json, write_atomic, write_json
from toolkit.base.sealed import SELF_DIGEST, content_digest, sealed
from toolkit.base.tensor_header import read_header

TOKEN_ARRAYS = frozenset(("ids", "document_offsets", "cuts", "cut_offsets"))
BLOCK_ARRAYS = frozenset(("starts", "lengths", "block_offsets"))
_NUMPY = {"U16": "<u2", "U32": "<u4", "I32": "<i4", "I64": "<i8"}

Entry = dict[str, Any]


class _TokenCounts(TypedDict):
    """The numbers of what a file of tokens holds."""

    ids: Count
    documents: Count
    max_id: Count


class _BlockCounts(TypedDict):
    """The numbers of what a file of blocks holds."""

    blocks: Count
    pieces: Count
    ids: Count
    documents: Count
    cut_documents: Count


class _TokenFile(_TokenCounts):
    file: FileName
    sha256: Digest


class _BlockFile(_BlockCounts):
    file: FileName
    sha256: Digest


class _Listed(TypedDict):
    """The keys that a manifest of token files must have."""

    tokens: Count
    documents: Count
    held_out_documents: Count
    cut_documents: Count
    blocks: Count
    efficiency: float
    token_files: list[_TokenFile]
    block_files: list[_BlockFile]


class _TokenNote(_TokenCounts):
    """The note beside a file of tokens."""

    bytes: Count
    sha256: Digest


class _BlockNote(_BlockCounts):
    """The note beside a file of blocks."""

    bytes: Count
    sha256: Digest


def map_arrays(
    path: Path, *, sha256: str, names: Set[str] = TOKEN_ARRAYS
) -> dict[str, NDArray[Any]]:
    """The arrays of a safetensors file, as views of its memory map. Raises `BadInput` if the file
    differs from `sha256`, or does not hold exactly `names`."""
    try:
        with path.open("rb") as handle:
            mapped = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise BadInput(f"{path}: cannot be read ({error}); delete {path.parent}") from error
    if hashlib.sha256(mapped).hexdigest() != sha256:
        raise BadInput(f"{path}: is damaged (its SHA-256 differs); delete {path.parent}")
    places = read_header(path)
    if set(places) != names or not all(of.dtype in _NUMPY for of in places.values()):
        raise BadInput(f"{path}: does not hold {', '.join(sorted(names))}; delete {path.parent}")
    return {
        name: np.frombuffer(
            mapped, dtype=_NUMPY[of.dtype], count=math.prod(of.shape), offset=of.begin
        )
        for name, of in places.items()
    }


def write_arrays(
    path: Path, arrays: dict[str, NDArray[Any]], *, counts: Mapping[str, int] | None = None
) -> None:
    """Write a file of tokens or of blocks, and then its note, to which `counts` are added."""
    # For a view with gaps, safetensors would write the memory below it, not its numbers.
    assert all(array.flags.c_contiguous for array in arrays.values())
    data = save(arrays)
    # The note comes last: a file without a note is made again (`is_made`).
    write_atomic(path, data)
    note: Entry = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    note |= {**counts_of(arrays), **(counts or {})}
    write_json(_note(path), sealed(note))


def counts_of(arrays: Mapping[str, NDArray[Any]]) -> dict[str, int]:
    """The numbers of what a file of tokens or of blocks holds, by the keys of its note."""
    if "ids" in arrays:
        return {
            "ids": len(arrays["ids"]),
            "documents": len(arrays["document_offsets"]) - 1,
            "max_id": int(arrays["ids"].max(initial=0)),
        }
    return {
        "blocks": len(arrays["block_offsets"]) - 1,
        "pieces": len(arrays["starts"]),
        "ids": int(arrays["lengths"].sum()),
    }


def is_made(path: Path) -> bool:
    """Whether a file exists and has the size that its note says, if that is undamaged itself."""
    try:
        return path.is_file() and path.stat().st_size == note_of(path)["bytes"]
    except BadInput:  # the note is absent or damaged: the caller makes both files again
        return False


def note_of(path: Path) -> Entry:
    """The content of the note beside a file; `BadInput` if the note is absent or damaged."""
    form: type[Any] = _TokenNote if path.name.startswith("tokens-") else _BlockNote
    return _sealed(_note(path), form=form)


def listed_in(path: Path, *, num_shards: int) -> Entry:
    """The manifest of the token files of `num_shards` shards; `BadInput` if it is of others."""
    manifest = _sealed(path, form=_Listed)
    if not len(manifest["token_files"]) == len(manifest["block_files"]) == num_shards:
        raise BadInput(f"{path}: is not of these shards; {made_again(path.parent)}")
    return manifest


def _sealed(path: Path, *, form: type[Any]) -> Entry:
    """Read a JSON object of the given form, compare it with its own digest (which files of older
    versions lack), and return it without the digest."""
    content: Entry = dict(
        checked(read_json(path), form, source=path, advice=made_again(path.parent))
    )
    if content.pop(SELF_DIGEST, content_digest(content)) != content_digest(content):
        raise BadInput(f"{path}: is damaged (its digest differs); {made_again(path.parent)}")
    return content


def made_again(directory: Path) -> str:
    """The advice for damaged token files, as the end of an error message."""
    return f"delete {directory}: it is made again"


def _note(path: Path) -> Path:
    return path.with_suffix(".json")
