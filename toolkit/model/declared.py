"""What a model folder itself says about how texts become vectors.

Knows what can be computed where. Encoding follows a folder (`vector_rules`). Training and exports
only know attention as requested and the pooling of the recipe (by default the mean over a text's
own tokens), with nothing before or after that, and refuse a folder that asks for anything else,
with the name of the setting (`check_declared`).
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from toolkit.base.errors import BadInput
from toolkit.base.layout import CONFIG_FILE, ORIGIN_FILE, STATE_FILE
from toolkit.model.llm2vec_format import LLM2VEC_CONFIG
from toolkit.model.modules import (
    EFFECTS,
    MODULES_FILE,
    SETTINGS_FILE,
    Modules,
    mapping,
    read_modules,
    read_settings,
    refuse_unknown,
    refused,
    transformer_files,
)
from toolkit.model.tokenizer import (
    load_tokenizer,
    special_around,
    special_ids,
    training_tokenizer,
)
from toolkit.model.vector_rules import (
    ASKED_MODES,
    PLAIN_RULES,
    VectorRules,
    prompt_text,
    trained_rules,
    with_echo,
    with_pooling,
)
from toolkit.model.weights import base_folder, model_digest, stages_of
from toolkit.settings.model_schema import Model, pooling_text, pools_as
from toolkit.settings.model_source import ModelSource
from toolkit.settings.recipes import load_recipe
from toolkit.settings.schema import EncoderSettings, TrainingRecipe

_VALID_MODULES = "valid: Transformer, WordWeights (0 for special tokens), Pooling"
# The prompts that encode_query and encode_document put before a text without being asked.
_UNASKED_PROMPTS = ("query", "document", "passage", "corpus")
# The families that `use_bidirectional_attention` makes bidirectional; others ignore it.
_BIDIRECTIONAL_BY_FLAG = ("gemma3", "gemma3_text")
# The kinds of our own stages whose vectors are pooled in training.
_POOLING_KINDS = ("simcse", "supervised", "graded")
Loaded = Callable[[], PreTrainedTokenizerBase]


@dataclasses.dataclass(frozen=True)
class Use:
    """How we will use a folder, in those respects in which it may ask for something else. None: the
    use does not depend on it. `max_tokens`: where texts are cut; `dims`: how many numbers of a
    vector are kept; `rules`: how their vectors are made, and `begin`: with a begin token, if the
    tokenizer puts one before a text."""

    causal: bool | None
    max_tokens: int | None = None
    dims: int | None = None
    rules: VectorRules = PLAIN_RULES
    begin: bool = True


def check_declared(folders: Sequence[Path], *, tokenizer: ModelSource, use: Use) -> None:
    """Raise `BadInput` if the folder of a model, or of an adapter on top of it, says that its
    vectors are other than a plain decoder's.

    `folders` are those of the model and its adapters; `tokenizer` is where their tokenizer is. A
    folder that says nothing (a plain decoder) passes.
    """
    # Loads the tokenizer at most once, and only if a folder says something about it.
    loaded = functools.cache(lambda: load_tokenizer(tokenizer))
    for folder in folders:
        _check_folder(folder, loaded=loaded, max_tokens=use.max_tokens)
        path = folder / LLM2VEC_CONFIG
        if use.rules != PLAIN_RULES and path.is_file() and not _is_mntp(folder):
            raise refused(path, "says that the mean of a text's own tokens is taken")
        if (folder / MODULES_FILE).is_file():
            if use.rules == PLAIN_RULES or not _is_mntp(folder):
                _refuse_modules(folder, loaded=loaded, use=use)
            _refuse_settings(folder / SETTINGS_FILE, use=use)
            _refuse_causal(folder, base=folders[0], use=use)


def digest_of_base(source: ModelSource, *, model: Model | None = None) -> str:
    """What identifies the model that a training run begins with. Raises `BadInput` as
    `check_declared` does, except for causal attention, since training will change that; and where
    its vectors are made in another way than those that the recipe's `model` asks for."""
    folder = base_folder(source)
    use = Use(causal=None)
    if model is not None:
        _check_pooling_before(folder, model=model)
        training_tokenizer(source, model=model)  # refuses one without an end token
        use = Use(causal=None, rules=trained_rules(model), begin=model.keeps_begin)
    check_declared([folder], tokenizer=source, use=use)
    return model_digest(folder)


