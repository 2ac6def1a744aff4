"""What a recipe may say about vectors that are trained for the form in which they will be stored.

Knows forms, widths and weights. Refuses to know how a number is rounded.
"""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from toolkit.settings.section import Count, Positive, Section

RoundedFormat = Literal["int8", "binary"]  # the others round too little to train for


class Stored(Section):
    """A form in which vectors will be stored, by `vectors` and `dims` of toolkit.encode. The loss
    on vectors in this form counts `weight` times as much as that on the plain vectors."""

    vectors: RoundedFormat
    dims: Count | None = None
    weight: Positive = 1.0

    @property
    def name(self) -> str:
        """For people and metrics, such as "binary" or "int8_128"."""
        return self.vectors if self.dims is None else f"{self.vectors}_{self.dims}"


def _distinct(forms: tuple[Stored, ...]) -> tuple[Stored, ...]:
    names = [form.name for form in forms]
    if twice := [name for name in names if names.count(name) > 1]:
        what = f"{twice[0]} is there twice; give it once, with a weight"
        raise PydanticCustomError("stored_as", "{what}", {"what": what})
    return forms


class ForStorage(Section):
    """What contrastive training does for stored vectors; by default nothing.

    The loss is the weighted mean of the loss on the plain vectors (weight 1) and of those on the
    vectors in each form of `stored_as`. To it is added `spread_out_weight` times a term that
    spreads the vectors of different texts out.
    """

    stored_as: Annotated[tuple[Stored, ...], AfterValidator(_distinct)] = ()
    spread_out_weight: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0

    def cuts(self, dims: Sequence[int] = ()) -> tuple[int, ...]:
        """The widths to which vectors are cut, those of `dims` among them."""
        return tuple(sorted({*dims, *(form.dims for form in self.stored_as if form.dims)}))
