"""What a model would do on a GPU, from shapes alone: bytes, FLOPs, live memory, tokens a second.

    python -m tests.benchmarks.roofline SHAPE GPU         (mistral-7b h100, or a config.json)
    python -m tests.benchmarks.roofline SHAPE GPU --by-operation

Every operation of the toolkit's own path runs on meta tensors (tests/benchmarks/counted.py) and
takes the time of its FLOPs at the rate of large matrix products, or that of its bytes at the
bandwidth of large copies, whichever is longer. Left out: starting operations, the optimizer,
reading and tokenising. Expect 5 to 15 % less; `make certify-gpu` states the error on a real GPU.
"""

import argparse
import dataclasses
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PretrainedConfig

from tests.benchmarks.counted import Counted, counting
from toolkit.model.attention import packed_arguments, register
from toolkit.model.attention_kernels import PACKED
from toolkit.model.backbone import add_lora, checkpoint_activations
from toolkit.model.fp8 import quantize
from toolkit.model.fused import fuse_lora, fuse_rope, fuse_swiglu
from toolkit.model.losses import info_nce, masked_token_nll
from toolkit.model.norms import fuse_norms
from toolkit.model.pooling import mean_pool_packed
from toolkit.runs.estimate import gpu_of
from toolkit.settings.model_schema import Lora

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
GIB = 2**30


def shape(kind: str, sizes: Sequence[int], **more: Any) -> dict[str, Any]:
    """Sizes: vocabulary, states, feed-forward part, layers, heads, key heads."""
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
    names += ("num_attention_heads", "num_key_value_heads")
    return {"model_type": kind, **dict(zip(names, sizes, strict=True)), **more}


# From the config.json of each.
SHAPES = {
    "mistral-7b": shape("mistral", (32000, 4096, 14336, 32, 32, 8), sliding_window=None),
    "llama2-7b": shape("llama", (32000, 4096, 11008, 32, 32, 32)),
    "llama3-8b": shape("llama", (128256, 4096, 14336, 32, 32, 8)),
    "sheared-llama-1.3b": shape("llama", (32000, 2048, 5504, 24, 16, 16)),
    "qwen3-0.6b": shape(
        "qwen3", (151936, 1024, 3072, 28, 16, 8), head_dim=128, tie_word_embeddings=True
    ),
    "smollm2-135m": shape("llama", (49152, 576, 1536, 30, 9, 3), tie_word_embeddings=True),
    "tiny": shape("mistral", (1000, 64, 128, 2, 4, 2), sliding_window=None),
}


@dataclasses.dataclass(frozen=True)
class Reached:
    """What large operations reach: FLOP/s of matrix products and bytes/s of copies. Published
    measurements for H100 and H200; for others the same part of their data sheets."""

    rate: float
    bandwidth: float


REACHED = {
    "a10g": Reached(56e12, 0.50e12),
    "a100-40": Reached(250e12, 1.30e12),
    "a100": Reached(250e12, 1.70e12),
    "l40s": Reached(290e12, 0.72e12),
    "h100": Reached(620e12, 2.80e12),
    "h200": Reached(680e12, 4.00e12),
    "b200": Reached(1410e12, 6.70e12),
}


@dataclasses.dataclass(frozen=True)
class Case:
    """What is traced. `fused` names what is one operation: norms, liger (SwiGLU and positions),
    lora. `rows` texts of `length` tokens. `fp8`: frozen weights in 8 bits."""

    kind: str
    fused: frozenset[str] = frozenset()
    rows: int = 8
    length: int = 512
    recomputed: bool = False
    dropout: float = 0.05
    fp8: bool = False

    @property
    def tokens(self) -> int:
        """The tokens of a batch."""
        return self.rows * self.length


ALL = frozenset({"norms", "liger", "lora"})
NORMS = frozenset({"norms"})


@dataclasses.dataclass(frozen=True)
class Traced:
    """What a case moves and computes per token, the most that is alive at a time, and its time."""

    tokens: int
    counted: Counted

    @property
    def moved(self) -> float:
        """Bytes per token."""
        return sum(cost.moved for cost in self.counted.costs) / self.tokens

    @property
    def flops(self) -> float:
        """FLOPs per token."""
        return sum(cost.flops for cost in self.counted.costs) / self.tokens

    def tokens_per_s(self, reached: Reached) -> float:
        """Tokens per second of one GPU."""
        return self.tokens / self.counted.seconds(rate=reached.rate, bandwidth=reached.bandwidth)


def config_of(name: str) -> PretrainedConfig:
    """The configuration of a named shape, or of a config.json or the folder that holds one."""
    found = SHAPES.get(name)
    if found is None:
        path = Path(name)
        path = path / "config.json" if path.is_dir() else path
        if not path.is_file():
            raise SystemExit(f"{name}: no config.json, and none of {', '.join(SHAPES)}")
        found = json.loads(path.read_text(encoding="utf-8"))
    found = dict(found)
    config = AutoConfig.for_model(found.pop("model_type"), **found)
    config.is_causal = config.use_cache = False
    config._attn_implementation = PACKED
    return config


