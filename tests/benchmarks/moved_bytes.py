"""Bytes that a training step reads and writes, per token and layer, from shapes alone: no GPU.

    python -m tests.benchmarks.moved_bytes            (Mistral-7B's shape, LoRA of rank 16, bf16)

Every operation of two sizes of the model is run forward and backward on meta tensors, which have
shapes and no numbers; the difference of the sizes is that of their layers. What a GPU runs as one
kernel (attention, dropout, and F.rms_norm where a model uses it) counts as one: it reads its inputs
and writes its output once. Kept: the bytes that autograd keeps for the backward pass, weights left
out.
"""

import argparse
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import MistralConfig, MistralModel

from toolkit.model.backbone import add_lora
from toolkit.model.norms import fuse_norms
from toolkit.settings.model_schema import Lora

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
SIZES = {"7b": (4096, 14336, 32, 8), "tiny": (64, 128, 4, 2)}
ROWS, TOKENS = 8, 512
# They only make a tensor, or give a part of one.
FREE = ("empty", "new_empty", "empty_like", "detach", "_unsafe_view", "alias", "lift_fresh")


def bytes_of(tensor: Tensor) -> int:
    """What lies in memory: an expanded tensor is read once."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


class Saved(NamedTuple):
    """What the backward pass of an operation needs: its inputs, its output, and `more` bytes."""

    inputs: bool
    output: bool
    more: int


class Counted(TorchDispatchMode):
    """Counts the bytes of all operations."""

    def __init__(self) -> None:
        super().__init__()
        self.by_name: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if not func.is_view and name not in FREE:
            self.count(name, *tree_leaves((args, kwargs, out)))
        return out

    def count(self, name: str, *parts: Any) -> None:
        read = {id(part): bytes_of(part) for part in parts if isinstance(part, Tensor)}
        self.by_name[name] += sum(read.values())


class OneKernel(torch.autograd.Function):
    """An operation that reads each input once; its output has the shape of the first. The backward
    pass reads the gradient and what `saved` names: inputs, output, and further bytes."""

    @staticmethod
    def forward(ctx: Any, counted: Counted, name: str, saved: Saved, *inputs: Tensor) -> Tensor:
        out = torch.empty_like(inputs[0], memory_format=torch.contiguous_format)
        more = torch.empty(saved.more, dtype=torch.uint8, device=out.device)
        counted.count(name, *inputs, out, more)
        kept = [*(inputs if saved.inputs else ()), *((out,) if saved.output else ()), more]
        ctx.counted, ctx.name, ctx.inputs = counted, name, [one.shape for one in inputs]
        ctx.save_for_backward(*kept)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        found = [
            gradients[0].new_empty(shape) if wanted else None
            for shape, wanted in zip(ctx.inputs, ctx.needs_input_grad[3:], strict=True)
        ]
        ctx.counted.count(ctx.name, *gradients, *ctx.saved_tensors, *found)
        return None, None, None, *found


class AsOnAGpu(TorchFunctionMode):
    """Runs as one kernel what is one on a GPU, and not on meta tensors."""

    def __init__(self, counted: Counted) -> None:
        super().__init__()
        self.counted = counted

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            query = args[0]
            rows = query.numel() // query.shape[-1]  # the logarithm of a sum for each
            return self.one("attention", Saved(True, True, 4 * rows), *args[:3])
        if func is F.dropout:  # its mask has a byte for each number
            return self.one("dropout", Saved(False, False, args[0].numel()), args[0])
        if func is F.rms_norm:
            hidden, weight = args[0], kwargs.get("weight", args[2] if len(args) > 2 else None)
            rows = hidden.numel() // hidden.shape[-1]  # a scale of 4 bytes for each
            inputs = [part for part in (hidden, weight) if part is not None]
            return self.one("rms_norm", Saved(True, False, 4 * rows), *inputs)
        return func(*args, **kwargs)

    def one(self, name: str, saved: Saved, *inputs: Tensor) -> Any:
        return OneKernel.apply(self.counted, name, saved, *inputs)


def step_bytes(*, size: str, layers: int, fused: bool) -> tuple[Counter[str], int]:
    """Bytes moved by a forward and a backward pass by operation, and bytes kept between them."""
    hidden, inner, heads, keys = SIZES[size]
    config = MistralConfig(
        vocab_size=32000, hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=keys, sliding_window=None, use_cache=False,
        attn_implementation="sdpa",
    )  # fmt: skip
    config.is_causal = False
    with torch.device("meta"):
        model: Any = MistralModel(config).to(torch.bfloat16)
        model = add_lora(model, lora=Lora(rank=16, alpha=32, dropout=0.05, targets=TARGETS)).train()
        model.to(torch.bfloat16)  # peft gives adapters the model's type, but not on this device
        embedded = torch.zeros(ROWS, TOKENS, hidden, dtype=torch.bfloat16)
    if fused:
        fuse_norms(model, device=torch.device("cuda"))
    weights = {weight.untyped_storage()._cdata for weight in model.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with Counted() as counted, AsOnAGpu(counted):
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            out = model(inputs_embeds=embedded).last_hidden_state
        held = sum(t.untyped_storage().nbytes() for c, t in kept.items() if c not in weights)
        out.backward(torch.empty_like(out))
    return counted.by_name, held


def per_layer(*, size: str, fused: bool) -> tuple[dict[str, float], float]:
    """Bytes moved by operation, and bytes kept, per token and layer."""
    (few, few_kept), (many, many_kept) = (
        step_bytes(size=size, layers=layers, fused=fused) for layers in (1, 3)
    )
    tokens = 2 * ROWS * TOKENS
    return {k: (many[k] - few[k]) / tokens for k in many}, (many_kept - few_kept) / tokens


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SIZES, default="7b")
    arguments = parser.parse_args(argv)
    found = {
        name: per_layer(size=arguments.shape, fused=fused)
        for name, fused in (("transformers", False), ("F.rms_norm", True))
    }
    print("| RMSNorm of | kB moved per token and layer | kB kept |\n|---|---|---|")
    for name, (moved, kept) in found.items():
        print(f"| {name} | {sum(moved.values()) / 1e3:,.0f} | {kept / 1e3:,.0f} |")
    for name, (moved, _) in found.items():
        print(f"{name}: {', '.join(f'{k} {v / 1e3:,.0f}' for k, v in ranked(moved))}")


def ranked(moved: dict[str, float]) -> list[tuple[str, float]]:
    """Operations by their bytes, the most first, down to a hundredth of all."""
    least = sum(moved.values()) / 100
    return sorted(((k, v) for k, v in moved.items() if v >= least), key=lambda it: -it[1])


if __name__ == "__main__":
    main()
