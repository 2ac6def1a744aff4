"""Whether models can be merged: weights of the same names and shapes, and one way from a text to
its vector.

Knows what differs, and names the first of it. Refuses to merge.
"""

import json
from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedTokenizerBase

from toolkit.base.errors import BadInput
from toolkit.model.adapters import Chain
from toolkit.model.backbone import load_config
from toolkit.model.merging import ChainWeights
from toolkit.model.tokenizer import load_tokenizer, special_ids
from toolkit.model.vector_rules import PLAIN_RULES, VectorRules
from toolkit.model.weights import base_folder, stages_of
from toolkit.settings.schema import EncoderSettings

OTHER_BASE = "models of different bases cannot be merged"
# What a configuration says besides how the inner decoder computes its states.
_OTHER_KEYS = {
    *("_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures"),
    *("is_causal", "use_cache", "tie_word_embeddings", "attention_dropout", "id2label"),
    *("label2id", "bos_token_id", "eos_token_id", "pad_token_id"),
}


def rules_of(chain: Chain) -> VectorRules:
    """How the vectors of a chain are made. Raises `BadInput` for what is not computed here."""
    rules = chain.rules(EncoderSettings(model=chain.base.reference))
    return PLAIN_RULES if rules.is_plain and not rules.causal else rules


def check_alike(models: Mapping[str, Chain], *, base: Chain | None = None) -> None:
    """Raise `BadInput`, which names the first thing that differs, for models that cannot be merged;
    only the weights and the configuration of `base` have to be like theirs."""
    (first_name, first), *others = models.items()
    weights = ChainWeights.of(first)
    bases = [] if base is None else [("base", base)]
    for name, other in (*others, *bases):
        _check_weights(first_name, weights, name, ChainWeights.of(other))
        _check_config(first_name, first, name, other)
    rules, tokens = rules_of(first), load_tokenizer(first.tokenizer)
    for name, other in others:
        between = f"{first_name} and {name}"
        _check_recorded_base(first_name, first, name, other)
        if (found := rules_of(other)) != rules:
            raise BadInput(
                f"{between}: their vectors are pooled in different ways: {_apart(rules, found)}"
            )
        _check_tokenizers(between, tokens, load_tokenizer(other.tokenizer))
        formats = first.instruction_format(), other.instruction_format()
        if formats[0] != formats[1]:
            raise BadInput(
                f"{between}: were trained with different formats of an instruction, {formats[0]!r} "
                f"and {formats[1]!r}"
            )


def _check_weights(first: str, one: ChainWeights, second: str, other: ChainWeights) -> None:
    for name in (*one, *other):
        for has, weights, lacks, missing in (
            (first, one, second, other),
            (second, other, first, one),
        ):
            if name not in missing:
                raise BadInput(
                    f"{lacks}: has no weight {name!r}, and {has} has it, of shape "
                    f"{weights.shape(name)}: {OTHER_BASE}"
                )
        if one.shape(name) != other.shape(name):
            raise BadInput(
                f"{first} and {second}: the shapes of {name!r} are {one.shape(name)} and "
                f"{other.shape(name)}: {OTHER_BASE}"
            )


def _check_config(first: str, one: Chain, second: str, other: Chain) -> None:
    """Refuse weights of the same shapes that are computed with in different ways, as those of two
    bases of one family are."""
    both = [load_config(chain.base).to_dict() for chain in (one, other)]
    for key in sorted({*both[0], *both[1]} - _OTHER_KEYS):
        values = [config.get(key) for config in both]
        if values[0] != values[1]:
            raise BadInput(
                f"{first} and {second}: {key} is {values[0]!r} and {values[1]!r} in their "
                f"config.json: {OTHER_BASE}"
            )


def _check_recorded_base(first: str, one: Chain, second: str, other: Chain) -> None:
    """Refuse encoders that record, as our exports do, that their first stages began with different
    weights; they may differ in nothing else."""
    stages = [stages_of(base_folder(c.base)) or _stages_of_adapters(c) for c in (one, other)]
    began = [(found[0] if found else {}).get("base_digest") for found in stages]
    if None not in began and began[0] != began[1]:
        raise BadInput(
            f"{first} and {second}: were trained from {stages[0][0]['base']} and "
            f"{stages[1][0]['base']}, whose weights differ: {OTHER_BASE}"
        )


def _stages_of_adapters(chain: Chain) -> list[dict[str, Any]]:
    return stages_of(chain.folders[0]) if chain.folders else []


def _apart(one: VectorRules, other: VectorRules) -> str:
    """The first rule that differs, with both values."""
    names = [name for name in VectorRules.__dataclass_fields__ if name != "prompts"]
    name = next(name for name in names if getattr(one, name) != getattr(other, name))
    return f"{name} is {getattr(one, name)!r} and {getattr(other, name)!r}"


def _check_tokenizers(
    between: str, one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase
) -> None:
    vocabularies = one.get_vocab(), other.get_vocab()
    for token in sorted({*vocabularies[0], *vocabularies[1]}):
        ids = [vocabulary.get(token) for vocabulary in vocabularies]
        if ids[0] != ids[1]:
            raise BadInput(
                f"{between}: their tokenizers differ: {token!r} has the ids {ids[0]} and {ids[1]}"
            )
    if special_ids(one) != special_ids(other):
        raise BadInput(
            f"{between}: their tokenizers differ: the special tokens are {special_ids(one)} and "
            f"{special_ids(other)}"
        )
    pipelines = _pipeline(one), _pipeline(other)
    for key in sorted({*pipelines[0], *pipelines[1]}):
        if pipelines[0].get(key) != pipelines[1].get(key):
            raise BadInput(f"{between}: their tokenizers differ: in {key} of tokenizer.json")


def _pipeline(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What a text goes through, without where it is cut and how it is padded."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    content: dict[str, Any] = json.loads(backend.to_str()) if backend is not None else {}
    return {key: part for key, part in content.items() if key not in ("truncation", "padding")}
