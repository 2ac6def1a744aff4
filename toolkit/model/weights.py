"""Names and merging of trained weights, and the folder that other tools load.

Knows safetensors and the layouts of PEFT and sentence-transformers. Refuses to build a model: a
merge streams one tensor after another, so its memory is one weights file.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from toolkit.config import resolve_model
from toolkit.files import BadInput, read_json, sha256_of, write_json
from toolkit.model.backbone import DTYPES, weight_files
from toolkit.model.tokenizer import special_ids
from toolkit.schema import INSTRUCTION_FORMAT, Lora

PEFT_PREFIX = "base_model.model."
ADAPTER_FILE = "adapter_model.safetensors"
FULL_FILE = "model.safetensors"
ORIGIN_FILE = "origin.json"  # of an encoder: what it came of


def saved_name(parameter_name: str) -> str:
    """The name under which a trained parameter is stored: PEFT's for adapters.

    `model.base_model.model.layers.0.q_proj.lora_A.default.weight` of a causal LM and
    `base_model.model.layers.0...` of its decoder both become `base_model.model.layers.0...`.
    """
    if ".lora_" not in parameter_name:
        return parameter_name
    inner = parameter_name[parameter_name.index(PEFT_PREFIX) :]
    return inner.replace(".default.", ".")


def adapter_config(lora: Lora, *, base: str) -> dict[str, Any]:
    """The `adapter_config.json` with which PEFT loads our adapters onto the inner decoder."""
    return {
        "peft_type": "LORA",
        "task_type": "FEATURE_EXTRACTION",
        "base_model_name_or_path": base,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "target_modules": sorted(lora.targets),
        "bias": "none",
        "inference_mode": True,
    }


def base_folder(reference: str) -> Path:
    """The local folder of a model; a hub name is looked up in (or brought to) the hub's cache."""
    name = resolve_model(reference)
    if Path(name).is_dir():
        return Path(name)
    try:
        return Path(
            snapshot_download(
                name,
                allow_patterns=["*.json", "*.safetensors", "*.model"],
                ignore_patterns=["consolidated*", "adapter*"],
            )
        )
    except Exception as error:  # the hub client raises a dozen unrelated classes
        raise BadInput(f"model {name!r}: not in the cache and not to be had ({error})") from error


def instruction_format_of(folder: Path) -> str:
    """What stands before a text that has an instruction, as this model was trained; LLM2Vec's where
    it does not say."""
    if not (folder / ORIGIN_FILE).is_file():
        return INSTRUCTION_FORMAT
    return str(read_json(folder / ORIGIN_FILE).get("instruction_format", INSTRUCTION_FORMAT))


def model_digest(folder: Path) -> str:
    """SHA-256 over a model folder's weights, configuration and tokenizer."""
    # tokenizer_config.json too: it says which tokens are special, which pooling leaves out.
    names = ("config.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json")
    side = [folder / name for name in names]
    files = [*weight_files(folder), *(path for path in side if path.is_file())]
    parts = "".join(f"{path.name} {sha256_of(path)}\n" for path in files)
    return hashlib.sha256(parts.encode()).hexdigest()


def check_mergeable(base: Path, *, trained: Iterable[str]) -> None:
    """Refuse before training what `merge_weights` would refuse after it: names without a place."""
    known: set[str] = set()
    for file in weight_files(base):
        with safe_open(file, framework="pt") as tensors:
            known |= {name for key in tensors.keys() if (name := inner_name(key))}  # noqa: SIM118
    for name in trained:
        stem = name.removeprefix(PEFT_PREFIX).partition(".lora_")
        weight = f"{stem[0]}.weight" if stem[1] else inner_name(name)
        if weight is not None and weight not in known:
            raise BadInput(
                f"{base}: {weight!r} is trained, but the weights files name it otherwise, so it "
                "could not be merged; save the model with transformers' save_pretrained first"
            )


