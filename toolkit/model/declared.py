"""What a model folder itself says about how texts become vectors.

Knows the files of sentence-transformers (the old formats and that of version 6) and of llm2vec.
Refuses to follow them: a folder that asks for anything but what this toolkit computes (attention as
requested, the mean over a text's own tokens, nothing before or after that) is refused, with the
name of the setting. Vectors that differ from what its makers intended would not look wrong.
"""

import dataclasses
import functools
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from toolkit.base.errors import BadInput
from toolkit.base.files import read_json
from toolkit.base.layout import ORIGIN_FILE
from toolkit.model.llm2vec_format import LLM2VEC_CONFIG
from toolkit.model.tokenizer import load_tokenizer, special_ids
from toolkit.model.weights import base_folder, model_digest
from toolkit.settings.model_source import ModelSource

MODULES_FILE = "modules.json"
SETTINGS_FILE = "config_sentence_transformers.json"
_WAY_OUT = (
    "it is not computed here; to use the weights as those of a plain decoder, give a copy of the "
    f"folder without {MODULES_FILE} and {LLM2VEC_CONFIG}"
)
_VALID_MODULES = "valid: Transformer, WordWeights (0 for special tokens), Pooling by the mean"
_EFFECTS = {
    "Normalize": "divides each vector by its length",
    "Dense": "multiplies each vector with a matrix",
    "LayerNorm": "normalises each vector",
    "Dropout": "drops numbers of each vector",
    "SpladePooling": "makes sparse vectors",
    "Router": "sends texts through different modules",
}
_OLD_POOLING = {  # sentence-transformers before version 6 has one flag per mode
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
# The prompts that encode_query and encode_document put before a text without being asked.
_UNASKED_PROMPTS = ("query", "document", "passage", "corpus")
_TRANSFORMER_FILES = [
    f"sentence_{name}_config.json"
    for name in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
]
_LAST_STATES = {"method": "forward", "method_output_name": "last_hidden_state"}
# Arguments of from_pretrained that change no vector.
_PLAIN_ARGUMENTS = {"dtype", "torch_dtype", "attn_implementation"}
_ARGUMENT_KEYS = (
    *("model_args", "tokenizer_args", "config_args"),
    *("model_kwargs", "processor_kwargs", "config_kwargs"),
)


@dataclasses.dataclass(frozen=True)
class Use:
    """How we will use a folder, in those respects in which it may ask for something else. None: the
    use does not depend on it. `max_tokens`: where texts are cut; `dims`: how many numbers of a
    vector are kept."""

    causal: bool | None
    max_tokens: int | None = None
    dims: int | None = None


def check_declared(folders: Sequence[Path], *, tokenizer: ModelSource, use: Use) -> None:
    """Raise `BadInput` if the folder of a model, or of an adapter on top of it, says that its
    vectors are computed differently than here.

    `folders` are those of the model and its adapters; `tokenizer` is where their tokenizer is. A
    folder that says nothing (a plain decoder) passes.
    """
    # Loads the tokenizer at most once, and only if a folder says something about it.
    loaded = functools.cache(lambda: load_tokenizer(tokenizer))
    for folder in folders:
        if (folder / LLM2VEC_CONFIG).is_file():
            _check_llm2vec(folder / LLM2VEC_CONFIG)
        if (folder / MODULES_FILE).is_file():
            _check_modules(folder, loaded=loaded)
            _check_settings(folder / SETTINGS_FILE, use=use)
            _check_attention(folder, base=folders[0], use=use)
        if any((folder / name).is_file() for name in (LLM2VEC_CONFIG, MODULES_FILE)):
            _check_truncation(folder, tokenizer=loaded())
        _check_length(folder, use=use)


def digest_of_base(source: ModelSource) -> str:
    """What identifies the model that a training run begins with. Raises `BadInput` as
    `check_declared` does, except for causal attention, since training will change that."""
    folder = base_folder(source)
    check_declared([folder], tokenizer=source, use=Use(causal=None))
    return model_digest(folder)


def _refused(path: Path, what: str) -> BadInput:
    return BadInput(f"{path}: {what}: {_WAY_OUT}")


def _check_llm2vec(path: Path) -> None:
    settings = _mapping(path)
    if (mode := settings.get("pooling_mode", "mean")) != "mean":
        raise _refused(path, f"pooling_mode is {mode!r}, another pooling than 'mean'")
    if not settings.get("skip_instruction", True):
        raise _refused(path, "skip_instruction is false, which pools instructions too")
    known = ("pooling_mode", "skip_instruction", "max_length", "doc_max_length")
    _refuse_unknown(path, settings, known=known)


def _check_modules(folder: Path, *, loaded: Callable[[], PreTrainedTokenizerBase]) -> None:
    """Refuse modules other than a Transformer, perhaps WordWeights, and a Pooling, in this
    order."""
    path = folder / MODULES_FILE
    modules = read_json(path)
    whole = isinstance(modules, list) and all(isinstance(module, dict) for module in modules)
    if not whole or not all(isinstance(m.get(k), str) for m in modules for k in ("type", "path")):
        raise BadInput(f"{path}: is no list of modules with a type and a path")
    kinds = []
    for module in modules:
        package, _, kind = module["type"].rpartition(".")
        kinds.append(kind)
        if package.partition(".")[0] != "sentence_transformers":
            raise _refused(path, f"{module['type']!r} is a module of its own; {_VALID_MODULES}")
        if kind not in ("Transformer", "WordWeights", "Pooling"):
            effect = f"{kind} {_EFFECTS.get(kind, 'is another way to a vector')}"
            raise _refused(path, f"{effect}; {_VALID_MODULES}")
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "WordWeights", "Pooling"]):
        raise _refused(path, f"the modules are {', '.join(kinds) or 'none'}; {_VALID_MODULES}")
    if modules[0]["path"]:
        raise _refused(path, f"the Transformer is in {modules[0]['path']!r}, not in this folder")
    _check_transformer(folder)
    _check_pooling(folder / modules[-1]["path"] / "config.json")
    tokenizer = loaded()
    if len(kinds) == 3:
        _check_word_weights(folder / modules[1]["path"] / "config.json", tokenizer=tokenizer)
    elif around := sorted({*tokenizer("")["input_ids"]} & {*special_ids(tokenizer)}):
        tokens = ", ".join(map(repr, tokenizer.convert_ids_to_tokens(around)))
        what = f"Pooling takes {tokens} into the mean, without WordWeights that leave it out"
        raise _refused(path, what)


