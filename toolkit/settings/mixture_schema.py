"""What a recipe may say about where training samples come from: one source, or several with shares.

Knows which shares fit together. Refuses to know what is in a source.
"""

import math
from os.path import normpath
from typing import Annotated, Any

from pydantic import PlainValidator
from pydantic_core import PydanticCustomError

from toolkit.base.errors import BadInput

MAX_MISSING = 1e-6  # of 1, the sum of the shares: thirds are not exact in decimals

Paths = str | dict[str, float]


def sources_of(train: Paths) -> dict[str, float]:
    """The share of the samples that each source gives, by its path, in the order of paths; all of
    them from a single one."""
    return {train: 1.0} if isinstance(train, str) else dict(sorted(train.items()))


def single_source(train: Paths) -> str:
    """The only source. Raises `BadInput` for several."""
    sources = list(sources_of(train))
    if len(sources) > 1:
        raise BadInput(
            f"data.train: has {len(sources)} sources, which only mntp and simcse mix; pairs of "
            "several data sets make one folder (data_scripts/prepare_pairs.py)"
        )
    return sources[0]


def _checked(train: Any) -> Paths:
    if isinstance(train, str) and train:
        return train
    if not isinstance(train, dict) or not train or "" in train:
        raise _refusal("give a path, or a share for each of several")
    if not all(_is_share(share) for share in train.values()):
        raise _refusal("a share is a number above 0 and at most 1; leave out what has none")
    # The shares of a folder that is there twice would be those of two different shuffles of it.
    if len({normpath(path) for path in train}) < len(train):
        raise _refusal("two of these paths are the same folder; name it once")
    if abs((total := math.fsum(train.values())) - 1) > MAX_MISSING:
        raise _refusal(f"the sum of the shares is {total:.9g}, and must be 1")
    return {path: float(share) for path, share in train.items()}


def _is_share(value: Any) -> bool:
    # In Python True is an int, but it is not a share.
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 1


def _refusal(what: str) -> PydanticCustomError:
    return PydanticCustomError("sources", "{what}", {"what": what})


Sources = Annotated[Paths, PlainValidator(_checked)]