def _check_pooling_before(folder: Path, *, model: Model) -> None:
    """Refuse a run that would pool otherwise than the contrastive stage that it goes on from."""
    stages = [stage for stage in stages_of(folder) if stage.get("kind") in _POOLING_KINDS]
    if not stages:
        return
    # Stages of older versions name neither.
    before = stages[-1].get("pooling", "mean"), stages[-1].get("begin_token", "skip")
    if pools_as(*before) == model.pools_as:
        return
    raise BadInput(
        f"{model.pooling_text}: {folder} was trained with {pooling_text(*before)}; give the same "
        "(but not to MNTP, which makes no vectors), or to change it on purpose give as model.base "
        f"a copy of that folder without {MODULES_FILE} and {ORIGIN_FILE}, and with the tokenizer "
        "of the first base"
    )


def vector_rules(
    folders: Sequence[Path],
    *,
    tokenizer: ModelSource,
    settings: EncoderSettings,
    dims: int | None = None,
) -> VectorRules:
    """How texts become vectors: as the last of `folders` with a modules.json declares it, else as
    those of a plain decoder, with the changes that `settings` and `dims` ask for.

    `folders` and `tokenizer` as in `check_declared`. Raises `BadInput`, with its name, for what a
    folder declares and nobody computes here, and for settings that do not fit it.
    """
    loaded = functools.cache(lambda: load_tokenizer(tokenizer))
    for folder in folders:
        _check_folder(folder, loaded=loaded, max_tokens=settings.max_tokens)
    rules, is_ours = VectorRules(causal=settings.causal), True
    for folder in folders:
        if (folder / MODULES_FILE).is_file():
            if settings.echo:
                raise BadInput(
                    f"encoder.echo=true: {folder / MODULES_FILE} is of a model that reads a text "
                    "once; give the causal model that it was made from, or leave out encoder.echo"
                )
            rules = _declared_rules(folder, base=folders[0], loaded=loaded, settings=settings)
            is_ours = (folder / ORIGIN_FILE).is_file()
    if settings.prompt is not None:
        prompts = dict(rules.prompts)
        prompt = prompt_text(settings.prompt, prompts=prompts, asked_by="encoder.prompt=")
        rules = dataclasses.replace(rules, prompt=prompt)
    if settings.echo:
        return with_echo(rules, pooling=settings.pooling, text_format=settings.text_format)
    if is_ours and not rules.all_tokens:
        # Trained with instructions that are not pooled, whatever its files say.
        rules = dataclasses.replace(rules, include_prompt=False)
    if dims is not None:  # it takes the place of truncate_dim
        rules = dataclasses.replace(rules, dims=None)
    if settings.pooling != "auto":
        before, after = map(bool, special_around(loaded()))
        rules = with_pooling(rules, pooling=settings.pooling, prefix=before, suffix=after)
    own = dataclasses.replace(rules, all_tokens=False)
    if is_ours or not rules.all_tokens or not own.is_plain:
        return rules
    # Without tokens around a text both are the same, except for a text with "</s>" in it.
    return rules if _special_around(loaded()) else own


def _declared_rules(
    folder: Path, *, base: Path, loaded: Loaded, settings: EncoderSettings
) -> VectorRules:
    modules = read_modules(folder, loaded=loaded)
    path = folder / SETTINGS_FILE
    whole = read_settings(path)
    if whole.default_prompt is not None and whole.default_prompt not in whole.prompts:
        valid = ", ".join(map(repr, whole.prompts)) or "none"
        raise BadInput(
            f"{path}: default_prompt_name is {whole.default_prompt!r}, which is none of its "
            f"prompts; valid: {valid}"
        )
    has_prompt = whole.default_prompt or settings.prompt
    if has_prompt and modules.has_weights and not modules.include_prompt:
        what = "include_prompt is false, but WordWeights count the prompt's tokens"
        raise refused(modules.pooling_file, what)
    causal, as_configured = _attention(base / "config.json", asked=settings.causal)
    return VectorRules(
        modes=modules.modes,
        all_tokens=not modules.has_weights,
        include_prompt=modules.include_prompt,
        prompt=whole.prompts[whole.default_prompt] if whole.default_prompt is not None else "",
        lower_case=modules.lower_case,
        after=modules.after,
        dims=whole.dims,
        causal=causal,
        as_configured=as_configured,
        prompts=tuple(whole.prompts.items()),
    )


