"""Names and merging of trained weights, and the folder that other tools load.

Knows safetensors and the file formats of PEFT and sentence-transformers. Refuses to build a model:
a merge reads and writes one tensor after another, so it needs memory for the largest tensor only.
"""

import dataclasses
import hashlib
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from huggingface_hub import snapshot_download
from torch import Tensor, uint8
from transformers import PreTrainedTokenizerBase

from toolkit.base.console import at_work
from toolkit.base.errors import BadInput
from toolkit.base.files import digest_of, read_json, sha256_of, write_json
from toolkit.base.layout import ORIGIN_FILE
from toolkit.model.backbone import DTYPES, inner_class, inner_prefix, load_config, weight_files
from toolkit.model.tensor_file import MAX_FILE_BYTES, StoredTensors, write_tensors
from toolkit.model.tokenizer import save_tokenizer, special_ids
from toolkit.model.vector_rules import MODE_FLAGS, PLAIN_RULES, VectorRules
from toolkit.settings.model_schema import Lora
from toolkit.settings.model_source import ModelSource
from toolkit.settings.schema import INSTRUCTION_FORMAT

PEFT_PREFIX = "base_model.model."
ADAPTER_FILE = "adapter_model.safetensors"
_AGAIN = "export the model again to another folder, or copy it again"
# A LoRA matrix of the inner decoder (in ours and LLM2Vec's adapters) or of a causal LM around it.
_LORA_KEY = re.compile(r"base_model\.model\.(?:model\.)?(.+)\.lora_([AB])(?:\.default)?\.weight")


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


def base_folder(source: ModelSource) -> Path:
    """The local folder of a model; for a hub name, its folder in the hub's cache, downloaded if
    needed."""
    if source.folder is not None:
        return source.folder
    try:
        return Path(
            snapshot_download(
                source.name,
                allow_patterns=["*.json", "*.safetensors", "*.model"],
                ignore_patterns=["consolidated*", "adapter*"],
            )
        )
    except Exception as error:  # the hub client raises a dozen unrelated classes
        raise BadInput(
            f"model {source.name!r}: not in the cache, and cannot be downloaded ({error})"
        ) from error


def instruction_format_of(folder: Path) -> str:
    """The format for a text's instruction with which this model was trained; LLM2Vec's format if
    the folder does not record one."""
    if not (folder / ORIGIN_FILE).is_file():
        return INSTRUCTION_FORMAT
    return str(read_json(folder / ORIGIN_FILE).get("instruction_format", INSTRUCTION_FORMAT))


def model_digest(folder: Path) -> str:
    """SHA-256 over a model folder's weights, configuration and tokenizer. In a folder that we
    exported, `BadInput` names a file that differs from the recorded digest."""
    # tokenizer_config.json counts too: it says which tokens are special, and pooling skips those.
    names = ("config.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json")
    side = [folder / name for name in names]
    files = [*weight_files(folder), *(path for path in side if path.is_file())]
    recorded = _recorded(folder)
    with at_work(f"reads the weights of {folder}"):
        digests = {path.name: sha256_of(path) for path in files}
    for path in files:
        if recorded.get(path.name, digests[path.name]) != digests[path.name]:
            raise BadInput(f"{path}: is damaged (its SHA-256 differs); {_AGAIN}")
    parts = "".join(f"{name} {digest}\n" for name, digest in digests.items())
    return hashlib.sha256(parts.encode()).hexdigest()


def weights_digest(folder: Path) -> str:
    """SHA-256 over the names, types, shapes and numbers of a model's weights. Unlike
    `model_digest`, it does not depend on how they are divided into files."""
    stored, total = StoredTensors(weight_files(folder)), hashlib.sha256()
    with at_work(f"reads the weights of {folder}"):
        for name in sorted(stored):
            tensor = stored[name]
            total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            total.update(tensor.reshape(-1).view(uint8).numpy().data)
    return total.hexdigest()


def stages_of(folder: Path) -> list[dict[str, Any]]:
    """The training stages behind an encoder or an adapter, first to last; none if its folder does
    not say."""
    origin = read_json(folder / ORIGIN_FILE) if (folder / ORIGIN_FILE).is_file() else {}
    stages = origin.get("stages", []) if isinstance(origin, dict) else []
    return [stage for stage in stages if isinstance(stage, dict)]


def is_recorded(folder: Path) -> bool:
    """Whether a folder records the digests of its files, as our exports do."""
    return bool(_recorded(folder))


def _recorded(folder: Path) -> dict[str, str]:
    path = folder / ORIGIN_FILE
    origin = read_json(path) if path.is_file() else {}
    if not isinstance(origin, dict) or not isinstance(origin.get("sha256"), dict):
        return {}
    if origin.pop("digest", None) != digest_of(origin):
        raise BadInput(f"{path}: is damaged (its digest differs); {_AGAIN}")
    digests: dict[str, str] = origin["sha256"]
    return digests


