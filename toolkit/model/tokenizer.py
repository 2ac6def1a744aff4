"""The tokenizer of a model, by its name or folder.

Knows transformers' tokenizers. Apart from `backbone`, so that who needs no model need not wait for
what models need (peft, torch's own half).
"""

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from toolkit.base.errors import BadInput
from toolkit.settings.model_source import ModelSource

AGAIN = "copy or download the model again"


def load_tokenizer(source: ModelSource) -> PreTrainedTokenizerBase:
    """The tokenizer of a model, or in an adapter's folder; the end token stands in for a missing
    padding token."""
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
    """The ids that are never a text's own: begin, end, padding, ...; an unknown word is its own,
    and so is the mask, for which McGill-NLP's tokenizers name the underscore."""
    own = {tokenizer.unk_token_id, tokenizer.mask_token_id}
    return sorted(set(tokenizer.all_special_ids) - own)


def first_line(error: Exception) -> str:
    """What an error says, short."""
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else repr(error)
