"""Recipes: strict, frozen, typed descriptions of a run, read from YAML and dotted overrides.

Knows names, types and ranges of settings. Refuses to know what is done with them.
Every number has one owner: hyper-parameters live here, memory and communication layout in
`ds_configs`, nodes and hours in `slurm/` or the launch flags.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from toolkit.catalogue import PACKAGE, recipe_path, shipped
from toolkit.files import BadInput, did_you_mean, is_committed
from toolkit.schema import (
    KINDS,
    MntpRecipe,
    PipelineRecipe,
    Recipe,
    SimcseRecipe,
    Stage,
    StageRecipe,
    SupervisedRecipe,
    TrainingRecipe,
    batch_split,
    check_no_blocks,
)
from toolkit.section import has_key, keys_of, section_at
from toolkit.shown import as_yaml

# The hub's client raises an error of its own for any other.
HUB_NAME = re.compile(r"(?!.*(?:--|\.\.))\w[\w.-]*/\w(?:[\w.-]{0,94}\w)?", re.ASCII)
DEEPSPEED_DIR = shipped("ds_configs")
ENCODER_DIR = "encoder"
ADAPTER_CONFIG = "adapter_config.json"
# What may differ between a run and its continuation, with all below it; all else would be another
# run.
FREE_KEYS = {"run_dir", "deepspeed", "train.steps", "train.views", "train.may_differ"}
FREE_KEYS |= {"train.micro_batch_rows", "train.micro_batch_tokens", "train.log_every_steps"}
FREE_KEYS |= {"train.save_every_steps", "train.keep_checkpoints", "train.keep_every_steps"}
FREE_KEYS |= {"train.keep_best", "train.background_save", "train.probe", "train.max_skipped_steps"}
FREE_KEYS |= {"train.heartbeat_s", "train.stall_s"}
FREE_KEYS |= {"mntp.evaluate_every_steps", "mntp.cross_entropy"}


class _Loader(yaml.SafeLoader):
    """Safe YAML that reads 1e-3 as the number that everybody means (YAML 1.1 says text)."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def load_recipe(name: str, *, overrides: Sequence[str] = (), kinds: Sequence[str] = ()) -> Recipe:
    """Read a recipe by name or path and apply `key.path=value` overrides, in order. `kinds` are
    those of which an unknown name may be one.

    `{toolkit}` in a recipe stands for the installed package's folder.
    Raises `BadInput` that names the offending key and value and what would be valid.
    """
    path = recipe_path(name, kinds=kinds)
    try:
        text = path.read_text(encoding="utf-8").replace("{toolkit}", str(PACKAGE))
        data = yaml.load(text, Loader=_Loader)  # noqa: S506 (safe)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise BadInput(f"{path}: cannot be read as a recipe ({_one_line(error)})") from error
    if not isinstance(data, dict):
        raise BadInput(f"{path}: a recipe is a YAML mapping with a `kind`")
    for override in overrides:
        key, value = parse_override(override)
        _set_key(data, key=key, value=value)
    return parse_recipe(data, source=path.stem)


def parse_recipe(data: Mapping[str, Any], *, source: str) -> Recipe:
    """Check a mapping and return the typed recipe; `source` is named in errors."""
    kind = data.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        raise BadInput(f"{source}: kind is {kind!r}; valid kinds: {', '.join(KINDS)}")
    model = KINDS[kind]
    try:
        # Through JSON, so that strict typing takes a YAML list for a tuple and nothing else.
        return model.model_validate_json(json.dumps(data))
    except ValidationError as error:
        raise BadInput(f"{source}: {_explain(error, model=model)}") from error
    except (TypeError, ValueError) as error:
        raise BadInput(f"{source}: {_one_line(error)}") from error


