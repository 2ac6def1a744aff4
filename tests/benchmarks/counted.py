"""What every operation of a model reads, writes and computes, from shapes alone.

Tensors on the meta device have shapes and no numbers; so a step of a model of any size takes
seconds. What a GPU runs as one kernel counts as one, which reads its inputs and writes its outputs
once: packed attention, dropout, `F.rms_norm`, liger-kernel's kernels, and rounding to 8 bits. FLOPs
are those of matrix products and attention; in 8 bits they take half the time. Memory is that of all
tensors that are alive. Left out: launches, the optimizer, communication.
"""

import contextlib
import weakref
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from toolkit.model import attention, fp8, fused

# They only make a tensor, or give a part of one.
FREE = ("empty", "new_empty", "empty_like", "detach", "_unsafe_view", "alias", "lift_fresh")
# They write a tensor without reading it.
WRITES = ("zero_", "fill_", "copy_", "bernoulli_", "normal_")
PRODUCTS = {"mm": 0, "addmm": 1, "addmm_": 1, "bmm": 0, "baddbmm": 1, "_scaled_mm_v2": 0}
HALVES = ("_scaled_mm_v2",)  # products of 8-bit numbers: twice the rate
VARLEN = "_varlen_attn"


def bytes_of(tensor: Tensor) -> int:
    """What lies in memory: an expanded tensor is read once."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


class Cost(NamedTuple):
    """An operation: its name, bytes and FLOPs."""

    name: str
    moved: float
    flops: float


class Counted(TorchDispatchMode):
    """Counts all operations. `attended` is the number of tokens that each one attends to."""

    def __init__(self, *, attended: int) -> None:
        super().__init__()
        self.attended = attended
        self.costs: list[Cost] = []
        self.live = self.peak = 0
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        made = [part for part in tree_leaves(out) if isinstance(part, Tensor)]
        if not func.is_view and name not in FREE:
            given = [part for part in tree_leaves((args, kwargs)) if isinstance(part, Tensor)]
            if name in WRITES:
                given = given[1:]
            self.count(name, given, made, flops=self._flops(name, given))
        for tensor in made:
            self.hold(tensor)
        return out

    def count(self, name: str, given: list[Tensor], made: list[Tensor], *, flops: float) -> None:
        """Note an operation."""
        read = {id(part): bytes_of(part) for part in given}
        moved = sum(read.values()) + sum(map(bytes_of, made))
        self.costs.append(Cost(name, moved, flops))

    def hold(self, tensor: Tensor) -> None:
        """Count the memory of a tensor until it is freed."""
        storage = tensor.untyped_storage()
        if storage in self._known or tensor.device.type != "meta":
            return
        self._known.add(storage)
        size = storage.nbytes()
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._free, size).atexit = False

    def _free(self, size: int) -> None:
        self.live -= size

    def _flops(self, name: str, given: list[Tensor]) -> float:
        if name in PRODUCTS:
            one, other = given[PRODUCTS[name] :][:2]
            return 2.0 * one.numel() * other.shape[-1]
        if name.startswith(VARLEN):
            # Twice the products of the forward pass, and the scores once more.
            backward = name.endswith("backward")
            query = given[1] if backward else given[0]
            return (10.0 if backward else 4.0) * query.numel() * self.attended
        return 0.0

    def moved(self) -> Counter[str]:
        """Bytes by the name of the operation."""
        found: Counter[str] = Counter()
        for cost in self.costs:
            found[cost.name] += int(cost.moved)
        return found

    def seconds(self, *, rate: float, bandwidth: float) -> float:
        """The time of all operations one after another: each takes that of its FLOPs or that of its
        bytes, whichever is longer."""
        return sum(
            max(cost.flops / (2 * rate if cost.name in HALVES else rate), cost.moved / bandwidth)
            for cost in self.costs
        )


class Saved(NamedTuple):
    """What the backward pass of a kernel needs: its inputs, and `more` bytes."""

    inputs: bool
    more: int


class OneKernel(torch.autograd.Function):
    """A kernel that reads each input once; its output has the shape of the first. The backward
    pass reads the gradient and what `saved` names. With `in_place` the gradients of the inputs are
    written where the inputs are."""

    @staticmethod
    def forward(
        ctx: Any, counted: Counted, name: str, saved: Saved, in_place: bool, *inputs: Tensor
    ) -> Tensor:
        out = torch.empty_like(inputs[0], memory_format=torch.contiguous_format)
        more = torch.empty(saved.more, dtype=torch.uint8, device=out.device)
        counted.count(name, list(inputs), [out, more], flops=0.0)
        ctx.counted, ctx.name, ctx.in_place = counted, name, in_place
        ctx.shapes = [one.shape for one in inputs]
        ctx.save_for_backward(*(inputs if saved.inputs else ()), more)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        saved = ctx.saved_tensors  # once: checkpointing allows no more
        if ctx.in_place:
            found: list[Any] = list(saved[:-1])
        else:
            found = [
                gradients[0].new_empty(shape) if wanted else None
                for shape, wanted in zip(ctx.shapes, ctx.needs_input_grad[4:], strict=True)
            ]
        made = [part for part in found if part is not None]
        ctx.counted.count(ctx.name, [*gradients, *saved], made, flops=0.0)
        return None, None, None, None, *found


class InPlace(torch.autograd.Function):
    """A kernel that overwrites each of its inputs, in both passes, and reads `beside`."""

    @staticmethod
    def forward(ctx: Any, counted: Counted, beside: tuple[Tensor, ...], *inputs: Tensor) -> Any:
        counted.count("rope", [*inputs, *beside], list(inputs), flops=0.0)
        ctx.counted, ctx.beside = counted, beside
        return tuple(part.view_as(part) for part in inputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        ctx.counted.count("rope", [*gradients, *ctx.beside], list(gradients), flops=0.0)
        return None, None, *gradients


@contextlib.contextmanager
def counting(*, attended: int) -> Iterator[Counted]:
    """Count what runs meanwhile on meta tensors, as it would run on a GPU: with the kernel for
    packed attention that a GPU has, and with liger-kernel's kernels where a model is fused so."""
    chosen, counted = attention.kernel_for, Counted(attended=attended)

    def silu_and_mul(gate: Tensor, up: Tensor) -> Any:
        return OneKernel.apply(counted, "swiglu", Saved(True, 0), True, gate, up)

    def rotate(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> Any:
        return InPlace.apply(counted, (cos, sin), query, key)

    def dropout(input: Tensor, p: float = 0.5, training: bool = True) -> Any:
        if not (p and training):
            return input
        # Its mask has a byte for each number.
        return OneKernel.apply(counted, "dropout", Saved(False, input.numel()), False, input)

    def rms_norm(hidden: Tensor, _shape: Any, weight: Tensor | None, _eps: float) -> Any:
        rows = hidden.numel() // hidden.shape[-1]  # a scale of 4 bytes for each
        inputs = [hidden] if weight is None else [hidden, weight]
        return OneKernel.apply(counted, "rms_norm", Saved(True, 4 * rows), False, *inputs)

    def quantized(value_NI: Tensor) -> tuple[Tensor, Tensor]:
        codes_NI = torch.empty_like(value_NI, dtype=fp8.E4M3)
        scale_N1 = value_NI.new_empty(len(value_NI), 1, dtype=torch.float32)
        counted.count("quantized", [value_NI], [codes_NI, scale_N1], flops=0.0)
        return codes_NI, scale_N1

    def kernel_for(**named: Any) -> str:
        return chosen(**{**named, "on_gpu": True})

    with (
        mock.patch.object(attention, "kernel_for", kernel_for),
        mock.patch.object(fp8, "quantized", quantized),
        mock.patch.multiple(
            fused, silu_and_mul=silu_and_mul, rotate=rotate, has_kernels=lambda _tensor: True
        ),
        # DeepSpeed replaces F.linear in a process that has trained under ZeRO-3.
        mock.patch.multiple(F, dropout=dropout, rms_norm=rms_norm, linear=torch._C._nn.linear),
        counted,
    ):
        yield counted
