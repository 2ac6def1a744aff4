"""Rewrites a model folder so that llm2vec 0.2.3 (from pip, with transformers 4.44) can read it.

Knows the older formats of configurations and tokenizers. transformers 5 and sentence-transformers
read these too, so the folder remains the same model for them.
"""

from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from toolkit.base.errors import BadInput
from toolkit.base.files import read_json, write_json

# Three of llm2vec's four families. Its Qwen2 silently stays causal, so its vectors would differ.
FAMILIES = ("gemma", "llama", "mistral")
LLM2VEC_CONFIG = "llm2vec_config.json"


def rewrite_for_llm2vec(out: Path, *, tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> None:
    """Rewrite configuration and tokenizer in `out`, and add llm2vec's own settings.

    A text is cut at `max_tokens` minus the special tokens: if it were cut later, llm2vec would pool
    its begin token. Raises `BadInput` for a model that llm2vec 0.2.3 cannot load.
    """
    write_json(out / "config.json", config_of_4_44(read_json(out / "config.json")))
    path = out / "tokenizer.json"
    write_json(path, tokenizer_of_4_44(read_json(path)))
    path = out / "tokenizer_config.json"
    write_json(path, tokenizer_config_of_4_44(read_json(path)))
    settings = {
        "pooling_mode": "mean",
        "max_length": max_tokens,
        "doc_max_length": max_tokens - tokenizer.num_special_tokens_to_add(),
        "skip_instruction": True,
    }
    write_json(out / LLM2VEC_CONFIG, settings)


def config_of_4_44(config: dict[str, Any]) -> dict[str, Any]:
    """A config.json as transformers 4.44 wrote it: with `torch_dtype`, and rope settings at the top
    level."""
    family = config["model_type"]
    if family not in FAMILIES:
        raise BadInput(
            f"llm2vec 0.2.3 gives a model of type {family!r} no bidirectional attention; valid: "
            f"{', '.join(FAMILIES)}"
        )
    rewritten = {**config, "torch_dtype": config.get("dtype", config.get("torch_dtype"))}
    for key in ("dtype", "rope_parameters", "transformers_version"):
        rewritten.pop(key, None)
    rope = dict(config.get("rope_parameters") or {})
    if rope:
        rewritten["rope_theta"] = rope.pop("rope_theta", 10000.0)
        scaled = rope.get("rope_type", "default") != "default"
        if scaled and family != "llama":
            raise BadInput(f"llm2vec 0.2.3: a {family} with {rope['rope_type']!r} rope is too new")
        rewritten["rope_scaling"] = rope if scaled else None
    heads, width = config["num_attention_heads"], config["hidden_size"]
    if family == "llama" and (config.get("head_dim") or width // heads) * heads != width:
        raise BadInput(f"llm2vec 0.2.3: a llama whose head_dim is {config['head_dim']} is too new")
    return rewritten


def tokenizer_of_4_44(content: dict[str, Any]) -> dict[str, Any]:
    """A tokenizer.json as tokenizers 0.19 reads it: a merge is one text, not a pair of texts."""
    model = dict(content["model"])
    merges = [merge for merge in model.get("merges", ()) if not isinstance(merge, str)]
    if spaced := [merge for merge in merges if any(" " in part for part in merge)]:
        raise BadInput(f"llm2vec 0.2.3: the tokenizer merges {spaced[0]}, a space in it: too new")
    if merges:
        model["merges"] = [" ".join(merge) for merge in merges]
    return {**content, "model": model}


def tokenizer_config_of_4_44(config: dict[str, Any]) -> dict[str, Any]:
    """A tokenizer_config.json with a class that transformers 4.44 knows, and without
    token_type_ids, which llm2vec would pass to the model."""
    rewritten = {key: value for key, value in config.items() if key != "backend"}
    extra = rewritten.pop("extra_special_tokens", None)
    if extra:
        rewritten["additional_special_tokens"] = list(
            extra.values() if isinstance(extra, dict) else extra
        )
    rewritten["tokenizer_class"] = "PreTrainedTokenizerFast"
    rewritten["model_input_names"] = ["input_ids", "attention_mask"]
    return rewritten
