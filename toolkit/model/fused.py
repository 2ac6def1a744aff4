"""What a GPU computes as one operation where transformers and peft have several.

Such operations compute next to nothing, so that their time is that of the bytes that they move
(`python -m tests.benchmarks.roofline` counts them, before and after). Each gives the results of the
plain path within the rounding of the type, forward and backward. On a CPU everything stays as it
is: there the same bits matter more.

- RMSNorm: `norms`.
- LoRA (Hu et al. 2022, "LoRA", section 4.1): h + s B A x as one product that adds to h in place.
  peft writes B A x, then s B A x, then the sum.
- SwiGLU and RoPE: kernels of liger-kernel (Hsu et al. 2024), where that is installed.
"""

import functools
import importlib.util
import sys
from collections.abc import Callable
from typing import Any

import torch
from peft.tuners.lora import Linear as PeftLinear
from torch import Tensor, nn

from toolkit.base.errors import BadInput
from toolkit.model.norms import fuse_norms
from toolkit.settings.model_schema import Kernels

# Classes of transformers that compute down(silu(gate(x)) * up(x)), and whose positions are those
# of Llama. Others stay as they are.
FAMILIES = ("Llama", "Mistral", "Qwen2", "Qwen3")
ROTARY = "apply_rotary_pos_emb"


def check_kernels(kernels: Kernels, *, on_gpu: bool, key: str) -> None:
    """Raise `BadInput` if `key`, "model.kernels" or "encoder.kernels", asks for liger-kernel and
    that cannot run here."""
    if kernels != "liger":
        return
    if not has_liger():
        raise BadInput(f"{key}=liger: it is not installed; pip install liger-kernel")
    if not on_gpu:
        raise BadInput(f"{key}=liger needs a GPU; {key}=auto runs anywhere")


def has_liger() -> bool:
    """Whether liger-kernel is installed in this environment, of which nothing is imported yet."""
    return importlib.util.find_spec("liger_kernel") is not None


def fuse(model: nn.Module, *, device: torch.device, kernels: Kernels = "auto") -> dict[str, int]:
    """Fuse what can be fused in a model that is to run on `device`, in place; returns how many
    operations of each kind were. Parameters, names and hooks stay. `kernels` "torch" leaves
    liger-kernel out; "auto" takes it where it is installed."""
    if device.type != "cuda":
        return {}
    counts = {"norms": fuse_norms(model, device=device), "lora": fuse_lora(model)}
    if kernels != "torch" and has_liger():
        counts |= {"swiglu": fuse_swiglu(model), "rope": fuse_rope(model)}
    return counts


def fuse_lora(model: nn.Module) -> int:
    """Make each adapter of peft on a linear layer add to the layer's output in place; returns their
    number."""
    count = 0
    for module in model.modules():
        ups: list[Any] = list(module.lora_B.values()) if type(module) is PeftLinear else []  # type: ignore[operator]
        if ups and all(type(up) is nn.Linear and up.bias is None for up in ups):
            module.__class__ = _Adapted
            for up in ups:
                up.__class__ = _AddedTo
            count += 1
    return count