def _attention(path: Path, *, asked: bool) -> tuple[bool, bool]:
    """Whether attention is causal, and whether it is the configuration in `path` that decides so
    (sentence-transformers follows it) rather than a setting of ours. A decoder is causal unless its
    configuration says is_causal=false, and an encoder is not."""
    config = mapping(path)
    if asked or config.get("is_causal") is False:
        return asked, False
    kind = str(config.get("model_type"))
    is_encoder = kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not config.get("is_decoder")
    by_flag = kind in _BIDIRECTIONAL_BY_FLAG and config.get("use_bidirectional_attention")
    return not (is_encoder or by_flag) or config.get("is_causal") is True, True


def _check_folder(folder: Path, *, loaded: Loaded, max_tokens: int | None) -> None:
    """Refuse what is computed nowhere here."""
    if (folder / LLM2VEC_CONFIG).is_file():
        _check_llm2vec(folder / LLM2VEC_CONFIG)
    if any((folder / name).is_file() for name in (LLM2VEC_CONFIG, MODULES_FILE)):
        _check_truncation(folder, tokenizer=loaded())
    _check_length(folder, max_tokens=max_tokens)
    _check_checkpoint(folder)


def _check_checkpoint(folder: Path) -> None:
    """Refuse the weights of a checkpoint whose run pools otherwise than a plain decoder: they do
    not say so."""
    if not (folder.absolute().parent / STATE_FILE).is_file():
        return
    config = folder.absolute().parent.parent.parent / CONFIG_FILE
    if not config.is_file():
        return
    recipe = load_recipe(str(config))
    if isinstance(recipe, TrainingRecipe) and trained_rules(recipe.model) != PLAIN_RULES:
        raise BadInput(
            f"{folder}: a checkpoint's weights do not say that their run pools with "
            f"{recipe.model.pooling_text}; give the run, {config.parent}, or its export"
        )


def _check_llm2vec(path: Path) -> None:
    settings = mapping(path)
    if (mode := settings.get("pooling_mode", "mean")) != "mean":
        raise refused(path, f"pooling_mode is {mode!r}, another pooling than 'mean'")
    if not settings.get("skip_instruction", True):
        raise refused(path, "skip_instruction is false, which pools instructions too")
    known = ("pooling_mode", "skip_instruction", "max_length", "doc_max_length")
    refuse_unknown(path, settings, known=known)


def _is_mntp(folder: Path) -> bool:
    """Whether a folder has only been trained by our MNTP, which pools nothing: how its vectors are
    pooled is only a proposal."""
    kinds = {stage.get("kind") for stage in stages_of(folder)}
    return "mntp" in kinds and kinds <= {"mntp", "merge"}


def _refuse_modules(folder: Path, *, loaded: Loaded, use: Use) -> None:
    """Refuse modules other than a Transformer, perhaps WordWeights, and a Pooling, that together do
    what `use.rules` say."""
    modules, path = read_modules(folder, loaded=loaded), folder / MODULES_FILE
    if modules.after:
        kind = type(modules.after[0]).__name__
        raise refused(path, f"{kind} {EFFECTS[kind]}; {_VALID_MODULES}")
    if modules.lower_case:
        (path,) = transformer_files(folder)
        raise refused(path, "do_lower_case is true, which lowers a text's letters")
    rules = use.rules
    if modules.modes != rules.modes:
        shown = " and ".join(map(repr, modules.modes))
        what = f"the pooling mode is {shown}, another pooling than {rules.modes[0]!r}"
        raise refused(modules.pooling_file, what)
    around = _special_around(loaded())
    tokens = ", ".join(map(repr, loaded().convert_ids_to_tokens(around)))
    if rules.all_tokens:
        _refuse_other_tokens(modules, path=path, around=special_around(loaded()), use=use)
        if modules.has_weights and around:
            raise refused(path, f"WordWeights leave {tokens} out, which would be pooled here")
    elif not modules.has_weights and around:
        what = f"Pooling takes {tokens} into the mean, without WordWeights that leave it out"
        raise refused(path, what)


