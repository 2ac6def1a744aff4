"""Which kernel computes attention over packed rows: by device, type and shape.

Knows what torch's kernels take, and their versions. Refuses to know how any is called: `attention`.
"""

import functools
import inspect
from typing import Any

import torch

from toolkit.base.errors import BadInput

PACKED = "packed"
HALF_TYPES = (torch.float16, torch.bfloat16)
VARLEN, SDPA = "flash attention over rows of any length", "sdpa over groups of rows"
BY_HAND = "softmax by hand over groups of rows"
AMPERE = (8, 0)  # the first NVIDIA GPUs with bf16 and flash attention, by compute capability
MOST_HEAD_WIDTH = 256


def kernel_for(
    *,
    on_gpu: bool,
    dtype: torch.dtype,
    dropout: float,
    softcap: float | None,
    head_width: int = 64,
) -> str:
    """The kernel that computes packed attention: `VARLEN`, `SDPA` or `BY_HAND`."""
    if on_gpu and not obstacle(dtype=dtype, softcap=softcap, head_width=head_width):
        return VARLEN
    # The other fused kernels support neither soft capping nor, on a CPU, dropout.
    return BY_HAND if softcap or dropout else SDPA


def obstacle(*, dtype: torch.dtype, softcap: float | None, head_width: int) -> str:
    """What keeps `VARLEN` from computing attention on the GPU at hand; "" if nothing does."""
    if dtype not in HALF_TYPES:
        return f"numbers of {dtype}"
    if softcap:
        return "soft capping of scores"
    if head_width > MOST_HEAD_WIDTH or head_width % 8:
        return f"heads of {head_width} numbers, no multiple of 8 up to {MOST_HEAD_WIDTH}"
    return "" if has_flash() else "a GPU older than Ampere"


@functools.cache
def has_flash() -> bool:
    """Whether flash attention runs on the GPU at hand. Where there is none, the question is about
    some other GPU, which is taken to be one of today."""
    return not torch.cuda.is_available() or torch.cuda.get_device_capability() >= AMPERE


@functools.cache
def varlen_parameters() -> frozenset[str]:
    """The names of the parameters of torch's `varlen_attn`, which grew from version to version;
    none in a torch without it."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return frozenset()
    return frozenset(inspect.signature(varlen_attn).parameters)


def check_torch(*, attention: str, dtype: torch.dtype, on_gpu: bool) -> None:
    """Raise `BadInput` if this torch is too old for packed attention on a GPU."""
    kernel = kernel_for(on_gpu=on_gpu, dtype=dtype, dropout=0.0, softcap=None)
    if attention != PACKED or kernel != VARLEN:
        return
    if missing := sorted({"scale", "window_size"} - varlen_parameters()):
        raise BadInput(
            f"torch {torch.__version__}: its varlen_attn has no {' and no '.join(missing)}, which "
            "packed attention on a GPU needs; install torch 2.11 or newer, or use attention=sdpa"
        )


def check_dropout(config: Any, *, attention: str, dtype: torch.dtype, on_gpu: bool) -> None:
    """Raise `BadInput` for attention dropout that the model's kernel does not support."""
    kernel, dropout = kernel_of(config, dtype=dtype, on_gpu=on_gpu)
    if dropout and attention == PACKED and kernel == VARLEN:
        raise BadInput(
            f"model.attention_dropout={dropout}: packed attention on CUDA in {dtype} has no "
            "dropout; use model.attention=sdpa"
        )


def attention_in_use(config: Any, *, attention: str, dtype: torch.dtype, on_gpu: bool) -> str:
    """What computes attention while a model of this configuration trains, in words, for the record
    of the run."""
    kernel, dropout = kernel_of(config, dtype=dtype, on_gpu=on_gpu)
    if attention != PACKED:
        return f"padded, {attention}, dropout {dropout}"
    return f"packed, {kernel}, dropout {dropout}"


def kernel_of(config: Any, *, dtype: torch.dtype, on_gpu: bool) -> tuple[str, float]:
    """The kernel for a model's packed attention in training, and the attention dropout."""
    dropout = getattr(config, "attention_dropout", 0.0) or 0.0
    return kernel_for(on_gpu=on_gpu, dtype=dtype, dropout=dropout, **_facts(config)), dropout


def remark(config: Any, *, dtype: torch.dtype, on_gpu: bool) -> str:
    """What somebody should know whose packed attention is slow on a GPU; "" if it is not. fp32 is
    no surprise."""
    if not on_gpu or dtype not in HALF_TYPES:
        return ""
    why = obstacle(dtype=dtype, **_facts(config))
    return f"attention without flash attention, several times slower: {why}" if why else ""


def _facts(config: Any) -> dict[str, Any]:
    width = getattr(config, "head_dim", None)
    width = width or config.hidden_size // config.num_attention_heads
    return {"softcap": getattr(config, "attn_logit_softcapping", None), "head_width": int(width)}
