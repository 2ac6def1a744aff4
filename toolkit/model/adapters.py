"""Adapters in PEFT's file format on top of a base model: those that toolkit.export writes, and
those of McGill-NLP (an MNTP adapter, and one of SimCSE or supervised training on top of it).

Knows adapter_config.json and which adapter was trained on which model. Nothing in an adapter's
folder is executed, and a config.json there is not even read (the published ones name code of their
own).
"""

import dataclasses
import functools
import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

from toolkit.base.errors import BadInput
from toolkit.base.files import read_json, sha256_of
from toolkit.base.layout import ORIGIN_FILE
from toolkit.model.declared import Use, check_declared, vector_rules
from toolkit.model.tensor_file import StoredTensors
from toolkit.model.vector_rules import VectorRules
from toolkit.model.weights import (
    ADAPTER_FILE,
    Adapter,
    base_folder,
    check_places,
    instruction_format_of,
    is_recorded,
    model_digest,
    stages_of,
    weights_digest,
)
from toolkit.settings.model_source import ADAPTER_CONFIG, ModelSource, is_adapter, resolve_model
from toolkit.settings.schema import EncoderSettings

MAX_LINKS = 8  # adapters on top of each other; more would be a circle
# Settings that change the product B A, or train other weights; merging them is not supported.
_UNKNOWN = (
    *("use_dora", "fan_in_fan_out", "modules_to_save", "rank_pattern", "alpha_pattern"),
    *("layer_replication", "lora_bias", "target_parameters", "trainable_token_indices"),
    *("alora_invocation_tokens", "use_qalora", "use_bdlora"),
)
# Initialisations that leave the base's weights alone. Others, such as PiSSA, subtract the initial
# adapter from the base's weights whenever PEFT trains or loads it.
_PLAIN_STARTS = ("gaussian", "orthogonal", "eva", "mica")
_EARLIER = (
    "it is stage {number} of its training: give the base of the first stage as the model, and the "
    "adapters of all stages in order, or the merged encoder of the stage before"
)


@dataclasses.dataclass(frozen=True)
class Chain:
    """A base model and the adapters that are merged into it, in order. `names` are the references
    of the adapters as given, `folders` their folders. `tokenizer` is where their tokenizer is."""

    base: ModelSource
    names: tuple[str, ...]
    folders: tuple[Path, ...]
    tokenizer: ModelSource

    def check(self, use: Use) -> None:
        """Raise `BadInput` if any of the folders says that its vectors are other than a plain
        decoder's, or records that its adapter was trained upon other weights."""
        check_declared([base_folder(self.base), *self.folders], tokenizer=self.tokenizer, use=use)
        check_trained_upon(self)

    def rules(self, settings: EncoderSettings, *, dims: int | None = None) -> VectorRules:
        """How texts become vectors (see `vector_rules`). Raises `BadInput` for a folder that asks
        for what is not computed, or records that its adapter was trained upon other weights."""
        folders = [base_folder(self.base), *self.folders]
        rules = vector_rules(folders, tokenizer=self.tokenizer, settings=settings, dims=dims)
        check_trained_upon(self)
        return rules

    @functools.cached_property
    def base_digest(self) -> str:
        """The digest of the base's weights; they are read once to compute it."""
        return weights_digest(base_folder(self.base))

    def digest(self) -> str:
        """What identifies the merged model; without adapters, the digest of the base."""
        base = model_digest(base_folder(self.base))
        if not self.folders:
            return base
        parts = [f"{model_digest(f)} {sha256_of(f / ADAPTER_CONFIG)}\n" for f in self.folders]
        return hashlib.sha256("".join([f"{base}\n", *parts]).encode()).hexdigest()

    def is_recorded(self) -> bool:
        """Whether any of the folders records the digests of its files, which `digest` compares."""
        here = [] if self.base.folder is None else [self.base.folder]
        folders = [*here, *self.folders]
        return any(is_recorded(folder) for folder in folders)

    def instruction_format(self) -> str:
        """The format for a text's instruction, as the last adapter that records it was trained;
        otherwise as the base was."""
        known = [folder for folder in self.folders if (folder / ORIGIN_FILE).is_file()]
        return instruction_format_of(known[-1] if known else base_folder(self.base))

    def adapters(self) -> list[Adapter]:
        """The adapters; their tensors are read when they are merged. Raises `BadInput` as
        `read_adapter` does."""
        return [read_adapter(folder) for folder in self.folders]


def chain_of(model: str, *, adapters: Sequence[str] = ()) -> Chain:
    """The chain for `model`, which is a plain model or an adapter (on top of others), with
    `adapters` on top of that. Each adapter is merged into the result of those before it.

    The base that one of `adapters` names is ignored: the second adapters of McGill-NLP name the
    first model, not the adapter between. Raises `BadInput` for what does not exist.
    """
    names: list[str] = []
    folders: list[Path] = []
    base, tokenizer = model, None
    while folder := adapter_folder(base):
        if len(names) == MAX_LINKS:
            raise BadInput(f"model {model!r}: more than {MAX_LINKS} adapters upon each other")
        names.insert(0, base)
        folders.insert(0, folder)
        if not tokenizer and (folder / "tokenizer_config.json").is_file():
            tokenizer = ModelSource.of_folder(folder)
        base = _base_named_by(folder)
    for name in adapters:
        added = adapter_folder(name)
        if added is None:
            raise BadInput(f"adapter {name!r}: no folder or hub name with an {ADAPTER_CONFIG}")
        names.append(name)
        folders.append(added)
    whole = resolve_model(base)
    return Chain(whole, tuple(names), tuple(folders), tokenizer or whole)


