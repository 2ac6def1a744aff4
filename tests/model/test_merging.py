"""Three ways to merge tensors against plain numpy in double precision, and the files of a merge."""

import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from toolkit.model.adapters import chain_of
from toolkit.model.merging import (
    Blend,
    ChainWeights,
    linear,
    slerp,
    ties,
    write_merged,
)
from toolkit.model.tensor_file import StoredTensors
from toolkit.settings.merge_schema import Method

Array = NDArray[np.float64]


def arrays(count: int, *, seed: int, shape: tuple[int, ...] = (37, 11)) -> list[Array]:
    """Arrays that fp32 holds exactly."""
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape).astype(np.float32).astype(np.float64) for _ in range(count)]


def tensors(values: Sequence[Array]) -> list[Tensor]:
    return [torch.tensor(value, dtype=torch.float32) for value in values]


def near(found: Tensor, expected: Array) -> None:
    np.testing.assert_allclose(found.numpy(), expected, rtol=2e-6, atol=2e-6)


# --- the oracles: definitions, number by number where that is plainest ---


def slerp_in_numpy(first: Array, second: Array, ratio: float) -> Array:
    cosine = (first * second).sum() / np.sqrt((first**2).sum() * (second**2).sum())
    angle = np.arccos(np.clip(cosine, -1, 1))
    share = np.sin((1 - ratio) * angle) / np.sin(angle), np.sin(ratio * angle) / np.sin(angle)
    total: Array = share[0] * first + share[1] * second
    return total


def ties_in_numpy(
    values: Sequence[Array], weights: Sequence[float], base: Array, density: float
) -> Array:
    differences = []
    for value in values:
        difference = (value - base).reshape(-1)
        kept = set(np.argsort(-np.abs(difference))[: round(density * difference.size)].tolist())
        differences.append([d if k in kept else 0.0 for k, d in enumerate(difference)])
    merged = []
    for column in zip(*differences, strict=True):
        pull = sum(w * d for w, d in zip(weights, column, strict=True))
        mine = [(w, d) for w, d in zip(weights, column, strict=True) if d * pull > 0]
        merged.append(sum(w * d for w, d in mine) / sum(w for w, _ in mine) if mine else 0.0)
    return base + np.array(merged).reshape(base.shape)


# --- the methods ---


@pytest.mark.parametrize("weights", [(0.5, 0.5), (0.25, 0.75), (0.2, 0.3, 0.5), (1.0, 0.0)])
def test_linear_is_the_weighted_mean(weights: tuple[float, ...]) -> None:
    values = arrays(len(weights), seed=1)
    expected = sum((w * v for w, v in zip(weights, values, strict=True)), np.zeros((37, 11)))
    near(linear(tensors(values), weights=weights), expected)


@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("apart", [10.0, 1.0, 0.1, 0.01])
def test_slerp_is_the_arc_between_two_tensors(ratio: float, apart: float) -> None:
    """Also of tensors as near to each other as those of two fine-tuned models."""
    first, other = arrays(2, seed=2)
    second = (first + apart * other).astype(np.float32).astype(np.float64)
    found = slerp(*tensors([first, second]), ratio=ratio)
    near(found, slerp_in_numpy(first, second, ratio))


def test_slerp_keeps_lengths_where_the_mean_does_not() -> None:
    first, second = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 3.0])
    found = slerp(first, second, ratio=0.5)
    assert found.tolist() == pytest.approx([3 / 2**0.5, 3 / 2**0.5])
    assert first.tolist() == [3.0, 0.0]  # nothing is written into what was given
    assert second.tolist() == [0.0, 3.0]


@pytest.mark.parametrize(
    "second",
    [[2.0, 4.0], [1.0, 2.0 + 1e-6], [-1.0, -2.0], [0.0, 0.0]],
    ids=["parallel", "nearly", "opposite", "zero"],
)
def test_slerp_is_the_mean_where_there_is_no_arc(second: list[float]) -> None:
    found = slerp(torch.tensor([1.0, 2.0]), torch.tensor(second), ratio=0.25)
    expected = [0.75 * a + 0.25 * b for a, b in zip([1.0, 2.0], second, strict=True)]
    assert found.tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("density", [0.05, 0.2, 0.7, 1.0])
