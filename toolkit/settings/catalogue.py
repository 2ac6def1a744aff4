"""What the project ships beside its code: recipes by kind, DeepSpeed layouts, scripts.

Knows their names, and where they are in a checkout and in an installed package. Refuses to know
their contents: of a recipe it reads only the line with its kind, since parsing YAML would slow down
every help text.
"""

import functools
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path

from toolkit.base.errors import BadInput, did_you_mean

PACKAGE = Path(__file__).parents[1]
RECIPE_DIR = PACKAGE / "recipes"
# Recipes that are made of a template and a base (`settings.bases`), by stage.
BASE_DIR = RECIPE_DIR / "bases"
STAGES = {"mntp": "mntp", "simcse": "simcse", "supervised": "supervised", "llm2vec": "pipeline"}
_KIND = re.compile(r"^kind: *(\w+)", re.MULTILINE)
_WIDTH = 100


def shipped(folder: str) -> Path:
    """The path of a folder that users edit: at the top of a checkout, inside an installed
    package."""
    inside = PACKAGE / folder
    return inside if inside.is_dir() else PACKAGE.parent / folder


def recipe_names(kinds: Sequence[str] = ()) -> list[str]:
    """The names of the recipes that the project ships, of these kinds or (empty) of any."""
    return [name for name, kind in _kinds().items() if not kinds or kind in kinds]


def recipes_text(kinds: Sequence[str] = ()) -> str:
    """The recipes of these kinds, a paragraph per kind, as the end of a help text."""
    lines = ["recipes of the project:"]
    every = list(kinds) or sorted(set(_kinds().values()))
    lines += [_paragraph(kind, _short_names([kind]) or ["none"]) for kind in every]
    if not set(every).isdisjoint(STAGES.values()):
        lines.append(_paragraph("BASE:", _bases()))
    return "\n".join(lines)


def _paragraph(head: str, names: Sequence[str]) -> str:
    first = f"  {head:<11} "
    after = " " * len(first)
    return textwrap.fill(", ".join(names), _WIDTH, initial_indent=first, subsequent_indent=after)


def made_of(name: str) -> tuple[str, str] | None:
    """The stage and the base that a recipe is made of; None for one that has a file."""
    stage, _, base = name.partition("_")
    return (stage, base) if stage in STAGES and base in _bases() else None


def recipe_path(name: str, *, kinds: Sequence[str] = ()) -> Path:
    """The file of a recipe, given by name or path. Raises `BadInput`, which lists the recipes of
    `kinds`, when there is none."""
    path = RECIPE_DIR / f"{name.removesuffix('.yaml')}.yaml"
    if "/" not in name and path.is_file():
        return path
    if Path(name).is_file():
        return Path(name)
    near = did_you_mean(name, recipe_names(kinds))
    valid = ", ".join(_short_names(kinds))
    raise BadInput(f"unknown recipe {name!r}; a YAML file or one of: {valid}{near}")


def _short_names(kinds: Sequence[str]) -> list[str]:
    """The recipes of these kinds, all bases of the table in one name."""
    names = [name for name in recipe_names(kinds) if made_of(name) is None]
    return names + [f"{stage}_BASE" for stage, of in STAGES.items() if not kinds or of in kinds]


@functools.cache
def _kinds() -> dict[str, str]:
    """The kind of every recipe of the project, by name."""
    kinds = {}
    for path in sorted(RECIPE_DIR.glob("*.yaml")):
        match = _KIND.search(path.read_text(encoding="utf-8"))
        kinds[path.stem] = match[1] if match else ""
    made = {f"{stage}_{base}": kind for stage, kind in STAGES.items() for base in _bases()}
    return dict(sorted((kinds | made).items()))


@functools.cache
def _bases() -> tuple[str, ...]:
    """The names of the bases of the table."""
    text = (BASE_DIR / "table.yaml").read_text(encoding="utf-8")
    return tuple(re.findall(r"^(\w+):$", text, re.MULTILINE))
