"""Recipes for the bases of a table: a template for each stage, in which a base is filled in.

    recipes/bases/table.yaml    a row for each base: hub name, shape, size, source of its facts
    recipes/bases/sizes.yaml    what a size of model changes
    recipes/bases/written.yaml  shapes of the bases whose recipes are written out
    recipes/bases/STAGE.yaml    the templates, written as any recipe

Knows the text of recipes. Refuses to know what their settings mean.
"""

import functools
from collections.abc import Mapping
from typing import Any, Literal, NotRequired

import yaml
from typing_extensions import TypedDict  # pydantic wants this one before Python 3.12

from toolkit.base.documents import checked
from toolkit.settings.catalogue import BASE_DIR, STAGES

UNKNOWN = "no figure of this recipe on this base is known"


class Base(TypedDict):
    """A row of the table. `config` has the names of a config.json."""

    hub: str
    fits: str
    source: str
    size: Literal["small", "large", "experts"]
    config: dict[str, Any]
    target: NotRequired[str]
    note: NotRequired[str]


class Shape(TypedDict):
    """A base whose recipes are written out."""

    hub: str
    config: dict[str, Any]


class Size(TypedDict):
    """What a size changes: dotted settings of each stage."""

    hardware: str
    mntp: NotRequired[dict[str, Any]]
    simcse: NotRequired[dict[str, Any]]
    supervised: NotRequired[dict[str, Any]]


@functools.cache
def bases() -> Mapping[str, Base]:
    """The rows of the table, by name."""
    rows: Mapping[str, Base] = _read("table", dict[str, Base])
    return rows


def recipe_of(stage: str, base: str) -> dict[str, Any]:
    """The recipe of a stage for a base, not checked yet."""
    row = bases()[base]
    sizes: Mapping[str, Mapping[str, Any]] = _read("sizes", dict[str, Size])
    data: dict[str, Any] = yaml.safe_load(recipe_text(stage, base))
    for key, value in sizes[row["size"]].get(stage, {}).items():
        *parents, last = key.split(".")
        group = data
        for parent in parents:
            group = group[parent]
        group[last] = value
    return data


def recipe_text(stage: str, base: str) -> str:
    """The template of a stage with a base filled in, its comments included."""
    row = bases()[base]
    size = _read("sizes", dict[str, Size])[row["size"]]
    text = (BASE_DIR / f"{stage}.yaml").read_text(encoding="utf-8")
    filled = {
        "base": base,
        "hub": row["hub"],
        "hardware": size["hardware"],
        "expected": row.get("target", UNKNOWN) + (f". {row['note']}" if "note" in row else ""),
    }
    for name, value in filled.items():
        text = text.replace(f"{{{name}}}", value)
    return text


def config_of(model: str) -> Mapping[str, Any] | None:
    """The shape of a base that recipes of the project have, by its hub name or by the run directory
    of an earlier stage for it; None for others."""
    written: Mapping[str, Shape] = _read("written", dict[str, Shape])
    for name, row in {**bases(), **written}.items():
        if model in (row["hub"], *(f"runs/{stage}_{name}" for stage in STAGES)):
            return row["config"]
    return None


def _read(name: str, kind: Any) -> Any:
    path = BASE_DIR / f"{name}.yaml"
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    return checked(content, kind, source=path, advice="install the toolkit again")
