"""Vectors of fewer bits: what is lost, what is not, and that others can read the files."""

from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray
from safetensors.torch import load_file

from toolkit.encoding.formats import SCALES, VECTORS, MappedVectors, encode, open_vectors
from toolkit.settings.schema import VectorFormat

FORMATS: tuple[VectorFormat, ...] = get_args(VectorFormat)
NUMBERS = st.floats(-1000, 1000, width=32, allow_subnormal=False)
MATRICES = arrays(np.float32, array_shapes(min_dims=2, max_dims=2, max_side=20), elements=NUMBERS)


def through(vectors_RD: NDArray[np.float32], *, form: VectorFormat, folder: Path) -> MappedVectors:
    path = folder / "v.safetensors"
    path.write_bytes(encode(vectors_RD, form=form))
    rows, width = vectors_RD.shape
    return open_vectors(path, form=form, rows=rows, width=width)


@pytest.mark.parametrize("form", FORMATS)
@settings(deadline=None, max_examples=40)
@given(vectors_RD=MATRICES)
def test_what_is_read_is_what_was_written_but_for_rounding(
    form: VectorFormat, vectors_RD: NDArray[np.float32], tmp_path_factory: pytest.TempPathFactory
) -> None:
    found = through(vectors_RD, form=form, folder=tmp_path_factory.mktemp("formats"))
    assert len(found) == len(vectors_RD)
    read = found.rows(slice(None))
    assert read.dtype == np.float32
    assert read.shape == vectors_RD.shape
    if form == "binary":
        signs = np.where(vectors_RD > 0, 1, -1)
        np.testing.assert_array_equal(read, signs * vectors_RD.any(axis=1, keepdims=True))
        return
    largest = np.abs(vectors_RD).max(axis=1, keepdims=True, initial=0)
    relative = {"fp32": 0, "fp16": 2**-11, "bf16": 2**-8, "int8": 0}[form]
    absolute = {"fp32": 0, "fp16": 2**-25, "bf16": 0, "int8": 0.5001 / 127}[form]
    allowed = np.abs(vectors_RD) * relative + (largest if form == "int8" else 1) * absolute
    assert (np.abs(read - vectors_RD) <= allowed).all()


@pytest.mark.parametrize("form", FORMATS)
def test_a_row_does_not_depend_on_the_others(form: VectorFormat, tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).standard_normal((30, 17)).astype(np.float32)
    vectors *= np.geomspace(0.01, 100, 30, dtype=np.float32)[:, None]
    found = through(vectors, form=form, folder=tmp_path).rows(slice(None)).copy()
    alone = through(vectors[11:12], form=form, folder=tmp_path).rows(slice(None))
    np.testing.assert_array_equal(found[11:12], alone)


def test_rounding_is_that_of_torch(tmp_path: Path) -> None:
    """Ties included: every upper half of the bits with a half below it."""
    bits = (np.arange(0x3F00, 0x4100, dtype=np.uint32) << 16) + 0x8000
    vectors = np.concatenate([bits, bits + 1, bits - 1]).view(np.float32).reshape(6, -1)
    for form, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
        found = through(vectors, form=form, folder=tmp_path).rows(slice(None))  # type: ignore[arg-type]
        wanted = torch.from_numpy(vectors).to(dtype).float().numpy()
        np.testing.assert_array_equal(found, wanted)


def test_safetensors_itself_reads_every_format(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).standard_normal((3, 10)).astype(np.float32)
    types = {
        "fp32": torch.float32,
        "fp16": torch.float16,
        "bf16": torch.bfloat16,
        "int8": torch.int8,
        "binary": torch.uint8,
    }
    assert types.keys() == set(FORMATS)
    for form in FORMATS:
        mine = through(vectors, form=form, folder=tmp_path).rows(slice(None))
        loaded = load_file(tmp_path / "v.safetensors")
        assert loaded[VECTORS].dtype == types[form]
        if form == "int8":
            assert loaded[VECTORS].abs().max(dim=1).values.tolist() == [127] * 3
            np.testing.assert_array_equal((loaded[VECTORS] * loaded[SCALES]).numpy(), mine)
        elif form == "binary":
            assert loaded[VECTORS].shape == (3, 2)
        else:
            np.testing.assert_array_equal(loaded[VECTORS].float().numpy(), mine)


@pytest.mark.parametrize("form", FORMATS)
def test_the_zero_vector_and_no_rows(form: VectorFormat, tmp_path: Path) -> None:
    zero = through(np.zeros((2, 9), np.float32), form=form, folder=tmp_path).rows(slice(None))
    np.testing.assert_array_equal(zero, np.zeros((2, 9)))
    some = np.array([[0, 0, 0], [1, -2, 3]], dtype=np.float32)  # one that is zero, one that is not
    found = through(some, form=form, folder=tmp_path).rows(slice(None))
    assert found[0].tolist() == [0, 0, 0] and np.sign(found[1]).tolist() == [1, -1, 1]
    assert through(np.zeros((0, 9), np.float32), form=form, folder=tmp_path).rows(
        slice(None)
    ).shape == (0, 9)


@pytest.mark.parametrize("harm", ["cut", "empty", "other shape", "other type"])
def test_a_file_that_is_not_whole_is_refused(harm: str, tmp_path: Path) -> None:
    path = tmp_path / "v.safetensors"
    path.write_bytes(encode(np.ones((3, 4), np.float32), form="fp32"))
    if harm == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    elif harm == "empty":
        path.write_bytes(b"")
    form: VectorFormat = "fp16" if harm == "other type" else "fp32"
    with pytest.raises(ValueError, match=r"."):
        open_vectors(path, form=form, rows=3, width=5 if harm == "other shape" else 4)
