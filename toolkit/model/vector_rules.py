"""How the texts of a model become vectors, as its folder declares it or a recipe asks for it.

Knows names and numbers. Refuses to know files (`declared` reads them) and tensors (`head` computes
with them).
"""

import dataclasses
import hashlib
import json
import re
from pathlib import Path
from typing import Any

from toolkit.base.errors import BadInput
from toolkit.settings.model_schema import Model
from toolkit.settings.schema import TEXT_FORMAT, Pooling

# What `encoder.pooling` says, in the names of sentence-transformers.
ASKED_MODES: dict[Pooling, str] = {
    "mean": "mean",
    "cls": "cls",
    "last": "lasttoken",
    "weighted_mean": "weightedmean",
    "max": "max",
}
# The flag of each pooling in sentence-transformers' files before version 6, which later versions
# and other engines read.
MODE_FLAGS = {
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean": "pooling_mode_mean_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}
# What stands around a text that is read twice: the paper's words (`with_echo`). The blank before
# the second reading is in the text's first token, as it is in the first reading.
ECHO_BEFORE, ECHO_BETWEEN = "Rewrite the sentence: ", ", rewritten sentence:"
# A prompt that is a text, not a name, ends with a blank, a colon or the like.
_NAME = re.compile(r"[\w.-]+")


@dataclasses.dataclass(frozen=True)
class Normalize:
    """Each vector is divided by its length."""


@dataclasses.dataclass(frozen=True)
class Dense:
    """Each vector is multiplied with a matrix. `activation` is the name of a class of torch.nn;
    `weights` is a file of safetensors, and `digest` its SHA-256."""

    weights: Path = dataclasses.field(compare=False)
    digest: str
    in_features: int
    out_features: int
    bias: bool
    activation: str


@dataclasses.dataclass(frozen=True)
class VectorRules:
    """How a text becomes a vector. The values here are those of a plain decoder: bidirectional
    attention, and the mean over a text's own tokens.

    `modes` are the poolings, in the names of sentence-transformers, whose vectors are joined.
    `all_tokens`: special tokens are pooled as well. `include_prompt`: so is what is put before a
    text. `echo`: a text is read twice, and only the tokens of the second reading are pooled.
    `after`: what is done to the pooled vector. `dims`: how many numbers of it are kept.
    `prompts` are all that the folder declares, by name, and `prompt` is the one in use.

    `as_configured`: config.json decides on causal attention; it makes it `causal`, or not.
    """

    modes: tuple[str, ...] = ("mean",)
    all_tokens: bool = False
    include_prompt: bool = False
    echo: bool = False
    prompt: str = ""
    lower_case: bool = False
    after: tuple[Normalize | Dense, ...] = ()
    dims: int | None = None
    causal: bool = False
    as_configured: bool = False
    prompts: tuple[tuple[str, str], ...] = dataclasses.field(default=(), compare=False)

    @property
    def is_plain(self) -> bool:
        """Whether vectors are those of a plain decoder, which `encoder.causal` may make causal."""
        return dataclasses.replace(self, causal=False, include_prompt=False) == VectorRules()

    @property
    def is_mean(self) -> bool:
        """Whether a vector is the mean of some tokens' states, and nothing is done to it."""
        return self.modes == ("mean",) and not self.after

    def width(self, hidden_size: int) -> int:
        """How many numbers a vector has, before `dims`, of states of `hidden_size` numbers. Raises
        `BadInput` where the width of a Dense does not fit what comes before it."""
        width = hidden_size * len(self.modes)
        for step in self.after:
            if not isinstance(step, Dense):
                continue
            if step.in_features != width:
                raise BadInput(
                    f"{step.weights.parent}: Dense takes vectors of {step.in_features} numbers, "
                    f"and gets {width}"
                )
            width = step.out_features
        return width

    def digest(self, model: str) -> str:
        """What identifies vectors by these rules, given the digest of their model; for plain rules
        that digest itself, as in encodings made before there were other rules."""
        if self.is_plain:
            return model
        # Only what differs from the defaults, so that a new field changes no digest.
        facts = {
            field.name: _plain(getattr(self, field.name))
            for field in dataclasses.fields(self)
            if field.compare and getattr(self, field.name) != field.default
        }
        return hashlib.sha256(json.dumps([model, facts], sort_keys=True).encode()).hexdigest()


# A plain decoder, trained as LLM2Vec is.
PLAIN_RULES = VectorRules()


def trained_rules(model: Model) -> VectorRules:
    """The rules by which contrastive training makes vectors, as a recipe asks for them."""
    return VectorRules(
        modes=(ASKED_MODES[model.pooling],),
        all_tokens=model.pools_all,
        include_prompt=model.pools_all,
    )


def _plain(value: Any) -> Any:
    """A value as JSON; a step after the pooling has its name with it."""
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if not dataclasses.is_dataclass(value):
        return value
    fields = [field.name for field in dataclasses.fields(value) if field.compare]
    return {"step": type(value).__name__, **{name: getattr(value, name) for name in fields}}


def prompt_text(prompt: str, *, prompts: dict[str, str], asked_by: str) -> str:
    """The prompt that a name stands for, or the text itself. Raises `BadInput` for what is neither;
    `asked_by` is the setting, in the words of the error."""
    if prompt in prompts:
        return prompts[prompt]
    if _NAME.fullmatch(prompt):
        valid = ", ".join(map(repr, prompts)) or "none"
        raise BadInput(
            f"{asked_by}{prompt!r}: the model declares no prompt of that name; valid: {valid}, or "
            'a text that ends with a blank or a sign, such as "query: "'
        )
    return prompt


def with_pooling(
    rules: VectorRules, *, pooling: Pooling, prefix: bool, suffix: bool
) -> VectorRules:
    """`rules` with the pooling that a recipe asks for. `prefix` and `suffix`: whether the tokenizer
    puts a token before and after a text. Raises `BadInput` for a pooling that needs such a token
    where there is none."""
    if pooling == "auto":
        return rules
    for asked, there, place in (("cls", prefix, "before"), ("last", suffix, "after")):
        if pooling == asked and not there:
            others = ", ".join(name for name in ("auto", *ASKED_MODES) if name != asked)
            raise BadInput(
                f"encoder.pooling={pooling}: takes the state of a special token, and the tokenizer "
                f"puts none {place} a text; valid: {others}"
            )
    changed = dataclasses.replace(rules, modes=(ASKED_MODES[pooling],))
    if pooling in ("cls", "last"):
        return dataclasses.replace(changed, all_tokens=True, include_prompt=True)
    return changed


def with_echo(rules: VectorRules, *, pooling: Pooling, text_format: str) -> VectorRules:
    """`rules` of a plain decoder, but each text is read twice, and its second reading is pooled
    (Springer et al. 2024, arXiv 2402.15449). Raises `BadInput` for what does not go with that."""
    if not rules.causal:
        raise BadInput(
            "encoder.echo=true: makes up for causal attention, and this encoder's is "
            "bidirectional; give encoder.causal=true, or leave out encoder.echo"
        )
    if pooling not in ("auto", "mean", "last"):
        raise BadInput(f"encoder.pooling={pooling}: with encoder.echo=true valid: auto, mean, last")
    if text_format != TEXT_FORMAT:
        raise BadInput(
            f"encoder.text_format={text_format!r}: encoder.echo=true puts words of its own around "
            "a text; leave out one of them"
        )
    modes = rules.modes if pooling == "auto" else (ASKED_MODES[pooling],)
    return dataclasses.replace(rules, modes=modes, echo=True)
