"""Dropout on a CPU, with random bits that are the same on every processor.

torch draws a CPU's mask number by number on one thread, unless the processor is Intel's: that took
a third of a training step with LoRA. Here one draw of torch's generator seeds a generator of whole
words (SFC64), and each element takes 16 bits of them. Reseeding torch, or restoring the state of
its generator as activation checkpointing does, therefore gives the same mask again, whatever the
processor and the number of threads.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEVELS = 2**16  # the probability is a multiple of 1 / LEVELS


def dropout(input: Tensor, *, p: float) -> Tensor:
    """Zero each element of `input` with probability `p`, and divide the others by 1 - p: the same
    shape. On a GPU this is torch's own dropout; on a CPU `p` is rounded to a multiple of 2^-16."""
    if p == 0 or input.device.type != "cpu":
        return F.dropout(input, p=p)
    output: Tensor = _Dropout.apply(input, p)  # type: ignore[no-untyped-call]
    return output


def keep_mask(shape: torch.Size, *, p: float) -> tuple[Tensor, float]:
    """A mask that is false with probability `p`, and what to multiply the kept elements by."""
    dropped = min(round(p * LEVELS), LEVELS - 1)
    seed = int(torch.randint(2**62, ()))
    count = shape.numel()
    words = np.random.SFC64(seed).random_raw(-(-count // 4))
    # Signed, because torch compares unsigned 16-bit integers on one thread only.
    number = torch.from_numpy(words.view(np.int16)[:count]).view(shape)
    return number >= dropped - LEVELS // 2, LEVELS / (LEVELS - dropped)


class Dropout(nn.Dropout):
    """`dropout` as a module, in the place of torch's."""

    def forward(self, input: Tensor) -> Tensor:
        return dropout(input, p=self.p) if self.training else input


class _Dropout(torch.autograd.Function):
    """Keeps one byte per element for the backward pass, where torch keeps a number."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, p: float) -> Tensor:
        kept, ctx.scale = keep_mask(input.shape, p=p)
        ctx.save_for_backward(kept)
        return input * kept.to(input.dtype).mul_(ctx.scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (kept,) = ctx.saved_tensors
        (gradient,) = gradients
        return gradient * kept.to(gradient.dtype).mul_(ctx.scale), None
