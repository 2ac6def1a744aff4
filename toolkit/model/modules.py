"""The files of a folder of sentence-transformers: its modules, in the old formats and that of
version 6, and its prompts.

Knows which of them can be computed here. Refuses every other one by its name: vectors that differ
from what its makers intended would not look wrong.
"""

import dataclasses
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from toolkit.base.errors import BadInput
from toolkit.base.files import read_json, sha256_of
from toolkit.model.head import ACTIVATIONS
from toolkit.model.llm2vec_format import LLM2VEC_CONFIG
from toolkit.model.tokenizer import special_ids
from toolkit.model.vector_rules import MODE_FLAGS, Dense, Normalize

MODULES_FILE = "modules.json"
SETTINGS_FILE = "config_sentence_transformers.json"
WAY_OUT = (
    "it is not computed here; to use the weights as those of a plain decoder, give a copy of the "
    f"folder without {MODULES_FILE} and {LLM2VEC_CONFIG}"
)
_VALID_MODULES = (
    "valid: Transformer, WordWeights (0 for special tokens), Pooling, and then Normalize and Dense"
)
EFFECTS = {
    "Normalize": "divides each vector by its length",
    "Dense": "multiplies each vector with a matrix",
    "LayerNorm": "normalises each vector",
    "Dropout": "drops numbers of each vector",
    "SpladePooling": "makes sparse vectors",
    "Router": "sends texts through different modules",
}
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
class Modules:
    """The modules of a folder, and their settings. `has_weights`: WordWeights leave out special
    tokens. `pooling_file` is where the modes are."""

    lower_case: bool
    has_weights: bool
    modes: tuple[str, ...]
    include_prompt: bool
    after: tuple[Normalize | Dense, ...]
    pooling_file: Path


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a folder says of its prompts, and how many numbers of a vector are kept."""

    prompts: dict[str, str]
    default_prompt: str | None
    dims: int | None


def read_modules(folder: Path, *, loaded: Callable[[], PreTrainedTokenizerBase]) -> Modules:
    """The modules of a folder; `loaded` gives its tokenizer. Raises `BadInput`, with its name, for
    what is not computed here."""
    path = folder / MODULES_FILE
    modules = read_json(path)
    whole = isinstance(modules, list) and all(isinstance(module, dict) for module in modules)
    if not whole or not all(isinstance(m.get(k), str) for m in modules for k in ("type", "path")):
        raise BadInput(f"{path}: is no list of modules with a type and a path")
    kinds = tuple(_kind(path, module["type"]) for module in modules)
    number = 2 if "WordWeights" in kinds else 1  # of the Pooling
    before, after = kinds[: number + 1], kinds[number + 1 :]
    whole_before = before in (("Transformer", "Pooling"), ("Transformer", "WordWeights", "Pooling"))
    if not whole_before or not {*after} <= {"Normalize", "Dense"}:
        raise refused(path, f"the modules are {', '.join(kinds) or 'none'}; {_VALID_MODULES}")
    if modules[0]["path"]:
        raise refused(path, f"the Transformer is in {modules[0]['path']!r}, not in this folder")
    places = [folder / module["path"] / "config.json" for module in modules]
    lower_case = _read_transformer(folder)
    modes, include_prompt = _read_pooling(places[number])
    if has_weights := number == 2:
        _check_word_weights(places[1], tokenizer=loaded())
        if modes != ("mean",):
            shown = " and ".join(map(repr, modes))
            raise refused(path, f"WordWeights stand before the pooling mode {shown}, not 'mean'")
    steps = tuple(
        _read_normalize(place) if kind == "Normalize" else _read_dense(place)
        for kind, place in zip(after, places[number + 1 :], strict=True)
    )
    return Modules(lower_case, has_weights, modes, include_prompt, steps, places[number])


def read_settings(path: Path) -> Settings:
    """The settings of the whole model, which may be none."""
    settings = mapping(path) if path.is_file() else {}
    if (kind := settings.get("model_type") or "SentenceTransformer") != "SentenceTransformer":
        raise refused(path, f"model_type is {kind!r}, another than 'SentenceTransformer'")
    known = ("model_type", "prompts", "default_prompt_name", "truncate_dim", "similarity_fn_name")
    refuse_unknown(path, settings, known=(*known, "requirements", "__version__"))
    prompts = {name: text or "" for name, text in part(path, settings, "prompts").items()}
    if strange := [name for name, text in prompts.items() if not isinstance(text, str)]:
        raise BadInput(f"{path}: the prompt {strange[0]!r} is {prompts[strange[0]]!r}, not a text")
    default = settings.get("default_prompt_name")
    if default is not None and not isinstance(default, str):
        raise BadInput(f"{path}: default_prompt_name is {default!r}, not the name of a prompt")
    dims = settings.get("truncate_dim")
    if dims is not None and (type(dims) is not int or dims < 1):
        raise BadInput(f"{path}: truncate_dim is {dims!r}; valid: a whole number from 1 on")
    return Settings(prompts, default, dims)


def transformer_files(folder: Path) -> list[Path]:
    """The file with the settings of the Transformer module (the first one that has any), as a list
    of at most one."""
    there = [path for name in _TRANSFORMER_FILES if (path := folder / name).is_file()]
    return [path for path in there if mapping(path)][:1]


def refused(path: Path, what: str) -> BadInput:
    """The error for what is not computed here."""
    return BadInput(f"{path}: {what}: {WAY_OUT}")


def mapping(path: Path) -> dict[str, Any]:
    """The content of a JSON file that holds settings."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise BadInput(f"{path}: holds no settings (a mapping)")
    return content


def part(path: Path, settings: dict[str, Any], key: str) -> dict[str, Any]:
    """The settings under `key`; empty if they are absent or null."""
    inner = settings.get(key) or {}
    if not isinstance(inner, dict):
        raise BadInput(f"{path}: {key} is {inner!r}, and should be a mapping")
    return inner


