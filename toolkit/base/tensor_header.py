"""The header of a safetensors file, read strictly: what it says of a tensor is so, or is refused.

Knows the format (huggingface.co/docs/safetensors): 8 bytes of header size, a JSON header, the
tensors' bytes in a row, without a gap, to the end of the file. Refuses to know what the numbers
are: whoever reads them views the bytes. Every reader of such files here begins with this one.
"""

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path

from toolkit.base.errors import BadInput
from toolkit.base.files import RepeatedName, without_repeats

MOST_HEADER_BYTES = 100_000_000  # the limit of the safetensors package, too
MOST_DIMENSIONS = 64
MOST_NUMBERS = 2**62  # that an array, an empty one too, can be shaped to
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
    """Where a tensor lies in its file, `begin` to `end` in bytes, and what it is."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def read_header(path: Path) -> dict[str, Place]:
    """The tensors of a file, in the order in which they lie. Raises `BadInput` for a file that is
    not whole, or is no safetensors file; the tensors' bytes are not read."""
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
    """The bytes of the JSON header, by the first eight of the file. `ValueError` if there are fewer
    or too many."""
    size = int.from_bytes(first, "little")
    if len(first) < SIZE_BYTES or size > min(MOST_HEADER_BYTES, file_bytes - SIZE_BYTES):
        raise ValueError("its header is cut off, or too long")
    return size


def places_in(header: bytes, *, file_bytes: int) -> dict[str, Place]:
    """The tensors that a JSON header tells of, in a file of so many bytes. `ValueError` says why it
    cannot be believed."""
    try:
        told = json.loads(header.decode("utf-8"), object_pairs_hook=without_repeats)
    except RepeatedName as error:
        raise ValueError("its header has a name twice") from error
    except RecursionError as error:
        raise ValueError("its header is nested too deeply") from error
    if not isinstance(told, dict):
        raise ValueError("its header is not a JSON object")
    start = SIZE_BYTES + len(header)
    found = {name: _place(name, of, start) for name, of in told.items() if name != METADATA}
    ordered = dict(sorted(found.items(), key=lambda item: (item[1].begin, item[1].end)))
    end = start
    for name, place in ordered.items():
        if place.begin != end:
            raise ValueError(f"tensor {name!r} does not begin where the one before it ends")
        end = place.end
    if end != file_bytes:
        raise ValueError(f"it has {file_bytes} bytes, and its tensors end at {end}")
    return ordered


def _place(name: str, told: object, start: int) -> Place:
    name.encode()  # half of a surrogate pair is no text, and could not be printed
    if not isinstance(told, Mapping) or set(told) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"tensor {name!r} is not told by dtype, shape and data_offsets")
    dtype, shape, offsets = told["dtype"], told["shape"], told["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise ValueError(f"tensor {name!r} has an unknown dtype")
    if not _counts(shape) or len(shape) > MOST_DIMENSIONS:
        raise ValueError(f"tensor {name!r} has a shape that is none")
    if not _counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise ValueError(f"tensor {name!r} has data_offsets that are none")
    begin, end = offsets
    if math.prod(max(1, size) for size in shape) > MOST_NUMBERS:
        raise ValueError(f"tensor {name!r} has a shape that is too large")
    if math.prod(shape) * BITS[dtype] != (end - begin) * 8:
        raise ValueError(f"tensor {name!r} has other bytes than its shape needs")
    return Place(dtype, tuple(shape), start + begin, start + end)


def _counts(numbers: object) -> bool:
    """Whether this is a list of whole numbers from 0, none of them beyond what a size can be."""
    return isinstance(numbers, list) and all(
        type(number) is int and 0 <= number < 2**63 for number in numbers
    )