def check_mergeable(base: Path, *, trained: Iterable[str]) -> None:
    """Raise `BadInput`, before training, for trained weights that `merge_weights` would refuse
    after it, because the base stores no weight of that name."""
    stored, prefix, names = StoredTensors(weight_files(base)), prefix_of(base), list(trained)
    known = by_inner_name(stored, prefix=prefix)
    stems = [name.removeprefix(PEFT_PREFIX).partition(".lora_") for name in names]
    adapted = {f"{stem}.weight" for stem, lora, _ in stems if lora}
    weights = adapted or set(by_inner_name(names, prefix=prefix))
    if not (strange := sorted(weights - known.keys())):
        return
    # transformers fuses or renames such weights on loading, and undoes that on saving.
    problem = (
        f"{base}: {strange[0]!r} is trained, but stored in another form, so it cannot be merged"
    )
    if adapted:
        raise BadInput(f"{problem}; leave {strange[0].split('.')[-2]!r} out of model.lora.targets")
    matrices = [name for name in weights & known.keys() if len(stored.shape(known[name])) == 2]
    layers = sorted({name.split(".")[-2] for name in matrices if re.search(r"\.\d+\.", name)})
    raise BadInput(
        f"{problem}; train adapters (model.lora) on what is stored as it is: {', '.join(layers)}"
    )


@dataclasses.dataclass(frozen=True)
class Adapter:
    """Low-rank updates. `tensors` has the matrices under PEFT's names; `pairs` has, for each weight
    of the inner decoder that is changed, the names of its A and B. `source` is named in errors."""

    source: str
    scale: float
    tensors: Mapping[str, Tensor]
    pairs: Mapping[str, tuple[str, str]]

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], *, scale: float, source: str) -> Self:
        """Make an adapter of tensors under PEFT's names. Raises `BadInput` for a tensor that is not
        half of a LoRA pair."""
        halves: dict[str, dict[str, str]] = {}
        for key in sorted(tensors):
            match = _LORA_KEY.fullmatch(key)
            if match is None:
                raise BadInput(f"{source}: {key!r} is no LoRA matrix of a linear layer: not merged")
            halves.setdefault(f"{match[1]}.weight", {})[match[2]] = key
        for name, matrices in halves.items():
            if len(matrices) != 2:
                raise BadInput(f"{source}: {name!r} has only one of lora_A and lora_B")
        pairs = {name: (matrices["A"], matrices["B"]) for name, matrices in halves.items()}
        return cls(source, scale, tensors, pairs)

    def of_inner(self, prefix: str) -> "Adapter":
        """The same adapter, with names of the inner decoder even if it was trained as part of a
        causal model."""
        pairs = {name.removeprefix(f"{prefix}."): pair for name, pair in self.pairs.items()}
        return dataclasses.replace(self, pairs=pairs)

    def added_to(self, weight: Tensor, *, name: str) -> Tensor:
        """W + scale B A in fp32 (Hu et al. 2021); `weight` itself if the adapter does not change
        it."""
        if name not in self.pairs:
            return weight
        a_RI, b_OR = (self.tensors[key].to(weight.device).float() for key in self.pairs[name])
        if weight.shape != (b_OR.shape[0], a_RI.shape[1]) or a_RI.shape[0] != b_OR.shape[1]:
            shape = tuple(weight.shape)
            raise BadInput(f"{self.source}: does not fit {name!r} of shape {shape}: another base?")
        # In place in the product, which saves one matrix of memory.
        return (b_OR @ a_RI).mul_(self.scale).add_(weight)


def check_places(adapters: Iterable[Adapter], *, known: Collection[str], where: str) -> None:
    """Raise `BadInput` for an adapter of a weight that is not `known`; `where` names the model."""
    for adapter in adapters:
        if unused := sorted(set(adapter.pairs) - set(known)):
            raise BadInput(
                f"{adapter.source}: adapts {unused[0]!r}, and {where} has no such weight: another "
                "base model?"
            )


@at_work("merges weights")
def merge_weights(
    base: Path,
    *,
    out: Path,
    dtype: str,
    adapters: Sequence[Adapter] = (),
    replaced: Mapping[str, Tensor] | None = None,
    max_file_bytes: int = MAX_FILE_BYTES,
) -> None:
    """Write the inner decoder of `base`, with everything that was trained merged into it.

    Adapters are added in order; a weight in `replaced` is used instead of the base's. The
    language-model head is left out. One tensor at a time is in memory. Raises `BadInput` for a
    trained weight that the base does not have.
    """
    stored, prefix = StoredTensors(weight_files(base)), prefix_of(base)
    keys = by_inner_name(stored, prefix=prefix)
    new = {} if replaced is None else replaced
    new_keys = by_inner_name(new, prefix=prefix)
    adapters = [adapter.of_inner(prefix) for adapter in adapters]
    check_places(adapters, known=keys, where=str(base))
    if unused := sorted(set(new_keys) - set(keys)):
        raise BadInput(f"{base}: has no weight for the trained {unused[0]!r}: another base model?")

    def value_of(name: str) -> Tensor:
        value = new[new_keys[name]] if name in new_keys else stored[keys[name]]
        for adapter in adapters:
            value = adapter.added_to(value, name=name)
        return value

    shapes = {name: stored.shape(key) for name, key in keys.items()}
    write_tensors(
        out,
        shapes=shapes,
        dtype=DTYPES[dtype],
        value_of=value_of,
        max_file_bytes=max_file_bytes,
    )


