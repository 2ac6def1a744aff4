"""From the states of tokens to vectors by other rules than a plain decoder's.

Knows tensors. Refuses to know how texts became tokens. Shapes: T tokens, S rows, D width of the
model's states, V width of a vector.
"""

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from toolkit.base.errors import BadInput
from toolkit.model.pooling import FlatTokens, pool
from toolkit.model.tensor_file import StoredTensors
from toolkit.model.vector_rules import Dense, VectorRules

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "Identity": lambda given: given,
    "Tanh": torch.tanh,
    "ReLU": F.relu,
    "GELU": F.gelu,
    "SiLU": F.silu,
    "Sigmoid": torch.sigmoid,
}


def pooling_head(rules: VectorRules) -> Callable[[FlatTokens], Tensor] | None:
    """The pooling of `rules` alone, for training; None for a mean, which `embed_rows` computes in a
    faster way."""
    return None if rules.is_mean else functools.partial(pool, modes=rules.modes)


class Head:
    """Pools the states of tokens, and does what comes after that. `width` is V."""

    def __init__(self, rules: VectorRules, *, hidden_size: int, device: torch.device) -> None:
        """Raises `BadInput` where the width of a Dense does not fit what comes before it."""
        self._modes = rules.modes
        self._steps: list[Callable[[Tensor], Tensor]] = []
        self.width = rules.width(hidden_size)
        for step in rules.after:
            if isinstance(step, Dense):
                self._steps.append(_dense(step, device=device))
            else:
                self._steps.append(lambda vector_SV: F.normalize(vector_SV, dim=-1))

    def __call__(self, tokens: FlatTokens) -> Tensor:
        """Vectors (S, V), in fp32; the zero vector for a row without a token to pool."""
        vector_SV = pool(tokens, modes=self._modes)
        count_S = vector_SV.new_zeros(tokens.num_rows).index_add(
            0, tokens.row_T, tokens.own_T.to(vector_SV.dtype)
        )
        for step in self._steps:
            vector_SV = step(vector_SV)
        # A Dense would give them its bias.
        return vector_SV.masked_fill(count_S.unsqueeze(-1) == 0, 0.0)


def _dense(step: Dense, *, device: torch.device) -> Callable[[Tensor], Tensor]:
    tensors = StoredTensors([step.weights])
    shapes: dict[str, tuple[int, ...]] = {"linear.weight": (step.out_features, step.in_features)}
    if step.bias:
        shapes["linear.bias"] = (step.out_features,)
    found = {name: tensors.shape(name) for name in tensors}
    if found != shapes:
        raise BadInput(f"{step.weights}: holds {found}, and its config.json says {shapes}")
    weight = tensors["linear.weight"].float().to(device)
    bias = tensors["linear.bias"].float().to(device) if step.bias else None
    activation = ACTIVATIONS[step.activation]
    return lambda vector_SV: activation(F.linear(vector_SV, weight, bias))
