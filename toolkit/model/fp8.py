"""Products of frozen linear layers in 8-bit numbers (e4m3), for GPUs from Hopper on.

A weight keeps one scale per output, an input one per token: the largest number of each becomes 448,
the largest of the type (Micikevicius et al. 2022, "FP8 Formats for Deep Learning", section 3).
torch's own `scaled_mm` multiplies; it computes on a CPU, too, slowly, which is how this is tested.
Knows layers and devices; refuses to know who trains or embeds. Shapes: N rows, I inputs, O outputs.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeGuard

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.nn.functional import ScalingType

from toolkit.base.errors import BadInput
from toolkit.model.plain_path import nearness
from toolkit.settings.model_schema import DType

E4M3 = torch.float8_e4m3fn
LARGEST = torch.finfo(E4M3).max
HOPPER = (9, 0)  # the first NVIDIA GPUs whose torch kernels have a scale per row
MULTIPLE = 16  # the kernels want both widths to be a multiple of it
# Far below what rounding does (0.98 at least was seen): another model.
LEAST_COSINE = 0.8


def check_fp8(*, dtype: DType, device: torch.device, key: str) -> None:
    """Raise `BadInput` if `key`, "encoder.fp8" or "model.fp8", cannot be true on this device."""
    group = key.partition(".")[0]
    if dtype != "bf16":
        raise BadInput(f"{key}=true needs {group}.dtype=bf16, not {dtype}")
    if not has_fp8(device):
        raise BadInput(
            f"{key}=true needs a GPU with products of 8-bit numbers (NVIDIA's Hopper or newer), "
            f"not {_name(device)}; {key}=false runs anywhere"
        )


def has_fp8(device: torch.device) -> bool:
    """Whether the device multiplies 8-bit floating-point numbers with a scale per row."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= HOPPER


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "a CPU"


def quantize(model: Any) -> int:
    """Replace each frozen bf16 `nn.Linear` in place, those below adapters included; returns their
    number. The output of a language model stays as it is: its logits decide between neighbours.

    Raises `BadInput` for a model without such a layer.
    """
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    count = 0
    for module in list(model.modules()):
        parts = {} if isinstance(module, Fp8Linear) else dict(module.named_children())
        for name, child in parts.items():
            if child is not head and _is_suited(child):
                # An adapter's own layers are trained.
                assert not isinstance(module, LoraLayer) or name == "base_layer"
                setattr(module, name, Fp8Linear(child))
                count += 1
    if not count:
        raise BadInput(
            "fp8: no frozen linear layer of this model is in bf16 with widths that are multiples "
            f"of {MULTIPLE}"
        )
    return count


def _is_suited(module: nn.Module) -> TypeGuard[nn.Linear]:
    # The exact type: a subclass may compute something else.
    if type(module) is not nn.Linear or module.weight.dtype != torch.bfloat16:
        return False
    frozen = not any(part.requires_grad for part in module.parameters())
    return frozen and not any(size % MULTIPLE for size in module.weight.shape)


def quantize_encoder(model: Any, *, vectors: Callable[[], NDArray[np.float32]]) -> str:
    """Quantize an encoder whose probe texts have `vectors()`; returns a line that says how near the
    vectors are to those before. Raises `BadInput` if they are no longer alike."""
    model.requires_grad_(False)
    before = vectors()
    count = quantize(model)
    cosine, _ = nearness(vectors(), before)
    if not (cosine >= LEAST_COSINE).all():  # NaN is no nearness
        raise BadInput(
            "encoder.fp8=true: the vectors of this model are others in 8 bits (least cosine to "
            f"bf16 {cosine.min():.3f}); use encoder.fp8=false"
        )
    return f"fp8: {count} layers; least cosine to bf16 of {len(cosine)} texts {cosine.min():.4f}"


class Fp8Linear(nn.Module):
    """(..., I) to (..., O), in bf16, for a weight that is not trained.

    Its numbers are buffers of bytes and of 32-bit numbers: DeepSpeed and `Module.to` would round
    floating-point ones to bf16. The gradient of the input is computed from the same weight, in
    bf16.
    """

    codes_OI: Tensor
    scale_bits_O: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        codes_OI, scale_O1 = quantized(linear.weight.detach())
        self.register_buffer("codes_OI", codes_OI.view(torch.uint8), persistent=False)
        bits_O = scale_O1[:, 0].contiguous().view(torch.int32)
        self.register_buffer("scale_bits_O", bits_O, persistent=False)
        bias = None if linear.bias is None else linear.bias.detach()
        self.register_buffer("bias", bias, persistent=False)

    def forward(self, input: Tensor) -> Tensor:
        input_NI = input.reshape(-1, self.in_features)
        scale_O = self.scale_bits_O.view(torch.float32)
        output_NO: Tensor = _Product.apply(input_NI, self.codes_OI.view(E4M3), scale_O, self.bias)  # type: ignore[no-untyped-call]
        return output_NO.view(*input.shape[:-1], self.out_features)


class _Product(torch.autograd.Function):
    """Saves the weight alone: its gradient is not wanted, and that of the input needs no input."""

    @staticmethod
    def forward(
        ctx: Any, input_NI: Tensor, codes_OI: Tensor, scale_O: Tensor, bias_O: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(codes_OI, scale_O)
        make = _one_kernel() if input_NI.is_cuda else quantized
        given_NI, scale_N1 = make(input_NI)
        # Split accumulation in the tensor cores' own registers loses bits.
        output_NO: Tensor = F.scaled_mm(
            given_NI,
            codes_OI.t(),
            scale_N1,
            ScalingType.RowWise,
            scale_O[None],
            ScalingType.RowWise,
            bias=bias_O,
            output_dtype=torch.bfloat16,
            use_fast_accum=False,
        )
        return output_NO

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, None, None]:
        codes_OI, scale_O = ctx.saved_tensors
        # bf16 holds each code exactly. The scale goes to the gradient, which is smaller.
        scaled_NO = gradients[0] * scale_O.to(torch.bfloat16)
        return scaled_NO @ codes_OI.to(torch.bfloat16), None, None, None


def quantized(value_NI: Tensor) -> tuple[Tensor, Tensor]:
    """The codes (N, I) of a matrix, and the scale (N, 1) of each row, fp32: their product is the
    matrix within 1/16 of each number, or 1/1,000 of a scale for the smallest. A row of zeros has
    codes of zero."""
    largest_N1 = value_NI.abs().amax(dim=1, keepdim=True).float()
    scale_N1 = largest_N1.clamp(min=torch.finfo(torch.float32).tiny * LARGEST) / LARGEST
    return (value_NI.float() / scale_N1).to(E4M3), scale_N1


@functools.cache
def _one_kernel() -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """`quantized` as a single kernel of a GPU: as it stands it reads and writes its input five
    times."""
    return torch.compile(quantized, dynamic=True)