class _Adapted(PeftLinear):  # type: ignore[misc]
    """It is given to layers that exist, and never constructed."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        names = [name for name in self.active_adapters if name in self.lora_A]
        plain = not (args or kwargs or self.disable_adapters or self.merged)
        if not plain or any(name in self.lora_variant for name in names):
            return super().forward(x, *args, **kwargs)
        result = self.base_layer(x)
        for name in names:
            low = self.lora_A[name](self.lora_dropout[name](x))
            # As a call of the module: under ZeRO-3 its weight is gathered for that.
            result = self.lora_B[name](low, onto=result, scale=self.scaling[name])
        return result


class _AddedTo(nn.Linear):
    """(..., rank) to (..., out), times `scale`, added to `onto`."""

    def forward(self, input: Tensor, onto: Tensor | None = None, scale: float = 1.0) -> Tensor:
        if onto is None:  # a call of peft's own
            return super().forward(input)
        output: Tensor = _AddProduct.apply(onto, input, self.weight, scale)  # type: ignore[no-untyped-call]
        return output


class _AddProduct(torch.autograd.Function):
    """onto + scale * low @ weight.T, in place where that is allowed: the output of another
    function that returned a view (DeepSpeed's hooks under ZeRO-3 do) must not be overwritten."""

    @staticmethod
    def forward(ctx: Any, onto: Tensor, low: Tensor, weight: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(low, weight)
        ctx.scale = scale
        low_NR = low.reshape(-1, low.shape[-1])
        if onto._is_view() or not onto.is_contiguous():
            onto_ND = onto.reshape(-1, onto.shape[-1])
            return torch.addmm(onto_ND, low_NR, weight.t(), alpha=scale).view(onto.shape)
        onto.view(-1, onto.shape[-1]).addmm_(low_NR, weight.t(), alpha=scale)
        ctx.mark_dirty(onto)
        return onto

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        low, weight = ctx.saved_tensors
        (gradient,) = gradients
        gradient_ND = gradient.reshape(-1, gradient.shape[-1])
        of_low = of_weight = None
        if ctx.needs_input_grad[1]:
            of_low = (gradient_ND @ weight).mul_(ctx.scale).view(low.shape)
        if ctx.needs_input_grad[2]:
            of_weight = (gradient_ND.t() @ low.reshape(-1, low.shape[-1])).mul_(ctx.scale)
        return gradient, of_low, of_weight, None


def fuse_swiglu(model: nn.Module) -> int:
    """Make each known feed-forward part use liger-kernel's SwiGLU on a GPU; returns their
    number."""
    count = 0
    for module in model.modules():
        if type(module).__name__ in _SWIGLU and _is_silu(module.act_fn):
            module.__class__ = _Gated
            count += 1
    return count


_SWIGLU = tuple(f"{family}MLP" for family in FAMILIES)


def _is_silu(function: Any) -> bool:
    return isinstance(function, nn.SiLU) or type(function).__name__ == "SiLUActivation"


class _Gated(nn.Module):
    """down(silu(gate(x)) * up(x)); it is given to parts that exist, and never constructed."""

    gate_proj: nn.Module
    up_proj: nn.Module
    down_proj: nn.Module
    act_fn: nn.Module

    def forward(self, x: Tensor) -> Any:
        gate, up = self.gate_proj(x), self.up_proj(x)
        if not has_kernels(gate):
            return self.down_proj(self.act_fn(gate) * up)
        return self.down_proj(silu_and_mul(gate, up))


def silu_and_mul(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up by liger-kernel. Its backward pass overwrites both."""
    from liger_kernel.ops.swiglu import LigerSiLUMulFunction

    output: Tensor = LigerSiLUMulFunction.apply(gate, up)
    return output


def fuse_rope(model: nn.Module) -> int:
    """Make the positions of known attention layers liger-kernel's on a GPU; returns the number of
    these layers. It is a function of transformers' module that they share, so that this holds for
    every model of the family in this process."""
    count = 0
    for module in model.modules():
        kind = type(module)
        if kind.__name__ not in _ROTATED:
            continue
        home = sys.modules[kind.__module__]
        plain = getattr(home, ROTARY)
        if not hasattr(plain, "plain"):
            setattr(home, ROTARY, rotary(plain))
        count += 1
    return count


_ROTATED = tuple(f"{family}Attention" for family in FAMILIES)


def rotary(plain: Callable[..., Any]) -> Callable[..., Any]:
    """`apply_rotary_pos_emb` of transformers, with a kernel on a GPU."""

    @functools.wraps(plain)
    def apply(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, *args: Any) -> Any:
        if args or not has_kernels(query):
            return plain(query, key, cos, sin, *args)
        return rotate(query, key, cos, sin)

    apply.plain = plain  # type: ignore[attr-defined]
    return apply


def rotate(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Both with their positions, by liger-kernel, which overwrites them."""
    from liger_kernel.ops.rope import LigerRopeFunction

    rotated: tuple[Tensor, Tensor] = LigerRopeFunction.apply(query, key, cos, sin)
    return rotated


def has_kernels(tensor: Tensor) -> bool:
    """Whether triton's kernels run on this tensor's device."""
    return tensor.is_cuda
