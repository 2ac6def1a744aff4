"""RMSNorm as one operation of torch, in the place of the eight of transformers, on a GPU.

Zhang and Sennrich 2019, "Root Mean Square Layer Normalization". A norm computes next to nothing, so
that its time is that of its bytes, and transformers' own reads and writes fp32 copies of its input
(tests/benchmarks has the bytes per token). The results differ by the rounding of the type: in bf16
ours rounds once where transformers' rounds twice, and Gemma's the other way round. On a CPU torch
has no such kernel, and norms stay as they are.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Classes of transformers by what they compute. A norm of any other class stays as it is.
_BY_WEIGHT = ["Llama", "Mistral", "Mixtral", "Qwen2", "Qwen2Moe", "Qwen3", "Qwen3Moe"]
_BY_WEIGHT += ["Olmo2", "Phi3", "SmolLM3"]
_BY_ONE_MORE = ["Gemma", "Gemma2", "Gemma3"]


def fuse_norms(model: nn.Module, *, device: torch.device) -> int:
    """Make each RMSNorm of a model that trains on a GPU one operation, in place; returns their
    number. Their parameters, names and hooks stay."""
    if device.type != "cuda":
        return 0
    count = 0
    for module in model.modules():
        fused = _FUSED.get(type(module).__name__)
        if fused is not None:
            module.__class__ = fused
            count += 1
    return count


class _ByWeight(nn.Module):
    """y = x / rms(x) * weight; it is given to norms that exist, and never constructed."""

    weight: Tensor
    variance_epsilon: float

    def forward(self, hidden: Tensor) -> Tensor:
        return F.rms_norm(hidden, hidden.shape[-1:], self.weight, self.variance_epsilon)


class _ByOneMore(nn.Module):
    """y = x / rms(x) * (1 + weight), as Gemma has it. 1 + weight is never a number of its own: in
    bf16 it would lose the last bits of a small weight."""

    weight: Tensor
    eps: float

    def forward(self, hidden: Tensor) -> Tensor:
        normed = F.rms_norm(hidden, hidden.shape[-1:], None, self.eps)
        return torch.addcmul(normed, normed, self.weight)


_FUSED: dict[str, type[nn.Module]] = {
    **{f"{family}RMSNorm": _ByWeight for family in _BY_WEIGHT},
    **{f"{family}RMSNorm": _ByOneMore for family in _BY_ONE_MORE},
}
