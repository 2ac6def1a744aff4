"""What a JSON document must look like, given as types and checked before anything in it is used.

Knows pydantic. Refuses to know files. A document that parses may still hold anything: a list
instead of a mapping, text instead of a number, a number too large for any array.
"""

import functools
from collections.abc import Hashable
from typing import Annotated, Any, TypeVar, cast

from pydantic import Field, TypeAdapter, ValidationError

from toolkit.base.errors import BadInput

Form = TypeVar("Form")

Count = Annotated[int, Field(ge=0, le=2**40)]  # rows or bytes; a larger number is damage
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]*$")]  # never a path


def checked(content: object, form: type[Form], *, source: object, advice: str) -> Form:
    """Return `content` unchanged if it has the given form (a TypedDict, for example); keys that the
    form does not name are allowed. `BadInput` names the source, the first wrong place, and
    `advice`."""
    try:
        _adapter(cast(Hashable, form)).validate_python(content, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        said = f"{place}: {first['msg']}" if place else str(first["msg"])
        raise BadInput(f"{source}: is damaged or not ours ({said[:200]!r}); {advice}") from error
    return cast(Form, content)


@functools.cache
def _adapter(form: Hashable) -> TypeAdapter[Any]:
    return TypeAdapter(cast(type[Any], form))
