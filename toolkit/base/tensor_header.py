"""The header of a safetensors file, read strictly: a header that contradicts its file is refused.

Knows the format (huggingface.co/docs/safetensors): 8 bytes of header size, a JSON header, then the
bytes of all tensors without a gap, to the end of the file. Refuses to know the numbers in the
tensors. Every reader of safetensors files in the project starts with this module.
"""

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path

from toolkit.base.errors import BadInput
from toolkit.base.files import RepeatedName, without_repeats

MOST_HEADER_BYTES = 100_000_000  # the limit that the safetensors package has too
MOST_DIMENSIONS = 64
MOST_NUMBERS = 2**62  # more than this no array can have, not even an empty one by its other sizes
METADATA = "__metadata__"
SIZE_BYTES = 8
BITS = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0"), 8),
    **dict.fromkeys(("F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
    **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 64),
    **{"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6},
}


@dataclasses.dataclass(frozen=True)
class Place:
    """A tensor's type and shape, and where it lies in its file: bytes `begin` to `end`."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def read_header(path: Path) -> dict[str, Place]:
    """The tensors of a file by name, in the order of their bytes. Raises `BadInput` for a file that
    is incomplete or no safetensors file. The bytes of the tensors are not read."""
    try:
        with path.open("rb") as handle:
            file_bytes = os.fstat(handle.fileno()).st_size
            size = header_size(handle.read(SIZE_BYTES), file_bytes=file_bytes)
            return places_in(handle.read(size), file_bytes=file_bytes)
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise BadInput(f"{path}: is not a whole safetensors file ({error})") from error


def header_size(first: bytes, *, file_bytes: int) -> int:
    """The number of bytes of the JSON header, as the first eight bytes of the file give it.
    `ValueError` if eight bytes are not there, or if the header would be too long."""
    size = int.from_bytes(first, "little")
    if len(first) < SIZE_BYTES or size > min(MOST_HEADER_BYTES, file_bytes - SIZE_BYTES):
        raise ValueError("its header is cut off, or too long")
    return size


def places_in(header: bytes, *, file_bytes: int) -> dict[str, Place]:
    """The tensors that a JSON header describes, for a file of `file_bytes` bytes. `ValueError` says
    how the header contradicts itself or the file."""
    try:
        content = json.loads(header.decode("utf-8"), object_pairs_hook=without_repeats)
    except RepeatedName as error:
        raise ValueError("its header has a name twice") from error
    except RecursionError as error:
        raise ValueError("its header is nested too deeply") from error
    if not isinstance(content, dict):
        raise ValueError("its header is not a JSON object")
    start = SIZE_BYTES + len(header)
    places = {name: _place(name, of, start) for name, of in content.items() if name != METADATA}
    ordered = dict(sorted(places.items(), key=lambda item: (item[1].begin, item[1].end)))
    end = start
    for name, place in ordered.items():
        if place.begin != end:
            raise ValueError(f"tensor {name!r} does not begin where the one before it ends")
        end = place.end
    if end != file_bytes:
        raise ValueError(f"it has {file_bytes} bytes, and its tensors end at {end}")
    return ordered


def _place(name: str, entry: object, start: int) -> Place:
    name.encode()  # a lone surrogate raises here; it could not be printed later
    if not isinstance(entry, Mapping) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"tensor {name!r} must have dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise ValueError(f"tensor {name!r} has an unknown dtype")
    if not _counts(shape) or len(shape) > MOST_DIMENSIONS:
        raise ValueError(f"tensor {name!r} has an invalid shape")
    if not _counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise ValueError(f"tensor {name!r} has invalid data_offsets")
    begin, end = offsets
    if math.prod(max(1, size) for size in shape) > MOST_NUMBERS:
        raise ValueError(f"tensor {name!r} has a shape that is too large")
    if math.prod(shape) * BITS[dtype] != (end - begin) * 8:
        raise ValueError(f"tensor {name!r} has another number of bytes than its shape needs")
    return Place(dtype, tuple(shape), start + begin, start + end)


def _counts(numbers: object) -> bool:
    """Whether this is a list of whole numbers from 0 to 2**63 - 1, the largest size."""
    return isinstance(numbers, list) and all(
        type(number) is int and 0 <= number < 2**63 for number in numbers
    )
