"""Arrays in a safetensors file, with a .json beside it that tells its digest and what it holds.

Knows how they are written and mapped into memory. Refuses to know what the arrays mean.
"""

import hashlib
import json
import mmap
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from toolkit.files import BadInput, read_json, write_atomic, write_json

Entry = dict[str, Any]


def map_arrays(path: Path, *, sha256: str) -> dict[str, NDArray[Any]]:
    """The arrays of a safetensors file as views of its memory map; `BadInput` when it changed."""
    try:
        with path.open("rb") as handle:
            mapped = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise BadInput(f"{path}: cannot be read ({error}); delete {path.parent}") from error
    if hashlib.sha256(mapped).hexdigest() != sha256:
        raise BadInput(f"{path}: is damaged (its SHA-256 differs); delete {path.parent}")
    # https://huggingface.co/docs/safetensors: 8 bytes with the header's size, the header, the data.
    size = int.from_bytes(mapped[:8], "little")
    header = json.loads(mapped[8 : 8 + size])
    arrays = {}
    for name, about in header.items():
        if name != "__metadata__":
            dtype = np.dtype(
                {"U16": "<u2", "U32": "<u4", "I32": "<i4", "I64": "<i8"}[about["dtype"]]
            )
            begin, end = about["data_offsets"]
            arrays[name] = np.frombuffer(
                mapped, dtype=dtype, count=(end - begin) // dtype.itemsize, offset=8 + size + begin
            )
    return arrays


def write_arrays(path: Path, arrays: dict[str, NDArray[Any]], *, told: Entry) -> None:
    """Write arrays, and beside them what is `told` of them."""
    # safetensors writes the memory of a view, not its numbers.
    assert all(array.flags.c_contiguous for array in arrays.values())
    data = save(arrays)
    write_atomic(path, data)
    note: Entry = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    write_json(note_of(path), note | told)


def is_made(path: Path) -> bool:
    """Whether a file has been written to its end."""
    note = note_of(path)
    return note.is_file() and path.is_file() and path.stat().st_size == read_json(note)["bytes"]


def note_of(path: Path) -> Path:
    """The file that tells what the arrays of `path` hold."""
    return path.with_suffix(".json")
