"""Vectors in fewer bits, in safetensors files that are memory-mapped and read in place.

Knows numpy and the file format (huggingface.co/docs/safetensors): 8 bytes of header size, a JSON
header, the tensors' bytes. Refuses to know rows and units. The package's own writer has no bf16
for numpy, and its reader no memory map.

    fp32, fp16, bf16    the numbers, rounded
    int8                round(v / scale), and scales (R, 1) in fp32: a row's largest number is 127
    binary              the signs, eight per byte, the first in the highest bit; read as -1 and 1.
                        If any row is the zero vector, scales (R, 1) in fp32: 0 for it, else 1

Last come the checksums (blocks, 4) of all these bytes (see `sums`), by which bytes are checked when
they are first read. How a row is stored depends on that row alone. Shapes: R rows, D width.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.base.tensor_header import SIZE_BYTES, Place, header_size, places_in
from toolkit.encoding.sums import BLOCK_BYTES, SUM_BYTES, CheckedBlocks, num_sums, sums_of
from toolkit.settings.schema import VectorFormat

Vectors = NDArray[np.float32]
Array = NDArray[Any]

VECTORS, SCALES, SUMS = "vectors", "scales", "crc32"
INT8_MAX = 127
# The largest number that a format holds; bf16 keeps 8 bits of a number.
LARGEST: dict[str, float] = {"fp16": 65504.0, "bf16": (2 - 2**-7) * 2.0**127}
_DTYPES: dict[str, tuple[str, type[np.generic]]] = {  # numpy has no bf16: its 16 bits are stored
    "fp32": ("F32", np.float32),
    "fp16": ("F16", np.float16),
    "bf16": ("BF16", np.uint16),
    "int8": ("I8", np.int8),
    "binary": ("U8", np.uint8),
}
_NUMPY = dict(_DTYPES.values())


@dataclasses.dataclass(frozen=True)
class Kept:
    """Rows of a file whose vectors come from another one of the same format: their places, their
    vectors (M, D), and the arrays in which these are stored (`MappedVectors.stored`)."""

    places_M: NDArray[np.int64]
    vectors_MD: Vectors
    stored: Mapping[str, Array]


def row_bytes(form: VectorFormat, *, width: int) -> int:
    """The bytes of a vector of `width` numbers in a file, with its scale if it has one."""
    if form == "binary":
        return -(-width // 8)
    return width * np.dtype(_DTYPES[form][1]).itemsize + 4 * (form == "int8")


def encode(vectors_RD: Vectors, *, form: VectorFormat, kept: Kept | None = None) -> bytes:
    """Finite vectors as the bytes of a safetensors file. Equal vectors give equal bytes. The rows
    that are `kept` get the bytes in which they are stored."""
    arrays = {VECTORS: _packed(vectors_RD, form=form)}
    if form == "int8":
        arrays[SCALES] = _scales(vectors_RD)
    if kept is not None:
        for name, array in arrays.items():
            array[kept.places_M] = kept.stored[name]
    counts_R1 = np.asarray(vectors_RD.any(axis=1, keepdims=True), dtype=np.float32)
    if form == "binary" and not counts_R1.all():
        arrays[SCALES] = counts_R1
    data = b"".join(array.tobytes() for array in arrays.values())
    sums = sums_of(data, block_bytes=BLOCK_BYTES)
    arrays[SUMS] = np.frombuffer(sums, dtype=np.uint8).reshape(-1, SUM_BYTES)
    names = {VECTORS: _DTYPES[form][0], SCALES: "F32", SUMS: "U8"}
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
    return b"".join([len(text).to_bytes(SIZE_BYTES, "little"), text, data, sums])


def seal_of(content: bytes) -> dict[str, Any]:
    """A marker's entry about the checksums in a file of `encode`: the size of their blocks, and the
    SHA-256 of header and checksums."""
    data = np.frombuffer(content, dtype=np.uint8)
    return {"bytes": BLOCK_BYTES, "sha256": _digest_of_head(data, _places(data)[SUMS])}


@dataclasses.dataclass(frozen=True)
class MappedVectors:
    """Vectors in a mapped file, of which only rows that are asked for are read. If there are
    `blocks`, bytes are checked when they are first read; `begins` is the offset of each array in
    them."""

    form: VectorFormat
    width: int
    arrays: Mapping[str, Array]
    begins: Mapping[str, int] = dataclasses.field(default_factory=dict)
    blocks: CheckedBlocks | None = None

    def __len__(self) -> int:
        return len(self.arrays[VECTORS])

    def rows(self, which: slice | NDArray[np.int64]) -> Vectors:
        """These rows (., D) as fp32, with the rounding of the format. `ValueError` when they are
        damaged."""
        return self.decoded(self.stored(which))

    def decoded(self, stored: Mapping[str, Array]) -> Vectors:
        """The vectors (., D) of rows that are `stored` so, as fp32."""
        packed = stored[VECTORS]
        if self.form == "bf16":
            return (packed.astype(np.uint32) << 16).view(np.float32)
        if self.form == "binary":
            bits = np.unpackbits(packed, axis=1, count=self.width)
            signs = bits.astype(np.float32) * 2 - 1
            # Adding 0 turns -0.0 into 0.0.
            return signs * stored[SCALES] + 0 if SCALES in stored else signs
        if self.form == "int8":
            return np.asarray(packed * stored[SCALES], dtype=np.float32)
        return np.asarray(packed, dtype=np.float32)

    def stored(self, which: slice | NDArray[np.int64]) -> dict[str, Array]:
        """The arrays of these rows as they are in the file. `ValueError` when they are damaged."""
        if self.blocks:
            self._check(self.blocks, which)
        return {name: array[which] for name, array in self.arrays.items()}

    def _check(self, blocks: CheckedBlocks, which: slice | NDArray[np.int64]) -> None:
        if isinstance(which, slice):
            numbers = range(len(self))[which]
            rows_K = np.array(numbers if numbers.step != 1 else numbers[:1], dtype=np.int64)
            each = len(numbers) if numbers.step == 1 else 1  # rows of a stretch
        else:
            rows_K, each = which, 1
        for name, begin in self.begins.items():
            row_bytes = self.arrays[name].itemsize * self.arrays[name].shape[1]
            begin_K = begin + rows_K * row_bytes
            blocks.check(begin_K, begin_K + each * row_bytes)


def open_vectors(
    path: Path, *, form: VectorFormat, rows: int, width: int, seal: Mapping[str, Any] | None = None
) -> MappedVectors:
    """Open a file of `encode`. With its `seal_of`, vectors are checked when they are read.
    `ValueError` when the file is not whole, or its checksums are not those that were sealed."""
    data = np.memmap(path, dtype=np.uint8, mode="r")
    places = _places(data)
    columns = -(-width // 8) if form == "binary" else width
    known = {VECTORS: (_DTYPES[form][0], (rows, columns))}
    if SCALES in places or form == "int8":
        known[SCALES] = ("F32", (rows, 1))
    for name, (dtype, shape) in known.items():
        place = places.get(name)
        if place is None or (place.dtype, place.shape) != (dtype, shape):
            raise ValueError(f"{name}: {place} and not {shape} of {dtype}")
    arrays = {
        name: data[places[name].begin : places[name].end].view(_NUMPY[dtype]).reshape(shape)
        for name, (dtype, shape) in known.items()
    }
    if seal is None:
        return MappedVectors(form, width, arrays)
    sums, block_bytes = places.get(SUMS), int(seal["bytes"])
    if sums is None or _digest_of_head(data, sums) != seal["sha256"]:
        raise ValueError("its checksums are not those that its marker has sealed")
    start = min(place.begin for place in places.values())
    if sums.shape != (num_sums(sums.begin - start, block_bytes=block_bytes), SUM_BYTES):
        raise ValueError(f"it has checksums of {sums.shape}, not of blocks of {block_bytes} bytes")
    blocks = CheckedBlocks(
        data[start : sums.begin],
        sums=data[sums.begin : sums.end].tobytes(),
        block_bytes=block_bytes,
    )
    return MappedVectors(form, width, arrays, {n: places[n].begin - start for n in known}, blocks)


def _places(data: NDArray[np.uint8]) -> dict[str, Place]:
    size = header_size(data[:SIZE_BYTES].tobytes(), file_bytes=len(data))
    header = data[SIZE_BYTES : SIZE_BYTES + size].tobytes()
    return places_in(header, file_bytes=len(data))


def _digest_of_head(data: NDArray[np.uint8], sums: Place) -> str:
    size = SIZE_BYTES + header_size(data[:SIZE_BYTES].tobytes(), file_bytes=len(data))
    digest = hashlib.sha256(data[:size].data)
    digest.update(data[sums.begin : sums.end].data)
    return digest.hexdigest()


def unit_length(vectors_RD: Vectors) -> Vectors:
    """Vectors divided by their norm; the zero vector stays zero."""
    with np.errstate(over="ignore"):
        norms = np.linalg.norm(vectors_RD, axis=1, keepdims=True)
    scaled_RD = np.asarray(vectors_RD / np.maximum(norms, 1e-12), dtype=np.float32)
    usual = (norms[:, 0] > 1e-12) & np.isfinite(norms[:, 0])
    if (others := np.flatnonzero(~usual)).size:  # zero, or squares that fp32 cannot hold
        exact_KD = vectors_RD[others].astype(np.float64)
        norms = np.linalg.norm(exact_KD, axis=1, keepdims=True)
        scaled_RD[others] = exact_KD / np.where(norms > 0, norms, 1)
    return scaled_RD


def _packed(vectors_RD: Vectors, *, form: VectorFormat) -> Array:
    if form == "bf16":
        bits = np.ascontiguousarray(vectors_RD).view(np.uint32)
        # Rounded to the nearest number, and halves to the even one, as torch does.
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
