"""Vectors as numbers of fewer bits, in safetensors files that are read where they lie.

Knows numpy and the file format (huggingface.co/docs/safetensors): 8 bytes of header size, a JSON
header, the tensors' bytes. Refuses to know rows and units. The package's own writer has no bf16
for numpy, and its reader no memory map.

    fp32, fp16, bf16    the numbers, rounded
    int8                round(v / scale), and scales (R, 1) in fp32: a row's largest number is 127
    binary              the signs, eight to a byte, the first in the highest bit; read as -1 and 1.
                        Where a row is the zero vector, scales (R, 1) in fp32: 0 for it, else 1

What a row becomes depends on that row alone. Shapes: R rows, D width.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.schema import VectorFormat

Vectors = NDArray[np.float32]
Array = NDArray[Any]

VECTORS, SCALES = "vectors", "scales"
INT8_MAX = 127
_DTYPES: dict[str, tuple[str, type[np.generic]]] = {  # numpy has no bf16: its 16 bits are stored
    "fp32": ("F32", np.float32),
    "fp16": ("F16", np.float16),
    "bf16": ("BF16", np.uint16),
    "int8": ("I8", np.int8),
    "binary": ("U8", np.uint8),
}
_NUMPY = dict(_DTYPES.values())


def encode(vectors_RD: Vectors, *, form: VectorFormat) -> bytes:
    """The bytes of a safetensors file of these finite vectors. Equal vectors give equal bytes."""
    arrays = {VECTORS: _packed(vectors_RD, form=form)}
    if form == "int8":
        arrays[SCALES] = _scales(vectors_RD)
    counts_R1 = np.asarray(vectors_RD.any(axis=1, keepdims=True), dtype=np.float32)
    if form == "binary" and not counts_R1.all():
        arrays[SCALES] = counts_R1
    names = {VECTORS: _DTYPES[form][0], SCALES: "F32"}
    header: dict[str, Any] = {}
    end = 0
    for name, array in arrays.items():
        header[name] = {
            "dtype": names[name],
            "shape": list(array.shape),
            "data_offsets": [end, end + array.nbytes],
        }
        end += array.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the numbers begin at a multiple of 8
    return b"".join(
        [len(text).to_bytes(8, "little"), text, *(a.tobytes() for a in arrays.values())]
    )


@dataclasses.dataclass(frozen=True)
class MappedVectors:
    """Vectors in a file, of which only what is asked for is read."""

    form: VectorFormat
    width: int
    arrays: Mapping[str, Array]

    def __len__(self) -> int:
        return len(self.arrays[VECTORS])

    def rows(self, which: slice | NDArray[np.int64]) -> Vectors:
        """These rows (., D) as fp32: numbers that were rounded when they were written."""
        packed = self.arrays[VECTORS][which]
        if self.form == "bf16":
            return (packed.astype(np.uint32) << 16).view(np.float32)
        if self.form == "binary":
            bits = np.unpackbits(packed, axis=1, count=self.width)
            signs = bits.astype(np.float32) * 2 - 1
            # Plus 0: no zero has a sign.
            return signs * self.arrays[SCALES][which] + 0 if SCALES in self.arrays else signs
        if self.form == "int8":
            return np.asarray(packed * self.arrays[SCALES][which], dtype=np.float32)
        return np.asarray(packed, dtype=np.float32)


def open_vectors(path: Path, *, form: VectorFormat, rows: int, width: int) -> MappedVectors:
    """The vectors of a file that `encode` has filled. `ValueError` when it is not whole."""
    data = np.memmap(path, dtype=np.uint8, mode="r")
    size = int.from_bytes(data[:8].tobytes(), "little")
    header = json.loads(data[8 : 8 + size].tobytes())
    arrays = {}
    for name, entry in header.items():
        dtype = np.dtype(_NUMPY[entry["dtype"]])
        begin, end = (8 + size + offset for offset in entry["data_offsets"])
        if end > len(data) or end - begin != math.prod(entry["shape"]) * dtype.itemsize:
            raise ValueError(f"{name}: the file is too short")
        arrays[name] = data[begin:end].view(dtype).reshape(entry["shape"])
    columns = -(-width // 8) if form == "binary" else width
    found = arrays[VECTORS]
    if found.shape != (rows, columns) or header[VECTORS]["dtype"] != _DTYPES[form][0]:
        raise ValueError(f"{found.shape} of {header[VECTORS]['dtype']}, not {(rows, columns)}")
    return MappedVectors(form, width, arrays)


def unit_length(vectors_RD: Vectors) -> Vectors:
    """Vectors divided by their norm; the zero vector stays zero."""
    norms = np.linalg.norm(vectors_RD, axis=1, keepdims=True)
    return np.asarray(vectors_RD / np.maximum(norms, 1e-12), dtype=np.float32)


def _packed(vectors_RD: Vectors, *, form: VectorFormat) -> Array:
    if form == "bf16":
        bits = np.ascontiguousarray(vectors_RD).view(np.uint32)
        # To the nearest, halves to even, as torch does.
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    if form == "binary":
        signs: Array = np.packbits(vectors_RD > 0, axis=1)
        return signs
    if form == "int8":
        steps: Array = np.rint(vectors_RD / _scales(vectors_RD)).astype(np.int8)
        return steps
    return np.ascontiguousarray(vectors_RD, dtype=_DTYPES[form][1])


def _scales(vectors_RD: Vectors) -> Vectors:
    scales = np.abs(vectors_RD).max(axis=1, keepdims=True, initial=0) / INT8_MAX
    return np.asarray(np.where(scales > 0, scales, 1), dtype=np.float32)
