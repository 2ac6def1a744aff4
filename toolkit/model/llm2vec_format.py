"""What `pip install llm2vec` (0.2.3, which needs transformers 4.44) can read.

Knows how configurations and tokenizers were written then. transformers 5 and sentence-transformers
read that as well, so the folder stays what it was to them.
"""

from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from toolkit.base.errors import BadInput
from toolkit.base.files import read_json, write_json

# Of llm2vec's four families; its Qwen2 stays causal in silence, so its vectors would be others.
FAMILIES = ("gemma", "llama", "mistral")
LLM2VEC_CONFIG = "llm2vec_config.json"


def rewrite_for_llm2vec(out: Path, *, tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> None:
    """Rewrite configuration and tokenizer in `out`, and add llm2vec's own settings.

    A text is cut at `max_tokens` less the special ones: llm2vec would pool the begin token of one
    that is cut later. Raises `BadInput` for a model that llm2vec 0.2.3 cannot load as it is.
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
    """A config.json as transformers 4.44 wrote it: `torch_dtype`, and rope at the top level."""
    family = config["model_type"]
    if family not in FAMILIES:
        raise BadInput(
            f"llm2vec 0.2.3 gives a model of type {family!r} no bidirectional attention; valid: "
            f"{', '.join(FAMILIES)}"
        )
    found = {**config, "torch_dtype": config.get("dtype", config.get("torch_dtype"))}
    for key in ("dtype", "rope_parameters", "transformers_version"):
        found.pop(key, None)
    rope = dict(config.get("rope_parameters") or {})
    if rope:
        found["rope_theta"] = rope.pop("rope_theta", 10000.0)
        scaled = rope.get("rope_type", "default") != "default"
        if scaled and family != "llama":
            raise BadInput(f"llm2vec 0.2.3: a {family} with {rope['rope_type']!r} rope is too new")
        found["rope_scaling"] = rope if scaled else None
    heads, width = config["num_attention_heads"], config["hidden_size"]
    if family == "llama" and (config.get("head_dim") or width // heads) * heads != width:
        raise BadInput(f"llm2vec 0.2.3: a llama whose head_dim is {config['head_dim']} is too new")
    return found


def tokenizer_of_4_44(content: dict[str, Any]) -> dict[str, Any]:
    """A tokenizer.json as tokenizers 0.19 reads it: a merge is a text, not a pair."""
    model = dict(content["model"])
    merges = [merge for merge in model.get("merges", ()) if not isinstance(merge, str)]
    if spaced := [merge for merge in merges if any(" " in part for part in merge)]:
        raise BadInput(f"llm2vec 0.2.3: the tokenizer merges {spaced[0]}, a space in it: too new")
    if merges:
        model["merges"] = [" ".join(merge) for merge in merges]
    return {**content, "model": model}


def tokenizer_config_of_4_44(config: dict[str, Any]) -> dict[str, Any]:
    """A tokenizer_config.json whose class transformers 4.44 knows, and that asks for no
    token_type_ids, which llm2vec would hand to the model."""
    found = {key: value for key, value in config.items() if key != "backend"}
    extra = found.pop("extra_special_tokens", None)
    if extra:
        found["additional_special_tokens"] = list(
            extra.values() if isinstance(extra, dict) else extra
        )
    found["tokenizer_class"] = "PreTrainedTokenizerFast"
    found["model_input_names"] = ["input_ids", "attention_mask"]
    return found
