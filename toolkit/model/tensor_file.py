"""safetensors files written one tensor after another, and read one tensor at a time.

The safetensors package cannot do this for a large model: its `save_file` needs all tensors in
memory at once, and its reader maps the file, so that every page read counts as memory of the
process. The format: 8 bytes of header size, a JSON header, the bytes of the tensors
(huggingface.co/docs/safetensors).
"""

import contextlib
import hashlib
import itertools
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from toolkit.base.errors import BadInput
from toolkit.base.files import naming, write_json
from toolkit.base.tensor_header import Place, read_header

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
FULL_FILE = "model.safetensors"
MAX_FILE_BYTES = 5 * 10**9  # like the files of most models on the hub
PIECE = 2**24  # numbers that are converted at a time, so that no second copy of a tensor is needed


class TensorWriter:
    """Writes a file of tensors of one type. Their names and shapes are given first; then each is
    `put`, in that order."""

    def __init__(
        self,
        path: Path,
        *,
        shapes: Mapping[str, Sequence[int]],
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self._names, self._shapes = iter(shapes), shapes
        self._dtype = dtype
        self._digest = hashlib.sha256()
        code = next(code for code, known in DTYPES.items() if known == dtype)
        sizes = [dtype.itemsize * torch.Size(shape).numel() for shape in shapes.values()]
        ends = list(itertools.accumulate(sizes))
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        for (name, shape), size, end in zip(shapes.items(), sizes, ends, strict=True):
            offsets = [end - size, end]
            header[name] = {"dtype": code, "shape": list(shape), "data_offsets": offsets}
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)  # so that the tensors begin at a multiple of 8 bytes
        self._path, self._handle = path, path.open("wb")
        self._write(len(text).to_bytes(8, "little") + text)

    def put(self, name: str, value: Tensor) -> None:
        """Write the next tensor, converted to the file's type."""
        expected = next(self._names)
        assert name == expected, f"{name} instead of {expected}"
        assert tuple(value.shape) == tuple(self._shapes[name]), name
        flat = value.reshape(-1)
        for start in range(0, len(flat), PIECE):
            data = flat[start : start + PIECE].to(self._dtype).contiguous().view(torch.uint8)
            self._write(data.numpy().data)

    def close(self) -> str:
        """Finish the file and sync it to disk; returns its SHA-256."""
        assert next(self._names, None) is None, "a tensor is missing"
        try:
            with naming(self._path):
                self._handle.flush()
                os.fsync(self._handle.fileno())
        finally:
            self.abandon()
        return self._digest.hexdigest()

    def abandon(self) -> None:
        """Close a file that will not be finished; bytes still in its buffer may be lost."""
        with contextlib.suppress(OSError):
            self._handle.close()

    def _write(self, data: bytes | memoryview) -> None:
        self._digest.update(data)
        with naming(self._path):
            self._handle.write(data)


class StoredTensors(Mapping[str, Tensor]):
    """The tensors of several files by name; each is read when it is asked for, into its own memory.

    Raises `BadInput` for a file that is no complete safetensors file.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self._places: dict[str, tuple[Path, Place]] = {
            name: (path, place) for path in files for name, place in read_header(path).items()
        }

    def __getitem__(self, name: str) -> Tensor:
        path, place = self._places[name]
        if place.dtype not in DTYPES:
            valid = ", ".join(DTYPES)
            raise BadInput(f"{path}: {name} is of type {place.dtype}; valid: {valid}")
        data = torch.empty(place.end - place.begin, dtype=torch.uint8)
        with path.open("rb") as handle:
            handle.seek(place.begin)
            if len(data) and handle.readinto(data.numpy().data) != len(data):
                raise BadInput(f"{path}: has become shorter while it was read")
        return data.view(DTYPES[place.dtype]).reshape(place.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, without reading the tensor."""
        return self._places[name][1].shape


class Renamed(Mapping[str, Tensor]):
    """Tensors under other names; each is still read only when it is asked for."""

    def __init__(self, values: Mapping[str, Tensor], *, names: Mapping[str, str]) -> None:
        self._values, self._names = values, names

    def __getitem__(self, name: str) -> Tensor:
        return self._values[self._names[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def write_tensors(
    out: Path,
    *,
    shapes: Mapping[str, Sequence[int]],
    dtype: torch.dtype,
    value_of: Callable[[str], Tensor],
    max_file_bytes: int = MAX_FILE_BYTES,
) -> None:
    """Write the weights of a model, each as `value_of` makes it when its turn comes. A file has at
    most `max_file_bytes` bytes, if no single tensor is larger."""
    files = _files(shapes, itemsize=dtype.itemsize, max_file_bytes=max_file_bytes)
    for file, names in files.items():
        writer = TensorWriter(
            out / file, shapes={name: shapes[name] for name in names}, dtype=dtype
        )
        try:
            for name in names:
                writer.put(name, value_of(name))
            writer.close()
        finally:
            writer.abandon()
    if len(files) > 1:
        index = {name: file for file, names in files.items() for name in names}
        write_json(out / "model.safetensors.index.json", {"metadata": {}, "weight_map": index})


def _files(
    shapes: Mapping[str, Sequence[int]], *, itemsize: int, max_file_bytes: int
) -> dict[str, list[str]]:
    """Which weights go into which file, in order; a new file begins before one would be too
    large."""
    parts: list[list[str]] = [[]]
    filled = 0
    for name, shape in shapes.items():
        size = itemsize * math.prod(shape)
        if parts[-1] and filled + size > max_file_bytes:
            parts.append([])
            filled = 0
        parts[-1].append(name)
        filled += size
    if len(parts) == 1:
        return {FULL_FILE: parts[0]}
    total = f"{len(parts):05d}"
    return {f"model-{n:05d}-of-{total}.safetensors": names for n, names in enumerate(parts, 1)}
