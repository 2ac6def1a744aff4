"""Models of one base merged into one by their weights, a tensor at a time.

Knows three ways to merge tensors of one shape, and how the weights of a model are read with its
adapters in them. Refuses to know whether the models fit each other (`alike`) and what else is in
their folders. All is computed in fp32.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from toolkit.base.console import at_work
from toolkit.model.adapters import Chain
from toolkit.model.backbone import DTYPES, weight_files
from toolkit.model.tensor_file import MAX_FILE_BYTES, StoredTensors, write_tensors
from toolkit.model.weights import Adapter, base_folder, by_inner_name, check_places, prefix_of
from toolkit.settings.merge_schema import Method

# Where the angle is this near to 0, an arc and its chord are the same in fp32; where it is this
# near to half a turn, no arc is the shortest.
NEARLY_PARALLEL = 1e-3


@dataclasses.dataclass(frozen=True)
class Blend:
    """How models are merged: the method, a weight per model and, for ties, the share of each
    difference that is kept."""

    method: Method
    weights: tuple[float, ...]
    density: float | None = None


class ChainWeights(Mapping[str, Tensor]):
    """The weights of the inner decoder of a chain in fp32, by name, with the adapters added. Each
    is read when it is asked for. Raises `BadInput` for an adapter of a weight that is not there."""

    def __init__(
        self, stored: StoredTensors, *, keys: Mapping[str, str], adapters: Sequence[Adapter]
    ) -> None:
        self._stored, self._keys, self._adapters = stored, keys, adapters

    @classmethod
    def of(cls, chain: Chain) -> Self:
        """The weights of a chain; only the headers of its files are read."""
        folder = base_folder(chain.base)
        stored, prefix = StoredTensors(weight_files(folder)), prefix_of(folder)
        keys = by_inner_name(stored, prefix=prefix)
        adapters = [adapter.of_inner(prefix) for adapter in chain.adapters()]
        check_places(adapters, known=keys, where=str(folder))
        return cls(stored, keys=keys, adapters=adapters)

    def __getitem__(self, name: str) -> Tensor:
        value = self._stored[self._keys[name]].float()
        for adapter in self._adapters:
            value = adapter.added_to(value, name=name)
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a weight, without reading it."""
        return self._stored.shape(self._keys[name])


@at_work("merges models")
def write_merged(
    models: Sequence[ChainWeights],
    *,
    out: Path,
    dtype: str,
    blend: Blend,
    base: ChainWeights | None = None,
    max_file_bytes: int = MAX_FILE_BYTES,
) -> None:
    """Write the weights of the merged model, in the order of the first. In memory is one tensor of
    each model at a time. The models, and for ties the `base`, must be alike (`alike`)."""

    def value_of(name: str) -> Tensor:
        # A weight of 0 takes no part, and neither in the election of ties.
        taken = [
            (model, weight) for model, weight in zip(models, blend.weights, strict=True) if weight
        ]
        values, weights = [model[name] for model, _ in taken], [weight for _, weight in taken]
        if blend.method == "ties":
            assert base is not None and blend.density is not None
            return ties(values, weights=weights, base=base[name], density=blend.density)
        if blend.method == "slerp" and len(values) == 2:
            return slerp(*values, ratio=weights[1])
        return linear(values, weights=weights)

    shapes = {name: models[0].shape(name) for name in models[0]}
    write_tensors(
        out, shapes=shapes, dtype=DTYPES[dtype], value_of=value_of, max_file_bytes=max_file_bytes
    )


def linear(values: Sequence[Tensor], *, weights: Sequence[float]) -> Tensor:
    """The weighted sum of tensors, fp32; with weights of sum 1 their mean."""
    total = values[0] * weights[0]
    for value, weight in zip(values[1:], weights[1:], strict=True):
        total.add_(value, alpha=weight)
    return total


def slerp(first: Tensor, second: Tensor, *, ratio: float) -> Tensor:
    """The point at `ratio` of the arc from one tensor to the other, fp32 (Shoemake 1985, slerp).

    The angle is that between the two as vectors; their lengths are kept as they are, as mergekit
    does. Where they are nearly parallel, nearly opposite, or one is zero, it is their mean with the
    weights 1 - ratio and ratio.
    """
    lengths = [float(torch.linalg.vector_norm(value)) for value in (first, second)]
    angle = 0.0
    if all(lengths):
        # Not by arccos, which is blind to angles below 3e-4 in fp32 (Kahan 2006, section 13).
        one, other = first / lengths[0], second / lengths[1]
        apart = float(torch.linalg.vector_norm(one - other))
        along = float(torch.linalg.vector_norm(one.add_(other)))
        angle = 2 * math.atan2(apart, along)
    weights = [1 - ratio, ratio]
    if NEARLY_PARALLEL < angle < math.pi - NEARLY_PARALLEL:
        weights = [math.sin(weight * angle) / math.sin(angle) for weight in weights]
    return linear([first, second], weights=weights)


def ties(
    values: Sequence[Tensor], *, weights: Sequence[float], base: Tensor, density: float
) -> Tensor:
    """The base plus the merged differences from it, fp32 (TIES: Yadav et al. 2023, algorithm 1,
    with lambda 1).

    Of each difference the share `density` with the largest magnitudes is kept, in each tensor by
    itself (in the paper: in all tensors at once, which cannot be done with one in memory). Each
    number gets the sign of the weighted sum, and is the weighted mean of the differences that have
    this sign; 0 where nothing is left.
    """
    trimmed = [_trimmed(value - base, density=density) for value in values]
    elected = linear(trimmed, weights=weights).sign_()
    total, counted = torch.zeros_like(base), torch.zeros_like(base)
    for value, weight in zip(trimmed, weights, strict=True):
        agrees = (value.sign() == elected) & (elected != 0)
        total.add_(value * agrees, alpha=weight)
        counted.add_(agrees, alpha=weight)
    return total.div_(counted.masked_fill_(counted == 0, 1.0)).add_(base)


def _trimmed(difference: Tensor, *, density: float) -> Tensor:
    """The difference, with 0 in the place of all numbers below the k-th largest magnitude."""
    count = difference.numel()
    kept = max(1, round(density * count)) if count else 0
    if kept == count:
        return difference
    magnitude = difference.abs().reshape(-1).numpy()
    # numpy's needs one copy, torch's kthvalue one with an index of 8 bytes for each number.
    least = float(np.partition(magnitude, count - kept)[count - kept])
    return difference.masked_fill_(difference.abs() < least, 0.0)
