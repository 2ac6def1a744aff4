"""The tokenizer of a model, by its name or folder.

Knows transformers' tokenizers. It is separate from `backbone`, so that code that needs no model
does not wait for the imports that models need (peft, parts of torch).
"""

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from toolkit.base.errors import BadInput
from toolkit.base.files import read_json, write_json
from toolkit.settings.model_schema import Model
from toolkit.settings.model_source import ModelSource

# Classes that take what stands around a text from tokenizer.json; others build it anew from
# add_bos_token and add_eos_token.
_PLAIN_CLASSES = ("TokenizersBackend", "PreTrainedTokenizerFast")

AGAIN = "copy or download the model again"


def load_tokenizer(source: ModelSource) -> PreTrainedTokenizerBase:
    """The tokenizer of a model or in an adapter's folder. If it has no padding token, the end token
    is used for padding."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(source.name, trust_remote_code=False)
    except Exception as error:  # the tokenizers library raises nothing more specific
        raise BadInput(
            f"model {source.reference!r}: no tokenizer that can be read ({first_line(error)}); "
            f"{AGAIN}"
        ) from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def training_tokenizer(source: ModelSource, *, model: Model) -> PreTrainedTokenizerBase:
    """The tokenizer of a base as `model.pooling` and `model.begin_token` change it. Raises
    `BadInput` where it has no end token to put after a text."""
    tokenizer = load_tokenizer(source)
    before, after = special_around(tokenizer)
    new_before = before if model.keeps_begin else ()
    new_after = after
    if model.pooling == "last" and not after:
        if tokenizer.eos_token_id is None:
            raise BadInput(
                f"model.pooling=last: the tokenizer of {source.reference} names no end token "
                "(eos_token) to put after a text; valid: mean, weighted_mean"
            )
        new_after = (tokenizer.eos_token_id,)
    if (new_before, new_after) != (before, after):
        _put_around(tokenizer, before=new_before, after=new_after)
    return tokenizer


def special_around(
    tokenizer: PreTrainedTokenizerBase,
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The tokens that the tokenizer puts before, and after, a text."""
    whole: list[int] = tokenizer("a")["input_ids"]
    inner: list[int] = tokenizer("a", add_special_tokens=False)["input_ids"]
    first = next(k for k in range(len(whole)) if whole[k : k + len(inner)] == inner)
    return tuple(whole[:first]), tuple(whole[first + len(inner) :])


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, *, out: Path) -> None:
    """Write a tokenizer of `training_tokenizer` into a model folder. Raises `BadInput` unless it
    can be read back as it is."""
    tokenizer.save_pretrained(out)
    path = out / "tokenizer_config.json"
    settings = read_json(path)
    before, after = special_around(tokenizer)
    flags = {"add_bos_token": bool(before), "add_eos_token": bool(after)}
    if settings.get("tokenizer_class") not in _PLAIN_CLASSES or flags.keys() & settings.keys():
        write_json(path, {**settings, **flags})
    if _written_around(out) != (before, after):
        # Some classes (GPTNeoX's) build it anew whatever the file says. This one never does.
        write_json(path, {**read_json(path), "tokenizer_class": "PreTrainedTokenizerFast"})
    if _written_around(out) != (before, after):
        raise BadInput(
            f"{out}: a tokenizer of class {settings.get('tokenizer_class')} cannot record what it "
            "puts around a text; leave out model.pooling and model.begin_token"
        )


def _written_around(folder: Path) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return special_around(load_tokenizer(ModelSource.of_folder(folder)))


def _put_around(
    tokenizer: PreTrainedTokenizerBase, *, before: tuple[int, ...], after: tuple[int, ...]
) -> None:
    backend = tokenizer.backend_tokenizer
    # A processor can be read and made only as a part of a whole tokenizer: an empty one will do.
    empty = Tokenizer(models.WordLevel())
    empty.post_processor = backend.post_processor
    content = json.loads(empty.to_str())
    names = {n: tokenizer.convert_ids_to_tokens(n) for n in (*before, *after)}

    def special(number: int, *, kind: int) -> dict[str, Any]:
        return {"SpecialToken": {"id": names[number], "type_id": kind}}

    def around(text: str, *, kind: int) -> list[dict[str, Any]]:
        inner = {"Sequence": {"id": text, "type_id": kind}}
        first, last = ([special(n, kind=kind) for n in some] for some in (before, after))
        return [*first, inner, *last]

    template = {
        "type": "TemplateProcessing",
        "single": around("A", kind=0),
        "pair": [*around("A", kind=0), *around("B", kind=1)],
        "special_tokens": {
            token: {"id": token, "ids": [number], "tokens": [token]}
            for number, token in names.items()
        },
    }
    parts = [*_without_tokens(content["post_processor"]), template]
    content["post_processor"] = (
        {"type": "Sequence", "processors": parts} if len(parts) > 1 else template
    )
    backend.post_processor = Tokenizer.from_str(json.dumps(content)).post_processor


def _without_tokens(processor: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The parts of a post-processor that put no tokens around a text."""
    if processor is None:
        return []
    if processor["type"] == "Sequence":
        return [part for inner in processor["processors"] for part in _without_tokens(inner)]
    return [processor] if processor["type"] == "ByteLevel" else []


def special_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids that are never a text's own tokens: begin, end, padding, ... The unknown token counts
    as a text's own; so does the mask token, which is the underscore in McGill-NLP's tokenizers."""
    own = {tokenizer.unk_token_id, tokenizer.mask_token_id}
    return sorted(set(tokenizer.all_special_ids) - own)


def first_line(error: Exception) -> str:
    """The first line of an error's message, cut to 200 characters."""
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else repr(error)
