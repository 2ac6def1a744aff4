"""The sizes of a decoder, as its config.json tells them: arithmetic, without weights and torch.

Knows the layers of decoders. Refuses to know what trains them, and on what.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from toolkit.base.errors import BadInput
from toolkit.base.files import read_json
from toolkit.settings.bases import config_of
from toolkit.settings.hub import cached_file
from toolkit.settings.model_schema import Lora
from toolkit.settings.model_source import resolve_model

# Their feed-forward part has two maps, not three.
UNGATED = ("bert", "camembert", "electra", "gpt_neox", "mpnet", "roberta", "xlm-roberta")


@dataclasses.dataclass(frozen=True)
class Shape:
    """The sizes of a decoder. `linear` are the (in, out) of each layer's linear maps by name; an
    expert's map counts `num_experts` times in memory and `active_experts` times in FLOPs."""

    vocab: int
    hidden: int
    layers: int
    linear: Mapping[str, tuple[int, int]]
    experts: frozenset[str]
    num_experts: int
    active_experts: int
    other: int  # norms, biases and routers of all layers
    tied: bool

    def weights(self, *, head: bool) -> int:
        """Parameters in memory, the embedding included."""
        embeddings = self.vocab * self.hidden * (2 if head and not self.tied else 1)
        return embeddings + self.layers * self._maps(self.num_experts) + self.other

    @property
    def active(self) -> int:
        """Weights of the layers' maps that a token goes through."""
        return self.layers * self._maps(self.active_experts)

    @property
    def layer(self) -> int:
        """Parameters of one layer's maps."""
        return self._maps(self.num_experts)

    def adapters(self, lora: Lora) -> int:
        """Parameters of LoRA adapters on all targets that are linear maps of their own."""
        sizes = (sum(self.linear[name]) for name in lora.targets if name in self.linear)
        return self.layers * lora.rank * sum(sizes)

    def _maps(self, experts: int) -> int:
        return sum(
            rows * columns * (experts if name in self.experts else 1)
            for name, (rows, columns) in self.linear.items()
        )


def shape_of(reference: str) -> Shape:
    """The shape of a model folder, run directory, or hub name in this machine's cache.

    Raises `BadInput` when its config.json is not here or says too little.
    """
    name = reference
    if not (Path(reference) / "config.json").is_file():  # no weights are needed
        name = resolve_model(reference).name
    path = cached_file(name, "config.json")
    if path is None and (known := config_of(name)):
        return read_shape(known)
    if path is None:
        how = f"hf download {name} config.json (a few kB; the weights are not needed)"
        raise BadInput(f"model {name}: not in this machine's hub cache; {how}")
    try:
        return read_shape(read_json(path))
    except KeyError as error:
        raise BadInput(
            f"{path}: lacks {error}, without which the size of a decoder cannot be told"
        ) from error


def read_shape(config: Mapping[str, Any]) -> Shape:
    """The shape that a config.json describes. Raises `KeyError` for what is missing."""
    config = config.get("text_config", config)
    hidden, layers = config["hidden_size"], config["num_hidden_layers"]
    heads = config["num_attention_heads"]
    width = config.get("head_dim") or hidden // heads
    keys = config.get("num_key_value_heads") or heads
    experts = config.get("num_local_experts") or config.get("num_experts") or 1
    inner = (experts > 1 and config.get("moe_intermediate_size")) or config["intermediate_size"]
    attention = {"q_proj": (hidden, heads * width), "o_proj": (heads * width, hidden)}
    attention |= dict.fromkeys(("k_proj", "v_proj"), (hidden, keys * width))
    if config["model_type"] == "phi3":  # its maps are fused
        attention = {"qkv_proj": (hidden, (heads + 2 * keys) * width)}
        attention |= {"o_proj": (heads * width, hidden)}
        feedforward = {"gate_up_proj": (hidden, 2 * inner), "down_proj": (inner, hidden)}
    else:
        feedforward = {"up_proj": (hidden, inner), "down_proj": (inner, hidden)}
        if config["model_type"] not in UNGATED:
            feedforward = {"gate_proj": (hidden, inner), **feedforward}
    return Shape(
        vocab=config["vocab_size"],
        hidden=hidden,
        layers=layers,
        linear=attention | feedforward,
        experts=frozenset(feedforward) if experts > 1 else frozenset(),
        num_experts=experts,
        active_experts=config.get("num_experts_per_tok") or 1,
        other=_other(config, width=width, keys=keys, experts=experts),
        tied=bool(config.get("tie_word_embeddings", True)),
    )


def _other(config: Mapping[str, Any], *, width: int, keys: int, experts: int) -> int:
    hidden, heads, kind = config["hidden_size"], config["num_attention_heads"], config["model_type"]
    norms = (4 if kind in ("gemma2", "gemma3_text") else 2) * hidden
    if kind in ("qwen3", "qwen3_moe", "gemma3_text"):
        norms += 2 * width  # of queries and of keys, shared by all heads
    if kind == "olmo2":
        norms += (heads + keys) * width
    if config.get("attention_bias", kind == "qwen2"):
        norms += (heads + 2 * keys) * width + (0 if kind == "qwen2" else hidden)
    router = hidden * experts if experts > 1 else 0
    return int(config["num_hidden_layers"] * (norms + router) + hidden)
