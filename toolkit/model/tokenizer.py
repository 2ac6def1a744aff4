"""The tokenizer of a model, by its name or folder.

Knows transformers' tokenizers. It is separate from `backbone`, so that code that needs no model
does not wait for the imports that models need (peft, parts of torch).
"""

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from toolkit.base.errors import BadInput
from toolkit.settings.model_source import ModelSource

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


def special_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids that are never a text's own tokens: begin, end, padding, ... The unknown token counts
    as a text's own; so does the mask token, which is the underscore in McGill-NLP's tokenizers."""
    own = {tokenizer.unk_token_id, tokenizer.mask_token_id}
    return sorted(set(tokenizer.all_special_ids) - own)


def first_line(error: Exception) -> str:
    """The first line of an error's message, cut to 200 characters."""
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else repr(error)