def parse_override(text: str) -> tuple[str, Any]:
    """Split `key.path=value`; the value is read as YAML (`true`, `3`, `1e-4`, `[a, b]`, text)."""
    key, separator, value = text.partition("=")
    if not separator or not key.strip():
        raise BadInput(f"override {text!r}: write key.path=value, such as train.steps=100")
    try:
        return key.strip(), yaml.load(value, Loader=_Loader)  # noqa: S506 (safe)
    except yaml.YAMLError as error:
        raise BadInput(f"override {text!r}: the value is not YAML ({_one_line(error)})") from error


def to_yaml(recipe: Recipe | TrainingRecipe) -> str:
    """The resolved whole as YAML, in the order of the definitions."""
    return as_yaml(recipe.model_dump(mode="json"))


def resolve_stages(
    pipeline: PipelineRecipe, *, overrides: Sequence[str] = ()
) -> dict[str, StageRecipe]:
    """The recipe of every stage with the pipeline's values and the user's overrides applied.

    `stage.key.path=value` goes to that stage; `key.path=value` to every stage that has the key.
    """
    values = flatten(pipeline.model_dump(exclude={"stages"}))
    per_stage: dict[str, list[str]] = {name: [] for name in pipeline.stages}
    for override in overrides:
        key, _ = parse_override(override)
        first = key.partition(".")[0]
        # A stage may share its name with a section: mntp.mask_probability is the section's key.
        if first in per_stage and not has_key(_stage_type(pipeline.stages[first]), key=key):
            per_stage[first].append(override.strip().removeprefix(f"{first}."))
            continue
        takers = [n for n, s in pipeline.stages.items() if has_key(_stage_type(s), key=key)]
        if not takers:
            near = did_you_mean(key, _keys_of_stages(pipeline))
            raise BadInput(f"override {override!r}: no stage has the key {key!r}{near}")
        for name in takers:
            per_stage[name].append(override)
    resolved: dict[str, StageRecipe] = {}
    for name, stage in pipeline.stages.items():
        own = [f"{key}={json.dumps(_fill(v, values=values))}" for key, v in stage.set.items()]
        recipe = load_recipe(stage.recipe, overrides=[*own, *per_stage[name]])
        if isinstance(recipe, PipelineRecipe):
            raise BadInput(f"stage {name}: {stage.recipe} is a pipeline; a stage is a single run")
        resolved[name] = recipe
    return resolved


