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

from toolkit.base.errors import BadInput, did_you_mean
from toolkit.base.shown import as_yaml
from toolkit.settings.bases import recipe_of
from toolkit.settings.catalogue import PACKAGE, made_of, recipe_path
from toolkit.settings.schema import (
    KINDS,
    Recipe,
    TrainingRecipe,
)
from toolkit.settings.section import keys_of, section_at

WHOLE = ("data.train",)  # groups whose names are no keys: paths may have dots in them


class _Loader(yaml.SafeLoader):
    """Safe YAML that reads 1e-3 as a number, as everybody expects (in YAML 1.1 it is text)."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def load_recipe(name: str, *, overrides: Sequence[str] = (), kinds: Sequence[str] = ()) -> Recipe:
    """Read a recipe by name or path and apply `key.path=value` overrides, in order.

    `{toolkit}` in a recipe stands for the installed package's folder. Raises `BadInput`, which
    names the offending key and value and what would be valid; for an unknown name it lists the
    recipes of `kinds`.
    """
    made = made_of(name)
    data, source = (recipe_of(*made), name) if made else _from_file(recipe_path(name, kinds=kinds))
    for override in overrides:
        key, value = parse_override(override)
        _set_key(data, key=key, value=value)
    return parse_recipe(data, source=source)


def _from_file(path: Path) -> tuple[dict[str, Any], str]:
    """The content of a recipe's file, and its name."""
    try:
        text = path.read_text(encoding="utf-8").replace("{toolkit}", str(PACKAGE))
        data = yaml.load(text, Loader=_Loader)  # noqa: S506 (safe)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise BadInput(f"{path}: cannot be read as a recipe ({_one_line(error)})") from error
    if not isinstance(data, dict):
        raise BadInput(f"{path}: a recipe is a YAML mapping with a `kind`")
    return data, path.stem


def parse_recipe(data: Mapping[str, Any], *, source: str) -> Recipe:
    """Check a mapping and return the typed recipe; `source` is named in errors."""
    kind = data.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        raise BadInput(f"{source}: kind is {kind!r}; valid kinds: {', '.join(KINDS)}")
    model = KINDS[kind]
    try:
        # Validate it as JSON: strict typing then accepts a list for a tuple, and nothing else.
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
    """The whole resolved recipe as YAML, in the order in which the settings are defined."""
    return as_yaml(recipe.model_dump(mode="json"))


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
            choices = re.findall(r"'([^']+)'", item.get("ctx", {}).get("expected", ""))
            near = did_you_mean(str(item["input"]), choices)
            parts.append(
                f"key {location!r}: {item['msg'][:1].lower()}{item['msg'][1:]}, not {shown}{near}"
            )
    more = error.error_count() - len(parts)
    return "; ".join(parts) + (f"; and {more} more" if more > 0 else "")


def flatten(data: Mapping[str, Any], *, prefix: str = "") -> dict[str, Any]:
    """Nested settings as one flat mapping from `group.key` to value; `WHOLE` groups are values."""
    flat: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, dict) and f"{prefix}{key}" not in WHOLE:
            flat |= flatten(value, prefix=f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