def refuse_unknown(path: Path, settings: dict[str, Any], *, known: Collection[str]) -> None:
    """Refuse a setting that we do not know, because it might change vectors; one that is false,
    empty or null changes none."""
    if strange := sorted(key for key, value in settings.items() if value and key not in known):
        raise refused(path, f"{strange[0]} is {settings[strange[0]]!r}, an unknown setting")


def _kind(path: Path, name: str) -> str:
    package, _, kind = name.rpartition(".")
    if package.partition(".")[0] != "sentence_transformers":
        raise refused(path, f"{name!r} is a module of its own; {_VALID_MODULES}")
    if kind not in ("Transformer", "WordWeights", "Pooling", "Normalize", "Dense"):
        effect = f"{kind} {EFFECTS.get(kind, 'is another way to a vector')}"
        raise refused(path, f"{effect}; {_VALID_MODULES}")
    return kind


def _read_transformer(folder: Path) -> bool:
    """Whether texts are put into small letters."""
    for path in transformer_files(folder):
        settings = mapping(path)
        if (task := settings.get("transformer_task", "feature-extraction")) != "feature-extraction":
            raise refused(path, f"transformer_task is {task!r}, another than 'feature-extraction'")
        # "message" would put a text into the tokenizer's chat template.
        for name, output in part(path, settings, "modality_config").items():
            if name != "text" or output != _LAST_STATES:
                raise refused(path, f"modality_config has {name!r}: {output}, not only plain text")
        if (name := settings.get("module_output_name", "token_embeddings")) != "token_embeddings":
            raise refused(path, f"module_output_name is {name!r}, another than 'token_embeddings'")
        for key in _ARGUMENT_KEYS:
            # Even a value of False may change vectors, as is_causal does.
            for name, value in part(path, settings, key).items():
                if name not in _PLAIN_ARGUMENTS:
                    raise refused(path, f"{key}.{name} is {value!r}, an unknown setting")
        known = ("do_lower_case", "transformer_task", "modality_config", "module_output_name")
        refuse_unknown(
            path, settings, known=(*known, "max_seq_length", "unpad_inputs", *_ARGUMENT_KEYS)
        )
        return bool(settings.get("do_lower_case"))
    return False


def _read_pooling(path: Path) -> tuple[tuple[str, ...], bool]:
    """The pooling modes, and whether a prompt is pooled."""
    settings = mapping(path)
    flags = tuple(mode for mode, flag in MODE_FLAGS.items() if settings.get(flag))
    modes = settings.get("pooling_mode", flags or ("mean",))
    modes = tuple(modes) if isinstance(modes, list | tuple) else (modes,)
    valid = tuple(MODE_FLAGS)
    if not modes or any(mode not in valid for mode in modes):
        shown = " and ".join(map(repr, modes)) or "none"
        raise refused(path, f"the pooling mode is {shown}; valid: {', '.join(valid)}")
    known = ("pooling_mode", "embedding_dimension", "word_embedding_dimension", "include_prompt")
    refuse_unknown(path, settings, known=(*known, *MODE_FLAGS.values()))
    return modes, bool(settings.get("include_prompt", True))


def _check_word_weights(path: Path, *, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse weights other than 0 for special tokens and 1 for all others, looked up as
    sentence-transformers does."""
    settings = mapping(path)
    weights, default = part(path, settings, "word_weights"), settings.get("unknown_word_weight", 1)
    words, special = settings.get("vocab"), set(special_ids(tokenizer))
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise BadInput(f"{path}: vocab is no list of words")
    for number, word in enumerate(words):
        weight = weights.get(word, weights.get(word.lower(), default))
        if weight != (number not in special):
            problem = f"WordWeights gives {word!r} the weight {weight}"
            raise refused(path, f"{problem}; valid: 0 for special tokens, 1 for all others")


def _read_normalize(path: Path) -> Normalize:
    settings = mapping(path) if path.is_file() else {}
    _check_names(path, settings)
    refuse_unknown(path, settings, known=("module_input_name", "module_output_name"))
    return Normalize()


def _read_dense(path: Path) -> Dense:
    settings = mapping(path)
    _check_names(path, settings)
    known = ("in_features", "out_features", "bias", "activation_function")
    refuse_unknown(path, settings, known=(*known, "module_input_name", "module_output_name"))
    sizes = [settings.get(key) for key in ("in_features", "out_features")]
    if any(type(size) is not int or size < 1 for size in sizes):
        raise BadInput(
            f"{path}: in_features and out_features are {sizes}; valid: whole numbers from 1 on"
        )
    name = settings.get("activation_function", "torch.nn.modules.activation.Tanh")
    package, _, activation = str(name).rpartition(".")
    if package.partition(".")[0] != "torch" or activation not in ACTIVATIONS:
        problem = f"activation_function is {name!r}"
        raise refused(path, f"{problem}; valid, of torch.nn: {', '.join(ACTIVATIONS)}")
    weights = path.parent / "model.safetensors"
    if not weights.is_file():
        raise BadInput(f"{weights}: is missing; convert the weights of Dense to safetensors")
    return Dense(
        weights,
        sha256_of(weights),
        in_features=settings["in_features"],
        out_features=settings["out_features"],
        bias=bool(settings.get("bias", True)),
        activation=activation,
    )


def _check_names(path: Path, settings: dict[str, Any]) -> None:
    """Refuse a step on anything but the pooled vector."""
    for key in ("module_input_name", "module_output_name"):
        if (name := settings.get(key) or "sentence_embedding") != "sentence_embedding":
            raise refused(path, f"{key} is {name!r}, another than 'sentence_embedding'")