def _check_transformer(folder: Path) -> None:
    for path in _transformer_files(folder):
        settings = _mapping(path)
        if settings.get("do_lower_case"):
            raise _refused(path, "do_lower_case is true, which lowers a text's letters")
        if (task := settings.get("transformer_task", "feature-extraction")) != "feature-extraction":
            raise _refused(path, f"transformer_task is {task!r}, another than 'feature-extraction'")
        # "message" would put a text into the tokenizer's chat template.
        for name, output in _part(path, settings, "modality_config").items():
            if name != "text" or output != _LAST_STATES:
                raise _refused(path, f"modality_config has {name!r}: {output}, not only plain text")
        if (name := settings.get("module_output_name", "token_embeddings")) != "token_embeddings":
            raise _refused(path, f"module_output_name is {name!r}, another than 'token_embeddings'")
        for key in _ARGUMENT_KEYS:
            # Even a value of False may change vectors, as is_causal does.
            for name, value in _part(path, settings, key).items():
                if name not in _PLAIN_ARGUMENTS:
                    raise _refused(path, f"{key}.{name} is {value!r}, an unknown setting")
        known = ("do_lower_case", "transformer_task", "modality_config", "module_output_name")
        _refuse_unknown(
            path, settings, known=(*known, "max_seq_length", "unpad_inputs", *_ARGUMENT_KEYS)
        )


def _check_pooling(path: Path) -> None:
    settings = _mapping(path)
    flags = tuple(mode for key, mode in _OLD_POOLING.items() if settings.get(key))
    modes = settings.get("pooling_mode", flags or ("mean",))
    modes = tuple(modes) if isinstance(modes, list | tuple) else (modes,)
    if modes != ("mean",):
        shown = " and ".join(map(repr, modes))
        raise _refused(path, f"the pooling mode is {shown}, another pooling than 'mean'")
    # include_prompt matters only with a prompt, and `_check_settings` refuses prompts.
    known = ("pooling_mode", "embedding_dimension", "word_embedding_dimension", "include_prompt")
    _refuse_unknown(path, settings, known=(*known, *_OLD_POOLING))


