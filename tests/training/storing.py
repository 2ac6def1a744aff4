"""Vectors as our files hold them: written to a file and read again."""

import tempfile
from pathlib import Path

import torch
from torch import Tensor

from toolkit.encoding import formats
from toolkit.settings.schema import VectorFormat


def as_read(vectors_RD: Tensor, *, form: VectorFormat) -> Tensor:
    """What is read from a file that `toolkit.encode` writes of these vectors."""
    rows, width = vectors_RD.shape
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vectors.safetensors"
        path.write_bytes(formats.encode(vectors_RD.detach().numpy(), form=form))
        opened = formats.open_vectors(path, form=form, rows=rows, width=width)
        return torch.from_numpy(opened.rows(slice(None)).copy())