def _refuse_other_tokens(
    modules: Modules, *, path: Path, around: tuple[tuple[int, ...], tuple[int, ...]], use: Use
) -> None:
    """Refuse what makes other vectors than pooling all tokens does."""
    before, after = around
    if use.rules.modes == (ASKED_MODES["last"],):
        if not after:
            raise refused(
                path, "the last token of a text is pooled, and here an end token would be"
            )
    elif not modules.include_prompt:
        raise refused(modules.pooling_file, "include_prompt is false, and prompts would be pooled")
    if before and not use.begin:
        raise refused(path, "texts have a begin token, which model.begin_token=none leaves out")


def _refuse_settings(path: Path, *, use: Use) -> None:
    settings = read_settings(path)
    for name in (settings.default_prompt, *_UNASKED_PROMPTS):
        if name is not None and settings.prompts.get(name):
            is_default = name == settings.default_prompt
            which = "the default prompt" if is_default else f"the prompt of {name!r}"
            raise refused(path, f"{which} puts {settings.prompts[name]!r} before each text")
    if settings.dims not in (None, use.dims):
        raise refused(path, f"truncate_dim keeps {settings.dims} numbers of each vector")


def _refuse_causal(folder: Path, *, base: Path, use: Use) -> None:
    """Refuse a folder for sentence-transformers whose attention would be causal there and
    bidirectional here.

    `use_bidirectional_attention` is not enough: most families ignore it, and Gemma 3 halves its
    sliding window by it, which does not happen here.
    """
    path = base / "config.json"
    settings = mapping(path)
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
        raise refused(folder, what)


def _check_length(folder: Path, *, max_tokens: int | None) -> None:
    """Refuse to cut texts later than the folder does. In our own exports that length is only meant
    for other tools."""
    if max_tokens is None or (folder / ORIGIN_FILE).is_file():
        return
    for limit, path, key in _limits(folder):
        if max_tokens > limit:
            raise BadInput(
                f"max_tokens={max_tokens}: texts of this model are cut at {limit} tokens "
                f"({path}: {key}); give at most {limit}"
            )


def limit_of(folder: Path) -> int | None:
    """How many tokens of a text other tools read, by what the folder says; None if it says nothing
    of that."""
    return min((int(limit) for limit, _, _ in _limits(folder)), default=None)


def _limits(folder: Path) -> Iterator[tuple[int | float, Path, str]]:
    """Each number of tokens at which the folder has a text cut, with its file and key."""
    places = [(folder / LLM2VEC_CONFIG, "max_length")]
    if (folder / MODULES_FILE).is_file():
        key = "max_seq_length"
        # null means that the file gives no length.
        old = [path for path in transformer_files(folder) if mapping(path).get(key) is not None]
        for path in old:
            limit = mapping(path)[key]
            if type(limit) is not int or limit < 1:
                raise BadInput(f"{path}: {key} is {limit!r}; valid: a whole number from 1 on")
        places += [(path, key) for path in old]
        if not old:
            places.append((folder / "tokenizer_config.json", "model_max_length"))
            places.append((folder / "config.json", "max_position_embeddings"))
    for path, key in places:
        limit = mapping(path).get(key) if path.is_file() else None
        if isinstance(limit, int | float) and limit != -1:
            yield limit, path, key


def _special_around(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The special tokens that the tokenizer puts around a text."""
    return sorted({*tokenizer("")["input_ids"]} & {*special_ids(tokenizer)})