def model_of(config: PretrainedConfig, case: Case, *, head: bool) -> Any:
    """The model without numbers, in bf16, as the case wants it."""
    register()
    with torch.device("meta"):
        make = AutoModelForCausalLM if head else AutoModel
        model: Any = make.from_config(config, dtype=torch.bfloat16)
        if case.kind == "encode":
            model = model.eval()
        else:
            if case.recomputed:
                checkpoint_activations(model)
            lora = Lora(rank=16, alpha=32, dropout=case.dropout, targets=TARGETS)
            model = add_lora(model, lora=lora).train()
            model.to(torch.bfloat16)  # peft gives adapters the model's type, but not here
    steps: dict[str, list[Callable[..., int]]] = {
        "norms": [partial(fuse_norms, device=torch.device("cuda"))],
        "liger": [fuse_swiglu, fuse_rope],
        "lora": [fuse_lora],
    }
    if case.fp8:
        if case.kind == "encode":
            model.requires_grad_(False)
        quantize(model)
    for name in sorted(case.fused):
        for step in steps[name]:
            step(model)
    return model


def trace(config: PretrainedConfig, case: Case) -> Traced:
    """Count one batch of a case."""
    head = case.kind == "mntp"
    model = model_of(config, case, head=head)
    bounds = tuple(case.length * row for row in range(case.rows + 1))
    with torch.device("meta"):
        given = packed_arguments(
            torch.zeros(1, case.tokens, dtype=torch.long),
            position_BT=torch.zeros(1, case.tokens, dtype=torch.long),
            bound_S=torch.zeros(case.rows + 1, dtype=torch.int32),
            bounds=bounds,
            max_length=case.length,
        )
    with counting(attended=case.length) as counted, torch.device("meta"):
        for part in [*model.parameters(), *model.buffers()]:
            counted.hold(part)
        if case.kind == "encode":
            with torch.no_grad():
                pooled(model, given, case)
        elif case.kind == "mntp":
            predicting_M = torch.zeros(case.tokens // 5, dtype=torch.long)
            logits = model(**given, logits_to_keep=predicting_M).logits[0]
            loss, _ = masked_token_nll(logits, target_M=predicting_M)
            loss.backward()
        else:
            vectors_BD = pooled(model, given, case)
            query_BD, positive_BD = vectors_BD[: case.rows // 2], vectors_BD[case.rows // 2 :]
            target_B = torch.zeros(case.rows // 2, dtype=torch.long)
            loss, _ = info_nce(query_BD, candidate_ND=positive_BD, target_B=target_B, scale=20.0)
            loss.backward()
    return Traced(case.tokens, counted)


def pooled(model: nn.Module, given: dict[str, Any], case: Case) -> Tensor:
    """The vectors of the texts."""
    hidden_BTD = model(**given).last_hidden_state
    own_BT = torch.ones(1, case.tokens, dtype=torch.long)
    return mean_pool_packed(hidden_BTD, own_BT=own_BT, bound_S=given["cu_seq_lens_q"])


CASES = {
    "encode, 16,384 tokens": Case("encode", rows=32),
    "encode, + F.rms_norm": Case("encode", NORMS, rows=32),
    "encode, + SwiGLU and RoPE": Case("encode", NORMS | {"liger"}, rows=32),
    "encode, + products in fp8": Case("encode", NORMS | {"liger"}, rows=32, fp8=True),
    "MNTP, LoRA, 4,096 tokens": Case("mntp"),
    "MNTP, + F.rms_norm": Case("mntp", NORMS),
    "MNTP, + LoRA as one product": Case("mntp", NORMS | {"lora"}),
    "MNTP, + SwiGLU and RoPE": Case("mntp", ALL),
    "MNTP, + frozen weights in fp8": Case("mntp", ALL, fp8=True),
    "MNTP, + no LoRA dropout": Case("mntp", ALL, dropout=0.0),
    "MNTP, 8,192 tokens": Case("mntp", ALL, rows=16),
    "MNTP, 8,192 tokens, recomputed": Case("mntp", ALL, rows=16, recomputed=True),
    "SimCSE, 128 views of 32 tokens": Case("simcse", ALL, rows=128, length=32),
}


def line(name: str, traced: Traced, reached: Reached) -> str:
    """A row of the table."""
    moved, flops = traced.moved / 1e6, traced.flops / 1e9
    rate = traced.tokens_per_s(reached)
    return (
        f"| {name} | {moved:,.1f} | {flops:,.2f} | {traced.counted.peak / GIB:,.1f} | {rate:,.0f} |"
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("shape", help=f"a config.json or its folder, or of {', '.join(SHAPES)}")
    parser.add_argument("gpu", choices=REACHED)
    parser.add_argument("--by-operation", action="store_true", help="the bytes of each, too")
    arguments = parser.parse_args(argv)
    config, reached = config_of(arguments.shape), REACHED[arguments.gpu]
    memory = gpu_of(arguments.gpu).memory / GIB
    print(f"{arguments.shape} on {arguments.gpu} ({memory:.0f} GiB)\n")
    print("| | MB moved per token | GFLOP per token | GiB alive | tokens/s at most |")
    print("|---|---:|---:|---:|---:|")
    for name, case in CASES.items():
        traced = trace(config, case)
        print(line(name, traced, reached), flush=True)
        if arguments.by_operation:
            moved = traced.counted.moved().most_common(8)
            print("; ".join(f"{key} {value / traced.tokens / 1e6:.1f}" for key, value in moved))


if __name__ == "__main__":
    main()
