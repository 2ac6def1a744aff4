"""What all settings are: strict, frozen, typed groups of values.

Knows types and ranges. Refuses to know what is set.
"""

import types
from collections.abc import Sequence
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field

Count = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]  # what torch and numpy take
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Probability = Annotated[float, Field(gt=0, le=1)]
Text = Annotated[str, Field(min_length=1)]

GROUPS = (Union, types.UnionType, dict, Annotated)  # what may hold a group of settings with keys


class Section(BaseModel):
    """A frozen group of settings; an unknown key or a value of another type is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


def section_at(model: type[BaseModel], *, path: Sequence[int | str]) -> type[BaseModel] | None:
    """The group of settings at a path of names; names of dictionary entries and
    numbers of list items are skipped."""
    section: type[BaseModel] = model
    for part in path:
        if str(part) in section.model_fields:
            annotation = section.model_fields[str(part)].annotation
            inner = _inner_section(annotation, inside=(*GROUPS, tuple))
            if inner is None:
                return None
            section = inner
    return section


def _inner_section(annotation: Any, *, inside: Sequence[object] = GROUPS) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in inside:
        parts = get_args(annotation)
        return next((s for part in parts if (s := _inner_section(part, inside=inside))), None)
    return None


def has_key(model: type[BaseModel], *, key: str) -> bool:
    """Whether a recipe's type has the dotted key."""
    *parents, last = key.split(".")
    if parents and parents[0] not in model.model_fields:
        return False
    section = section_at(model, path=parents)
    return section is not None and last in section.model_fields


def keys_of(model: type[BaseModel], *, beside: Sequence[int | str] = ()) -> list[str]:
    """All dotted keys of a recipe's type. The keys of the group that holds the key `beside` come
    first, so that `did_you_mean` prefers them."""
    keys = []
    if (section := section_at(model, path=beside[:-1])) and beside:
        keys = [".".join(map(str, (*beside[:-1], name))) for name in section.model_fields]
    for name, field in model.model_fields.items():
        inner = _inner_section(field.annotation)
        keys += [name, *(f"{name}.{key}" for key in (keys_of(inner) if inner else ()))]
    return keys
