"""The objective of a recipe, by its kind.

Knows all objectives, so that a run need not. Refuses to know how any is computed.
"""

from typing import Any

from toolkit.base.errors import BadInput
from toolkit.model.vector_rules import trained_rules
from toolkit.settings.schema import (
    GradedRecipe,
    MntpRecipe,
    SimcseRecipe,
    SupervisedRecipe,
    TrainingRecipe,
)
from toolkit.text.tokens import TextTokenizer
from toolkit.training.data import is_packed
from toolkit.training.graded import GradedObjective
from toolkit.training.mntp import MntpObjective
from toolkit.training.objective import Objective
from toolkit.training.simcse import SimcseObjective
from toolkit.training.supervised import SupervisedObjective
from toolkit.training.teacher import open_teaching


def build_objective(recipe: TrainingRecipe, *, tokenizer: TextTokenizer) -> Objective[Any, Any]:
    """The objective of a recipe. Raises `BadInput` when the mask token is not in the vocabulary."""
    if isinstance(recipe, MntpRecipe):
        mask_id = tokenizer.token_id(recipe.mntp.mask_token)
        if mask_id is None:
            raise BadInput(
                f"mntp.mask_token={recipe.mntp.mask_token!r} is not a token of this model; "
                'use one that stands for itself, such as "_"'
            )
        tokenizer.check_largest(mask_id, where=f"mntp.mask_token={recipe.mntp.mask_token!r}")
        return MntpObjective(
            settings=recipe.mntp,
            tokenizer=tokenizer,
            seed=recipe.train.seed,
            mask_id=mask_id,
            packed=is_packed(recipe),
            kernel="liger" if recipe.model.kernels == "liger" else "torch",
        )
    packed, low_precision = is_packed(recipe), recipe.model.dtype == "bf16"
    rules, teaching = trained_rules(recipe.model), open_teaching(recipe)
    if isinstance(recipe, SupervisedRecipe):
        return SupervisedObjective(
            recipe.supervised,
            tokenizer=tokenizer,
            packed=packed,
            rules=rules,
            low_precision=low_precision,
            teaching=teaching,
        )
    if isinstance(recipe, GradedRecipe):
        return GradedObjective(recipe.graded, tokenizer=tokenizer, packed=packed, rules=rules)
    assert isinstance(recipe, SimcseRecipe)
    return SimcseObjective(
        recipe.simcse,
        tokenizer=tokenizer,
        packed=packed,
        rules=rules,
        low_precision=low_precision,
        teaching=teaching,
    )