def _check_word_weights(path: Path, *, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse weights other than 0 for special tokens and 1 for all others, looked up as
    sentence-transformers does."""
    settings = _mapping(path)
    weights, default = _part(path, settings, "word_weights"), settings.get("unknown_word_weight", 1)
    words, special = settings.get("vocab"), set(special_ids(tokenizer))
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise BadInput(f"{path}: vocab is no list of words")
    for number, word in enumerate(words):
        weight = weights.get(word, weights.get(word.lower(), default))
        if weight != (number not in special):
            problem = f"WordWeights gives {word!r} the weight {weight}"
            raise _refused(path, f"{problem}; valid: 0 for special tokens, 1 for all others")


def _check_settings(path: Path, *, use: Use) -> None:
    settings = _mapping(path) if path.is_file() else {}
    if (kind := settings.get("model_type") or "SentenceTransformer") != "SentenceTransformer":
        raise _refused(path, f"model_type is {kind!r}, another than 'SentenceTransformer'")
    prompts = _part(path, settings, "prompts")
    default = str(settings.get("default_prompt_name"))
    for name in (default, *_UNASKED_PROMPTS):
        if prompts.get(name):
            which = "the default prompt" if name == default else f"the prompt of {name!r}"
            raise _refused(path, f"{which} puts {prompts[name]!r} before each text")
    if (dims := settings.get("truncate_dim")) not in (None, use.dims):
        raise _refused(path, f"truncate_dim keeps {dims} numbers of each vector")
    known = ("model_type", "prompts", "default_prompt_name", "truncate_dim", "similarity_fn_name")
    _refuse_unknown(path, settings, known=(*known, "requirements", "__version__"))


def _check_attention(folder: Path, *, base: Path, use: Use) -> None:
    """Refuse a folder for sentence-transformers whose attention would be causal there and
    bidirectional here: sentence-transformers follows config.json, and a decoder is causal unless
    that says is_causal=false.

    `use_bidirectional_attention` is not enough: most families ignore it, and Gemma 3 halves its
    sliding window by it, which does not happen here.
    """
    path = base / "config.json"
    settings = _mapping(path)
    # A recipe with encoder.causal=true asks for causal attention itself.
    if use.causal is not False or settings.get("is_causal") is False:
        return
    modules = folder / MODULES_FILE
    if flag := settings.get("use_bidirectional_attention"):
        raise BadInput(
            f"{modules}: {path} says use_bidirectional_attention={flag!r} and no is_causal=false: "
            "most families ignore the former and are causal, and Gemma 3 halves its window by it; "
            "for a causal model give encoder.causal=true; for a bidirectional one, write "
            '"is_causal": false into config.json of a copy of the folder'
        )
    raise BadInput(
        f"{modules}: makes vectors by causal attention (no is_causal=false in {path}), and here it "
        "would be bidirectional; for what its makers meant give encoder.causal=true; to make it "
        f"bidirectional all the same, give a copy of the folder without {MODULES_FILE}"
    )


def _check_truncation(folder: Path, *, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer that cuts off the beginning of a long text; here the end is cut off."""
    # The loaded tokenizer has taken both tokenizer_config.json and tokenizer.json into account.
    if (side := tokenizer.truncation_side) != "right":
        what = f"its tokenizer has truncation_side {side!r}, which cuts off a text's beginning"
        raise _refused(folder, what)


def _check_length(folder: Path, *, use: Use) -> None:
    """Refuse to cut texts later than the folder does. In our own exports that length is only meant
    for other tools."""
    if use.max_tokens is None or (folder / ORIGIN_FILE).is_file():
        return
    places = [(folder / LLM2VEC_CONFIG, "max_length")]
    if (folder / MODULES_FILE).is_file():
        key = "max_seq_length"
        # null means that the file gives no length.
        old = [path for path in _transformer_files(folder) if _mapping(path).get(key) is not None]
        for path in old:
            limit = _mapping(path)[key]
            if type(limit) is not int or limit < 1:
                raise BadInput(f"{path}: {key} is {limit!r}; valid: a whole number from 1 on")
        places += [(path, key) for path in old]
        places += [] if old else [(folder / "tokenizer_config.json", "model_max_length")]
    for path, key in places:
        limit = _mapping(path).get(key) if path.is_file() else None
        if isinstance(limit, int | float) and use.max_tokens > limit:
            raise BadInput(
                f"max_tokens={use.max_tokens}: texts of this model are cut at {limit} tokens "
                f"({path}: {key}); give at most {limit}"
            )


def _transformer_files(folder: Path) -> list[Path]:
    """The file with the settings of the Transformer module (the first one that has any), as a list
    of at most one."""
    there = [path for name in _TRANSFORMER_FILES if (path := folder / name).is_file()]
    return [path for path in there if _mapping(path)][:1]


def _mapping(path: Path) -> dict[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict):
        raise BadInput(f"{path}: holds no settings (a mapping)")
    return content


def _part(path: Path, settings: dict[str, Any], key: str) -> dict[str, Any]:
    """The settings under `key`; empty if they are absent or null."""
    inner = settings.get(key) or {}
    if not isinstance(inner, dict):
        raise BadInput(f"{path}: {key} is {inner!r}, and should be a mapping")
    return inner


def _refuse_unknown(path: Path, settings: dict[str, Any], *, known: Collection[str]) -> None:
    """Refuse a setting that we do not know, because it might change vectors; one that is false,
    empty or null changes none."""
    if strange := sorted(key for key, value in settings.items() if value and key not in known):
        raise _refused(path, f"{strange[0]} is {settings[strange[0]]!r}, an unknown setting")