@pytest.mark.parametrize("weights", [(0.5, 0.5), (0.9, 0.1), (0.2, 0.3, 0.5), (0.25,) * 4])
def test_ties_is_the_algorithm_of_its_paper(density: float, weights: tuple[float, ...]) -> None:
    base, *values = arrays(1 + len(weights), seed=3)
    found = ties(tensors(values), weights=weights, base=torch.tensor(base).float(), density=density)
    # The differences are taken in fp32 there and in fp64 here: none of these changes its place.
    near(found, ties_in_numpy(values, weights, base, density))


def test_ties_of_a_case_worked_out_by_hand() -> None:
    """Trimmed to three of six: [4 0 -3 0 2 0], [-1 0 -2 5 0 0] and [-2 0 0 -1 0 6]. The signs of
    the sums are + 0 - + + +, and each number is the mean of those that have its sign."""
    base = torch.full((6,), 10.0)
    differences = [[4, 0.1, -3, 0.2, 2, 0], [-1, 0.1, -2, 5, 0.3, 0], [-2, 0, 0.2, -1, 0, 6]]
    values = [base + torch.tensor(one) for one in differences]
    found = ties(values, weights=[1 / 3] * 3, base=base, density=0.5)
    assert (found - base).tolist() == pytest.approx([4, 0, -2.5, 5, 2, 6], abs=1e-5)


def test_ties_of_models_that_are_their_base_is_the_base() -> None:
    base = torch.arange(5.0)
    assert torch.equal(ties([base, base], weights=[0.5, 0.5], base=base, density=0.2), base)


# --- the files ---


class Watched(ChainWeights):
    """Weights of which it is known when one of another name is still in memory."""

    alive: dict[str, "weakref.ref[Tensor]"]
    most: int

    def __getitem__(self, name: str) -> Tensor:
        value = super().__getitem__(name)
        here = {other for other, ref in self.alive.items() if ref() is not None}
        self.most = max(self.most, len(here - {name}))
        self.alive[name] = weakref.ref(value)
        return value


def watched(model: Path) -> Watched:
    made = Watched.of(chain_of(str(model)))
    made.alive, made.most = {}, 0
    return made


def moved(model: Path) -> Mapping[str, Tensor]:
    """What the tiny model stores, by the names of the inner decoder."""
    stored = load_file(model / "model.safetensors")
    return {name.removeprefix("model."): tensor.float() for name, tensor in stored.items()}


@pytest.mark.parametrize("method", ["linear", "slerp", "ties"])
def test_one_tensor_at_a_time_is_in_memory(
    method: Method, tiny_model: Path, tmp_path: Path
) -> None:
    models = [watched(tiny_model) for _ in range(2)]
    base = watched(tiny_model) if method == "ties" else None
    blend = Blend(method, (0.5, 0.5), density=0.3 if base else None)
    write_merged(models, out=tmp_path, dtype="fp32", blend=blend, base=base)
    assert [one.most for one in models] == [0, 0]
    assert all(len(one.alive) == len(one) for one in models)
    found = load_file(tmp_path / "model.safetensors")
    for name, tensor in moved(tiny_model).items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-6, atol=1e-7)


def test_files_end_where_they_should_and_are_one_model(tiny_model: Path, tmp_path: Path) -> None:
    """In parts of 1 MB (a larger tensor has its own), in bf16, and each tensor rounded once."""
    models = [ChainWeights.of(chain_of(str(tiny_model))) for _ in range(2)]
    write_merged(
        models,
        out=tmp_path,
        dtype="bf16",
        blend=Blend("linear", (0.25, 0.75)),
        max_file_bytes=1_000_000,
    )
    parts = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(parts) > 2
    found: Any = StoredTensors(parts)
    for name, tensor in moved(tiny_model).items():
        expected = (0.25 * tensor.double() + 0.75 * tensor.double()).bfloat16()
        assert torch.equal(found[name], expected), name