def prefix_of(folder: Path) -> str:
    """The prefix of the inner decoder's weights in the files of a causal model."""
    return inner_prefix(load_config(ModelSource.of_folder(folder)))


def inner_name(key: str, *, prefix: str = "model") -> str | None:
    """The name of a weight in the inner decoder; None for the language-model head."""
    if key.startswith(("lm_head.", "score.")):
        return None
    return key.removeprefix(f"{prefix}.")


def write_encoder_files(
    out: Path,
    *,
    config: Any,
    tokenizer: PreTrainedTokenizerBase,
    max_tokens: int,
    dtype: str,
    rules: VectorRules = PLAIN_RULES,
) -> None:
    """Write everything but the weights, so that `out` is a model for sentence-transformers and for
    plain transformers, with vectors by `rules` (of `trained_rules`).

    sentence-transformers pools all tokens, while LLM2Vec leaves the begin token out of the mean. A
    WordWeights module that gives special tokens the weight 0 makes both the same; where all tokens
    are pooled, there is none.
    """
    config.is_causal = False
    config.architectures = [inner.__name__] if (inner := inner_class(config)) else None
    config.dtype = DTYPES[dtype]
    config.save_pretrained(out)
    if tokenizer.truncation_side != "right":  # this toolkit keeps the first tokens of a text
        tokenizer.truncation_side = "right"
    if "weightedmean" in rules.modes:
        # sentence-transformers before 6.2 counts a token's weight from the padding on the left.
        tokenizer.padding_side = "right"
    if rules.all_tokens:
        save_tokenizer(tokenizer, out=out)
    else:
        tokenizer.save_pretrained(out)
    write_json(
        out / "sentence_bert_config.json", {"max_seq_length": max_tokens, "do_lower_case": False}
    )
    write_json(
        out / "config_sentence_transformers.json",
        {"prompts": {}, "default_prompt_name": None, "similarity_fn_name": "cosine"},
    )
    pooling = {"word_embedding_dimension": config.hidden_size}
    if rules.all_tokens:
        _write_modules(out, {"": "Transformer", "1_Pooling": "Pooling"})
        # All flags, since TEI reads no file without them. None that is true but the mode's, which
        # vLLM once took for it: `include_prompt` is true by default.
        flags = {flag: mode in rules.modes for mode, flag in MODE_FLAGS.items()}
        write_json(out / "1_Pooling" / "config.json", {**pooling, **flags})
        return
    names = {"": "Transformer", "1_WordWeights": "WordWeights", "2_Pooling": "Pooling"}
    _write_modules(out, names)
    _write_word_weights(out / "1_WordWeights" / "config.json", tokenizer=tokenizer)
    write_json(out / "2_Pooling" / "config.json", {**pooling, MODE_FLAGS["mean"]: True})


def _write_modules(out: Path, names: Mapping[str, str]) -> None:
    module = "sentence_transformers.models."
    modules = [
        {"idx": number, "name": str(number), "path": path, "type": module + kind}
        for number, (path, kind) in enumerate(names.items())
    ]
    write_json(out / "modules.json", modules)


def _write_word_weights(path: Path, *, tokenizer: PreTrainedTokenizerBase) -> None:
    """Weight 0 for special tokens, and 1 for all others."""
    by_id = {number: token for token, number in tokenizer.get_vocab().items()}
    vocab = [by_id.get(number, f"<unused {number}>") for number in range(max(by_id) + 1)]
    weights = {vocab[number]: 0.0 for number in special_ids(tokenizer)}
    # sentence-transformers looks up a word without a weight again in lower case: <S> as <s>.
    weights |= {word: 1.0 for word in vocab if word not in weights and word.lower() in weights}
    content = {"vocab": vocab, "word_weights": weights, "unknown_word_weight": 1.0}
    write_json(path, content)


def by_inner_name(tensors: Iterable[str], *, prefix: str) -> dict[str, str]:
    """The keys of tensors, by the names that the weights have in the inner decoder.

    If any key has the prefix, the tensors are of a causal model, and a key without it belongs to
    the head, under any name (GPT-NeoX calls it embed_out).
    """
    keys = list(tensors)
    inner = [key for key in keys if key.startswith(f"{prefix}.")] or keys
    return {name: key for key in inner if (name := inner_name(key, prefix=prefix)) is not None}
