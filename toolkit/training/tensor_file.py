"""safetensors files written one tensor after another, and read one tensor at a time.

The package's own `save_file` wants all tensors in memory at once; a checkpoint of a large model
must not. The format: 8 bytes of header size, a JSON header, the tensors' bytes
(huggingface.co/docs/safetensors).
"""

import contextlib
import hashlib
import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor


class TensorWriter:
    """A file of fp32 tensors whose names and shapes are known before, put in that order."""

    def __init__(self, path: Path, *, shapes: Mapping[str, Sequence[int]]) -> None:
        self._names = iter(shapes)
        self._digest = hashlib.sha256()
        sizes = [4 * torch.Size(shape).numel() for shape in shapes.values()]
        ends = list(itertools.accumulate(sizes))
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        for (name, shape), size, end in zip(shapes.items(), sizes, ends, strict=True):
            offsets = [end - size, end]
            header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": offsets}
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        self._handle = path.open("wb")
        self._write(len(text).to_bytes(8, "little") + text)

    def put(self, name: str, value: Tensor) -> None:
        """Write the next tensor."""
        expected = next(self._names)
        assert name == expected, f"{name} instead of {expected}"
        assert value.dtype == torch.float32
        if value.numel():
            self._write(value.contiguous().numpy().reshape(-1).data.cast("B"))

    def close(self) -> str:
        """Bring the file to the disk; returns its sha256."""
        assert next(self._names, None) is None, "a tensor is missing"
        try:
            self._handle.flush()
            os.fsync(self._handle.fileno())
        finally:
            self.abandon()
        return self._digest.hexdigest()

    def abandon(self) -> None:
        """Close a file that will not be finished; what is still in its buffer is lost."""
        with contextlib.suppress(OSError):
            self._handle.close()

    def _write(self, data: bytes | memoryview) -> None:
        self._digest.update(data)
        self._handle.write(data)


class StoredTensors(Mapping[str, Tensor]):
    """The tensors of several files by name, each read when it is asked for."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._files: dict[str, Any] = {}
        for path in files:
            handle: Any = safe_open(path, framework="pt")
            self._files |= dict.fromkeys(handle.keys(), handle)

    def __getitem__(self, name: str) -> Tensor:
        found: Tensor = self._files[name].get_tensor(name)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


class Renamed(Mapping[str, Tensor]):
    """Tensors under other names, still read when asked for."""

    def __init__(self, values: Mapping[str, Tensor], *, names: Mapping[str, str]) -> None:
        self._values, self._names = values, names

    def __getitem__(self, name: str) -> Tensor:
        return self._values[self._names[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
