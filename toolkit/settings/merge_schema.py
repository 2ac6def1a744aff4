"""What a recipe may say about merging encoders, and about the choice between what was merged.

Knows names, types, ranges, and which of them fit together. Refuses to know weights and scores.
"""

import math
from collections.abc import Collection, Mapping
from typing import Annotated, Literal

from pydantic import Field

from toolkit.base.errors import BadInput, did_you_mean
from toolkit.settings.section import Probability, Section, Text

Method = Literal["linear", "slerp", "ties"]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
# Of a folder in the output directory: never a path, and never hidden.
FolderName = Annotated[str, Field(pattern=r"^[^./][^/]*$")]
MAX_MISSING = 1e-6  # of 1, the sum of the weights: thirds are not exact in decimals


class MergeRecipe(Section):
    """A merge of encoders of one base into one, by name: finished runs, exports, model folders, or
    adapters.

    `ratios`, of two models: each is the weight of the second model, and its encoder is written to
    `output_dir/RATIO`. Or `weights`: by the name of a folder in `output_dir`, one weight per model,
    in their order.

    `method`: linear is the weighted mean. slerp goes along the arc between two models, for each
    tensor. ties (Yadav et al. 2023) needs `base`, the model that all of them were trained from: of
    each difference from it the share `density` is kept, and numbers with the sign of the minority
    are left out of the mean. `dtype` null is that of the first model.
    """

    kind: Literal["merge"]
    output_dir: Text
    models: Annotated[dict[Text, Text], Field(min_length=2)]
    method: Method = "linear"
    ratios: tuple[Share, ...] = ()
    weights: dict[FolderName, tuple[Share, ...]] = {}
    base: Text | None = None
    density: Probability | None = None
    dtype: Literal["fp32", "bf16"] | None = None

    def merges(self) -> dict[str, tuple[float, ...]]:
        """The weights of each encoder that is to be made, by the name of its folder."""
        return {ratio_name(ratio): (1.0 - ratio, ratio) for ratio in self.ratios} | self.weights


class Forgetting(Section):
    """A choice among merges of a general encoder and one of a domain, by the main scores of tasks.

    `ratios` has the share of the domain for each encoder that takes part, 0 for the general encoder
    itself. The encoder with the best mean of the `domain` tasks is chosen, among those whose mean
    of the `general` tasks is at most `tolerance` below that of the general encoder."""

    general: Annotated[tuple[Text, ...], Field(min_length=1)]
    domain: Annotated[tuple[Text, ...], Field(min_length=1)]
    ratios: Annotated[dict[Text, Share], Field(min_length=2)]
    tolerance: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.01


def ratio_name(ratio: float) -> str:
    """The name of a ratio's folder: 0.25, and 1 for 1.0."""
    return f"{ratio:g}"


def check_merge(recipe: MergeRecipe) -> None:
    """Raise `BadInput` for settings that do not fit each other."""
    count, method = len(recipe.models), recipe.method
    if bool(recipe.weights) == bool(recipe.ratios):
        raise BadInput(
            "weights and ratios: give one of them; weights are one number per model, and each of "
            "the ratios is the weight of the second of two models"
        )
    for weights in recipe.weights.values():
        shown = ", ".join(f"{weight:g}" for weight in weights)
        if len(weights) != count:
            raise BadInput(f"weights {shown}: are {len(weights)} for {count} models; one per model")
        if abs((total := math.fsum(weights)) - 1) > MAX_MISSING:
            raise BadInput(f"weights {shown}: their sum is {total:g}, and must be 1")
    if recipe.ratios and count != 2:
        raise BadInput(f"ratios: are of two models, and there are {count}; give weights")
    names = [ratio_name(ratio) for ratio in recipe.ratios]
    if twice := [name for name in names if names.count(name) > 1]:
        raise BadInput(f"ratios: {twice[0]} is there twice")
    if method == "slerp" and count != 2:
        raise BadInput(f"method slerp: takes two models, not {count}; valid: linear, ties")
    for name, value in (("base", recipe.base), ("density", recipe.density)):
        if method == "ties" and value is None:
            what = "the model that all were trained from" if name == "base" else "such as 0.2"
            raise BadInput(f"method ties: needs {name}, {what}")
        if method != "ties" and value is not None:
            raise BadInput(f"{name} {value}: goes with the method ties, not with {method}")


def check_forgetting(
    asked: Forgetting, *, encoders: Mapping[str, Collection[str]], tasks: Collection[str]
) -> None:
    """Raise `BadInput` for a choice that cannot be made among these `encoders`, each with its
    adapters, and `tasks`."""
    for key, names, valid in (
        ("ratios", asked.ratios, encoders),
        ("general", asked.general, tasks),
        ("domain", asked.domain, tasks),
    ):
        if strange := [name for name in names if name not in valid]:
            what = "encoder" if key == "ratios" else "task"
            near = did_you_mean(strange[0], valid)
            raise BadInput(
                f"forgetting.{key}: no {what} {strange[0]!r}; there are {', '.join(valid)}{near}"
            )
    if both := [name for name in asked.general if name in asked.domain]:
        raise BadInput(f"forgetting: {both[0]!r} is a general task and one of the domain")
    ratios = list(asked.ratios.values())
    if ratios.count(0) != 1:
        raise BadInput(
            f"forgetting.ratios: {ratios.count(0)} encoders have the ratio 0; exactly one is the "
            "general encoder, from which a drop is counted"
        )
    if twice := [ratio for ratio in ratios if ratios.count(ratio) > 1]:
        raise BadInput(f"forgetting.ratios: two encoders have the ratio {twice[0]:g}")
    if adapted := [name for name in asked.ratios if encoders[name]]:
        raise BadInput(
            f"forgetting.ratios: {adapted[0]!r} has adapters, and a choice names one model; export "
            "it with its adapters first"
        )
