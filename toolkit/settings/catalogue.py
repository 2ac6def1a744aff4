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
    by_kind: dict[str, list[str]] = {}
    for name, kind in _kinds().items():
        if not kinds or kind in kinds:
            by_kind.setdefault(kind, []).append(name)
    lines = ["recipes of the project:"]
    for kind in kinds or by_kind:
        names = ", ".join(by_kind.get(kind, ["none"]))
        head = f"  {kind:<11} "
        lines.append(
            textwrap.fill(names, _WIDTH, initial_indent=head, subsequent_indent=" " * len(head))
        )
    return "\n".join(lines)


def recipe_path(name: str, *, kinds: Sequence[str] = ()) -> Path:
    """The file of a recipe, given by name or path. Raises `BadInput`, which lists the recipes of
    `kinds`, when there is none."""
    path = RECIPE_DIR / f"{name.removesuffix('.yaml')}.yaml"
    if "/" not in name and path.is_file():
        return path
    if Path(name).is_file():
        return Path(name)
    valid = recipe_names(kinds)
    near = did_you_mean(name, valid)
    raise BadInput(f"unknown recipe {name!r}; a YAML file or one of: {', '.join(valid)}{near}")


@functools.cache
def _kinds() -> dict[str, str]:
    """The kind of every recipe of the project, by name."""
    kinds = {}
    for path in sorted(RECIPE_DIR.glob("*.yaml")):
        match = _KIND.search(path.read_text(encoding="utf-8"))
        kinds[path.stem] = match[1] if match else ""
    return kinds