def merge_weights(
    base: Path, *, trained: Mapping[str, Tensor], lora: Lora | None, dtype: str, out: Path
) -> None:
    """Write the inner decoder of `base` with the trained weights in it, file by file.

    With LoRA, W + alpha / rank * B A, computed in fp32 (Hu et al. 2021); without, the trained
    tensors stand in for the base's. The language-model head is left out. Raises `BadInput` when a
    trained weight finds no place.
    """
    files = weight_files(base)
    used: set[str] = set()
    index: dict[str, str] = {}
    for number, file in enumerate(files, 1):
        target = FULL_FILE
        if len(files) > 1:
            target = f"model-{number:05d}-of-{len(files):05d}.safetensors"
        merged: dict[str, Tensor] = {}
        with safe_open(file, framework="pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118 (not a dict)
                name = inner_name(key)
                if name is None:
                    continue
                value = _merge_one(name, tensors.get_tensor(key), trained=trained, lora=lora)
                merged[name] = value[0].to(DTYPES[dtype]).contiguous()
                used |= value[1]
                index[name] = target
        save_file(merged, out / target, metadata={"format": "pt"})
    if unused := sorted(set(trained) - used - {n for n in trained if inner_name(n) is None}):
        raise BadInput(f"{base}: has no weight for the trained {unused[0]!r}: another base model?")
    if len(files) > 1:
        write_json(out / "model.safetensors.index.json", {"metadata": {}, "weight_map": index})


def inner_name(key: str) -> str | None:
    """A weight's name in the inner decoder; None for the language-model head."""
    if key.startswith(("lm_head.", "score.")):
        return None
    return key.removeprefix("model.")


def write_encoder_files(
    out: Path, *, config: Any, tokenizer: PreTrainedTokenizerBase, max_tokens: int, dtype: str
) -> None:
    """Everything but weights that makes `out` a sentence-transformers model and a plain one.

    sentence-transformers takes the mean over all tokens, LLM2Vec leaves the begin token out: a
    WordWeights module that gives special tokens the weight 0 makes both the same.
    """
    config.is_causal = False
    config.architectures = [re.sub(r"ForCausalLM$", "Model", a) for a in config.architectures or []]
    config.dtype = DTYPES[dtype]
    config.save_pretrained(out)
    tokenizer.save_pretrained(out)
    by_id = {number: token for token, number in tokenizer.get_vocab().items()}
    vocab = [by_id.get(number, f"<unused {number}>") for number in range(max(by_id) + 1)]
    module = "sentence_transformers.models."
    names = {"": "Transformer", "1_WordWeights": "WordWeights", "2_Pooling": "Pooling"}
    modules = [
        {"idx": number, "name": str(number), "path": path, "type": module + kind}
        for number, (path, kind) in enumerate(names.items())
    ]
    write_json(out / "modules.json", modules)
    write_json(
        out / "sentence_bert_config.json", {"max_seq_length": max_tokens, "do_lower_case": False}
    )
    write_json(
        out / "config_sentence_transformers.json",
        {"prompts": {}, "default_prompt_name": None, "similarity_fn_name": "cosine"},
    )
    write_json(
        out / "1_WordWeights" / "config.json",
        {
            "vocab": vocab,
            "word_weights": {vocab[number]: 0.0 for number in special_ids(tokenizer)},
            "unknown_word_weight": 1.0,
        },
    )
    write_json(
        out / "2_Pooling" / "config.json",
        {"word_embedding_dimension": config.hidden_size, "pooling_mode_mean_tokens": True},
    )


def _merge_one(
    name: str, weight: Tensor, *, trained: Mapping[str, Tensor], lora: Lora | None
) -> tuple[Tensor, set[str]]:
    if lora is None:
        for key in (name, f"model.{name}"):
            if key in trained:
                return trained[key], {key}
        return weight, set()
    stem = f"{PEFT_PREFIX}{name.removesuffix('.weight')}"
    key_a, key_b = f"{stem}.lora_A.weight", f"{stem}.lora_B.weight"
    if key_a not in trained:
        return weight, set()
    delta = trained[key_b].float() @ trained[key_a].float()
    return weight.float() + lora.alpha / lora.rank * delta, {key_a, key_b}