def check_trained_upon(chain: Chain) -> None:
    """Raise `BadInput` for an adapter that records (in `origin.json`, as our exports do) that it
    was trained upon another base, or upon other adapters, than those before it in the chain."""
    below: dict[str, Any] = {}
    for place, (name, folder) in enumerate(zip(chain.names, chain.folders, strict=True)):
        *earlier, last = stages_of(folder) or [{}]
        if place == 0:
            wrong = last.get("base_digest", chain.base_digest) != chain.base_digest
        else:
            # Stages of older versions have no digest, and may be anything.
            wanted = (
                earlier[-1].get("adapter_digest", below.get("adapter_digest")) if earlier else ""
            )
            is_known = "adapter_digest" in last and "adapter_digest" in below
            wrong = is_known and wanted != below["adapter_digest"]
        if wrong:
            under = chain.names[place - 1] if place else chain.base.reference
            raise BadInput(
                f"adapter {name!r}: was trained upon other weights than those of {under!r}, upon "
                f"{last.get('base')!r} (their digests differ); "
                + (_EARLIER.format(number=len(earlier) + 1) if earlier else "give it that base")
            )
        below = last


def adapter_folder(reference: str) -> Path | None:
    """The folder of an adapter, downloaded to the hub's cache if needed; None for a plain model."""
    path = Path(reference)
    if path.exists():
        return path if is_adapter(path) else None
    name = resolve_model(reference).name
    try:
        hf_hub_download(name, ADAPTER_CONFIG)
    except (EntryNotFoundError, LocalEntryNotFoundError, HfHubHTTPError, OSError):
        return None  # a plain model, or not available, which is reported when it is loaded
    patterns = ["*.json", ADAPTER_FILE, "tokenizer.model"]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except Exception as error:  # the hub client raises a dozen unrelated classes
        raise BadInput(
            f"adapter {name!r}: not in the cache, and cannot be downloaded ({error})"
        ) from error


def read_adapter(folder: Path) -> Adapter:
    """The LoRA adapter in a folder. Raises `BadInput` for what cannot be merged as W + s B A."""
    path = folder / ADAPTER_CONFIG
    config: dict[str, Any] = read_json(path)
    if config.get("peft_type") != "LORA":
        raise BadInput(f"{path}: peft_type is {config.get('peft_type')!r}; only LORA can be merged")
    for key in _UNKNOWN:
        if config.get(key):
            raise BadInput(
                f"{path}: {key} is {config[key]!r}, which is not merged here; see PEFT's"
            )
    start = config.get("init_lora_weights", True)
    if isinstance(start, str) and start.lower() not in _PLAIN_STARTS:
        raise BadInput(
            f"{path}: init_lora_weights is {start!r}, which changes the base's weights; have PEFT "
            "convert it (path_initial_model_for_weight_conversion)"
        )
    if config.get("bias", "none") != "none":
        raise BadInput(f"{path}: bias is {config['bias']!r}; only 'none' can be merged")
    file = folder / ADAPTER_FILE
    if not file.is_file():
        raise BadInput(f"{folder}: has no {ADAPTER_FILE}; convert its weights to safetensors")
    rank = int(config["r"])
    scale = config["lora_alpha"] / (math.sqrt(rank) if config.get("use_rslora") else rank)
    tensors = StoredTensors([file])
    adapter = Adapter.of(tensors, scale=scale, source=str(file))
    for key, _ in adapter.pairs.values():
        if tensors.shape(key)[0] != rank:
            raise BadInput(
                f"{file}: {key} has rank {tensors.shape(key)[0]}, and {path} says {rank}"
            )
    return adapter


@torch.no_grad()
def merge_into(model: Any, *, adapters: Sequence[Adapter]) -> None:
    """Add adapters, in order, to the weights of a loaded inner decoder. The sum is in fp32, and is
    rounded to the type of the weights only once, at the end."""
    parameters = dict(model.named_parameters())
    adapters = [adapter.of_inner(model.base_model_prefix) for adapter in adapters]
    check_places(adapters, known=parameters, where="the base model")
    for name, parameter in parameters.items():
        merged = parameter
        for adapter in adapters:
            merged = adapter.added_to(merged, name=name)
        if merged is not parameter:
            parameter.copy_(merged)


def _base_named_by(folder: Path) -> str:
    base = str(read_json(folder / ADAPTER_CONFIG).get("base_model_name_or_path") or "")
    try:
        if not is_adapter(Path(base)):
            resolve_model(base)
    except BadInput as error:
        raise BadInput(
            f"{folder / ADAPTER_CONFIG}: names its base {base!r}, and {error}; give the base as "
            "the model, and this folder among its adapters"
        ) from error
    return base