def split_overrides(overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """Part a pipeline's own overrides (run_dir, model.base, ...) from those for its stages."""
    own = [o for o in overrides if has_key(PipelineRecipe, key=parse_override(o)[0])]
    return own, [o for o in overrides if o not in own]


def check_training(recipe: TrainingRecipe, *, world_size: int) -> tuple[int, int]:
    """Refuse what cannot run on `world_size` ranks or in this run directory; without torch, so that
    the launcher can ask before a job waits in a queue. Returns micro-batch rows and accumulation.
    """
    deepspeed_layout(recipe.deepspeed.config)
    micro, accumulation = batch_split(recipe.train, world_size=world_size)
    contrastive = isinstance(recipe, (SimcseRecipe, SupervisedRecipe))
    if contrastive and recipe.train.global_batch_rows < 2:
        raise BadInput("train.global_batch_rows=1: a contrastive row needs others beside it")
    if recipe.train.micro_batch_tokens is not None and recipe.model.attention != "packed":
        raise BadInput(
            f"train.micro_batch_tokens={recipe.train.micro_batch_tokens} needs "
            f"model.attention=packed, not {recipe.model.attention}; use train.micro_batch_rows"
        )
    if isinstance(recipe, SupervisedRecipe):
        _check_instruction_format(recipe.supervised.instruction_format)
        if number := recipe.data.held_out_documents:
            raise BadInput(f"data.held_out_documents={number}: pairs are of no documents; give 0")
    check_no_blocks(recipe)
    _check_schedule(recipe)
    check_run_dir(recipe)
    return micro, accumulation


def _check_schedule(recipe: TrainingRecipe) -> None:
    train = recipe.train
    if train.steps > train.horizon_steps:
        raise BadInput(
            f"train.steps={train.steps} is beyond train.horizon_steps={train.horizon_steps}, where "
            "the learning rate reaches zero; raise that as well (of a run that has begun, with "
            "train.may_differ=[train.horizon_steps])"
        )
    held_out = isinstance(recipe, MntpRecipe) and recipe.data.held_out_documents
    if train.keep_best and not train.probe and not held_out:
        raise BadInput(
            f"train.keep_best=true: nothing says which checkpoint of {recipe.kind} is best; give "
            "train.probe, or of MNTP data.held_out_documents (in a pipeline, STAGE.train.keep_best)"
        )


def deepspeed_layout(name: str) -> dict[str, Any]:
    """The DeepSpeed JSON behind `deepspeed.config`; refuses what recipes own and "auto"."""
    path = DEEPSPEED_DIR / f"{name.removesuffix('.json')}.json"
    if "/" in name or not path.is_file():
        path = Path(name)
    if not path.is_file():
        valid = sorted(p.stem for p in DEEPSPEED_DIR.glob("*.json"))
        told = f"{name!r} is neither a file nor one of {', '.join(valid)}"
        raise BadInput(f"deepspeed.config: {told}{did_you_mean(name, valid)}")
    try:
        layout = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadInput(f"{path}: is not valid JSON ({error})") from error
    owned = {
        "train_batch_size": "train.global_batch_rows",
        "train_micro_batch_size_per_gpu": "train.micro_batch_rows",
        "gradient_accumulation_steps": "train.global_batch_rows",
        "gradient_clipping": "train.clip_norm",
        "bf16": "model.dtype",
        "fp16": "model.dtype",
        "optimizer": "train.lr",
        "scheduler": "train.horizon_steps",
    }
    for key, owner in owned.items():
        if key in layout:
            raise BadInput(f"{path}: {key} belongs to the recipe ({owner}), not to the layout")
    for key, value in flatten(layout).items():
        if value == "auto":
            told = '"auto", which DeepSpeed drops silently: write a value'
            raise BadInput(f"{path}: {key} is {told}")
    return dict(layout)


def resolve_model(reference: str) -> str:
    """The model folder or hub name behind `reference`; a run directory stands for its encoder."""
    path = Path(reference)
    if not path.exists():
        # owner/name is a hub name, unless the owner is a folder here: runs/mtnp is a slip.
        looks_local = reference.startswith((".", "/", "~")) or Path(path.parts[0]).is_dir()
        if looks_local or not HUB_NAME.fullmatch(reference):
            raise BadInput(f"model {reference!r}: no such folder, and not a hub name (owner/name)")
        return reference
    if (path / "checkpoints").is_dir():
        if not is_committed(path / ENCODER_DIR):
            raise BadInput(
                f"model {reference!r} is a run directory without an encoder: let the run finish, "
                f"or export its newest checkpoint: python -m toolkit.export {reference} OUT"
            )
        return str(path / ENCODER_DIR)
    if is_adapter(path):
        raise BadInput(
            f"model {reference!r} is an adapter; merge it into its base first: "
            f"python -m toolkit.export {reference} OUT"
        )
    if not (path / "config.json").is_file():
        raise BadInput(f"model {reference!r}: the folder has no config.json")
    if not any(path.glob("*.safetensors")):
        raise BadInput(
            f"model {reference!r}: the folder has no weights (*.safetensors); "
            "download the model whole, or convert its weights to safetensors"
        )
    return reference


def is_adapter(path: Path) -> bool:
    """Whether a folder holds an adapter in PEFT's layout, and no whole model."""
    return (path / ADAPTER_CONFIG).is_file() and not any(path.glob("model*.safetensors*"))


def _check_instruction_format(text: str) -> None:
    try:
        known = text.format(instruction="") != text and "{instruction}" in text
    except (KeyError, IndexError, ValueError):
        known = False
    if not known:
        valid = 'write a text with {instruction} in it, such as "{instruction}; "'
        raise BadInput(f"supervised.instruction_format={text!r}: {valid}")


def check_run_dir(recipe: TrainingRecipe) -> None:
    """Raise `BadInput` where the run directory belongs to another recipe."""
    path = Path(recipe.run_dir)
    if path.exists() and not path.is_dir():
        raise BadInput(f"run_dir={recipe.run_dir} is a file: choose another")
    if not (path / "config.yaml").is_file():
        return
    before = load_recipe(str(path / "config.yaml"))
    check_no_blocks(before)
    old = flatten(before.model_dump(mode="json"))
    new = flatten(recipe.model_dump(mode="json"))
    if unknown := [key for key in recipe.train.may_differ if key not in new]:
        near = did_you_mean(unknown[0], new)
        raise BadInput(f"train.may_differ: {unknown[0]!r} is no key of this recipe{near}")
    free = FREE_KEYS | set(recipe.train.may_differ)
    keys = [k for k in {**old, **new} if old.get(k) != new.get(k) and not _and_above(k) & free]
    if keys:
        differing = [f"{key} was {old.get(key)}, now {new.get(key)}" for key in keys[:3]]
        raise BadInput(
            f"run_dir={recipe.run_dir} belongs to another recipe: {'; '.join(differing)}. "
            "Choose another run_dir, or give the recipe of that run; to go on with what differs, "
            f"name it: train.may_differ=[{','.join(keys)}]"
        )


def _and_above(key: str) -> set[str]:
    """A key with those of the sections that it stands in."""
    parts = key.split(".")
    return {".".join(parts[:number]) for number in range(1, len(parts) + 1)}


def _set_key(data: dict[str, Any], *, key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        inner = data.get(parent)
        if inner is None:
            inner = data[parent] = {}
        if not isinstance(inner, dict):
            raise BadInput(f"key {key!r}: {parent!r} is a value, not a group of keys")
        data = inner
    data[last] = value


def _explain(error: ValidationError, *, model: type[Recipe]) -> str:
    parts = []
    for item in error.errors()[:3]:
        location = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            section = section_at(model, path=item["loc"][:-1])
            valid = ", ".join(section.model_fields) if section else "see the recipe"
            near = did_you_mean(location, keys_of(model, beside=item["loc"]))
            parts.append(f"unknown key {location!r}; valid keys here: {valid}{near}")
        elif item["type"] == "missing":
            parts.append(f"key {location!r} is missing")
        else:
            shown = json.dumps(item["input"])[:80]
            parts.append(
                f"key {location!r}: {item['msg'][:1].lower()}{item['msg'][1:]}, not {shown}"
            )
    more = error.error_count() - len(parts)
    return "; ".join(parts) + (f"; and {more} more" if more > 0 else "")


def _keys_of_stages(pipeline: PipelineRecipe) -> list[str]:
    own = {name: keys_of(_stage_type(stage)) for name, stage in pipeline.stages.items()}
    shared = dict.fromkeys(key for keys in own.values() for key in keys)
    return [*shared, *(f"{name}.{key}" for name, keys in own.items() for key in keys)]


def _stage_type(stage: Stage) -> type[Recipe]:
    return type(load_recipe(stage.recipe))


def flatten(data: Mapping[str, Any], *, prefix: str = "") -> dict[str, Any]:
    """Nested settings as `group.key` to value."""
    flat: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, dict):
            flat |= flatten(value, prefix=f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _fill(value: Any, *, values: Mapping[str, Any]) -> Any:
    if not isinstance(value, str):
        return value

    def replace(match: re.Match[str]) -> str:
        if match[1] not in values:
            raise BadInput(f"{{{match[1]}}}: valid placeholders: {', '.join(values)}")
        return str(values[match[1]])

    return re.sub(r"\{([a-z_.]+)\}", replace, value)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
