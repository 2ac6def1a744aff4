"""The conditions that a training recipe must meet to run: ranks, steps, layout, run directory.

Without torch, so that a launcher can check them before a job waits in a queue.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from toolkit.base.errors import BadInput, did_you_mean
from toolkit.base.layout import CONFIG_FILE
from toolkit.settings.layouts import read_layout
from toolkit.settings.mixture_schema import single_source
from toolkit.settings.recipes import flatten, load_recipe
from toolkit.settings.schema import (
    GradedRecipe,
    MntpRecipe,
    SimcseRecipe,
    SupervisedRecipe,
    Train,
    TrainingRecipe,
)
from toolkit.settings.section import Section
from toolkit.settings.storage_schema import ForStorage

# The keys (with all keys below them) that may differ between a run and its continuation. A change
# of any other key would make it a different run.
FREE_KEYS = {"run_dir", "deepspeed", "train.steps", "train.views", "train.may_differ"}
FREE_KEYS |= {"train.micro_batch_rows", "train.micro_batch_tokens", "train.log_every_steps"}
FREE_KEYS |= {"train.save_every_steps", "train.keep_checkpoints", "train.keep_every_steps"}
FREE_KEYS |= {"train.keep_best", "train.background_save", "train.probe", "train.max_skipped_steps"}
FREE_KEYS |= {"train.heartbeat_s", "train.stall_s"}
FREE_KEYS |= {"model.activation_checkpointing", "model.kernels"}  # the gradients are the same
FREE_KEYS |= {"mntp.evaluate_every_steps"}

Training = TypeVar("Training", bound=TrainingRecipe)


def check_training(recipe: TrainingRecipe, *, world_size: int) -> tuple[int, int]:
    """Raise `BadInput` for a recipe that cannot run on `world_size` ranks or in its run directory.
    Returns the rows per micro-batch and the number of accumulation steps."""
    read_layout(recipe.deepspeed.config)
    micro, accumulation = batch_split(recipe.train, world_size=world_size)
    contrastive = isinstance(recipe, (SimcseRecipe, SupervisedRecipe, GradedRecipe))
    if contrastive and recipe.train.global_batch_rows < 2:
        raise BadInput("train.global_batch_rows=1: a contrastive row needs others beside it")
    if recipe.train.micro_batch_tokens is not None and recipe.model.attention != "packed":
        raise BadInput(
            f"train.micro_batch_tokens={recipe.train.micro_batch_tokens} needs "
            f"model.attention=packed, not {recipe.model.attention}; use train.micro_batch_rows"
        )
    if isinstance(recipe, SupervisedRecipe):
        _check_instruction_format(recipe.supervised.instruction_format)
    if isinstance(recipe, (SupervisedRecipe, GradedRecipe)) and recipe.data.held_out_documents:
        number = recipe.data.held_out_documents
        raise BadInput(
            f"data.held_out_documents={number}: pairs do not come from documents; give 0"
        )
    if isinstance(recipe, (SupervisedRecipe, GradedRecipe)):
        single_source(recipe.data.train)
    check_no_blocks(recipe)
    _check_fp8(recipe)
    _check_storage(recipe)
    _check_pooling(recipe)
    _check_steps(recipe)
    check_run_dir(recipe)
    return micro, accumulation


def _check_fp8(recipe: TrainingRecipe) -> None:
    if not recipe.model.fp8:
        return
    if recipe.model.lora is None:
        raise BadInput(
            "model.fp8=true keeps weights in 8 bits that are not trained, and model.lora=null "
            "trains all of them: give adapters, or model.fp8=false"
        )
    if read_layout(recipe.deepspeed.config).shares_weights:
        raise BadInput(
            f"deepspeed.config={recipe.deepspeed.config} deals the weights out to ranks, and those "
            "of model.fp8=true stay whole: use zero1 or zero2"
        )


def _check_pooling(recipe: TrainingRecipe) -> None:
    model, asked = recipe.model, recipe.model.pooling_text
    if isinstance(recipe, MntpRecipe) and (model.pooling, model.begin_token) != ("mean", "skip"):
        raise BadInput(
            f"{asked}: MNTP makes no vectors; leave both out here, and give them to the stages "
            "after it"
        )
    if model.pooling == "weighted_mean" and not model.pools_all:
        raise BadInput(
            f"{asked}: sentence-transformers' weighted mean leaves no token out; give "
            "model.begin_token=pool or none"
        )


def _check_storage(recipe: TrainingRecipe) -> None:
    if storage_of(recipe).stored_as and recipe.teacher and recipe.teacher.weight == 1:
        raise BadInput(
            f"{recipe.kind}.stored_as has no effect with {recipe.kind}.teacher.weight=1, which "
            "leaves InfoNCE out; give a weight below 1"
        )


def storage_of(recipe: TrainingRecipe) -> ForStorage:
    """What a recipe says about stored vectors; nothing, by default or of MNTP and graded pairs."""
    objective = getattr(recipe, recipe.kind)
    return objective if isinstance(objective, ForStorage) else ForStorage()


def check_widths(recipe: TrainingRecipe, *, width: int) -> None:
    """Raise `BadInput` for vectors that are to be stored with more than `width` numbers."""
    for form in storage_of(recipe).stored_as:
        if (form.dims or 0) > width:
            raise BadInput(
                f"{recipe.kind}.stored_as: dims={form.dims} of {form.vectors}, but the vectors of "
                f"{recipe.model.base} have {width} numbers; give at most so many, or leave dims out"
            )


def _check_steps(recipe: TrainingRecipe) -> None:
    train = recipe.train
    if train.steps > train.horizon_steps:
        raise BadInput(
            f"train.steps={train.steps} is beyond train.horizon_steps={train.horizon_steps}, where "
            "the learning rate reaches zero; raise that as well (of a run that has begun, with "
            "train.may_differ=[train.horizon_steps])"
        )
    held_out = isinstance(recipe, MntpRecipe) and recipe.data.held_out_documents
    if train.keep_best and not train.probe and not held_out:
        raise BadInput(
            f"train.keep_best=true: nothing says which checkpoint of {recipe.kind} is best; give "
            "train.probe, or of MNTP data.held_out_documents (in a pipeline, STAGE.train.keep_best)"
        )


def fit_to_ranks(
    recipe: Training, *, world_size: int, tell: Callable[[str], None] | None = None
) -> Training:
    """The recipe as `world_size` ranks run it: with `train.fit_ranks` the global batch becomes the
    next multiple of the ranks, and `tell` gets a line that says so."""
    train = recipe.train
    rows = math.ceil(train.global_batch_rows / world_size) * world_size
    if not train.fit_ranks or rows == train.global_batch_rows:
        return recipe
    if tell:
        tell(
            f"{recipe.kind}: train.global_batch_rows is {rows} instead of "
            f"{train.global_batch_rows}, which {world_size} ranks cannot share evenly "
            "(train.fit_ranks=true)"
        )
    larger = train.model_copy(update={"global_batch_rows": rows})
    return recipe.model_copy(update={"train": larger})


def batch_split(train: Train, *, world_size: int) -> tuple[int, int]:
    """Micro-batch rows per rank and accumulation steps: rows x steps x ranks = the global batch.

    `train.micro_batch_rows` is an upper bound: the largest divisor of a rank's rows below it is
    taken. Raises `BadInput` when the ranks do not divide the batch.
    """
    if train.global_batch_rows % world_size:
        raise BadInput(
            f"train.global_batch_rows={train.global_batch_rows} cannot be dealt to {world_size} "
            f"ranks; use a multiple of {world_size}, such as "
            f"{math.ceil(train.global_batch_rows / world_size) * world_size}"
        )
    local = train.global_batch_rows // world_size
    # DeepSpeed takes micro-batches of equal size only.
    micro = max(d for d in range(1, min(local, train.micro_batch_rows) + 1) if local % d == 0)
    return micro, local // micro


def _check_instruction_format(text: str) -> None:
    try:
        known = text.format(instruction="") != text and "{instruction}" in text
    except (KeyError, IndexError, ValueError):
        known = False
    if not known:
        valid = 'write a text with {instruction} in it, such as "{instruction}; "'
        raise BadInput(f"supervised.instruction_format={text!r}: {valid}")


def check_run_dir(recipe: TrainingRecipe) -> None:
    """Raise `BadInput` where the run directory belongs to another recipe."""
    path = Path(recipe.run_dir)
    if path.exists() and not path.is_dir():
        raise BadInput(f"run_dir={recipe.run_dir} is a file: choose another")
    if not (path / CONFIG_FILE).is_file():
        return
    before = load_recipe(str(path / CONFIG_FILE))
    check_no_blocks(before)
    old = flatten(before.model_dump(mode="json"))
    new = flatten(recipe.model_dump(mode="json"))
    if unknown := [key for key in recipe.train.may_differ if key not in new]:
        near = did_you_mean(unknown[0], new)
        raise BadInput(f"train.may_differ: {unknown[0]!r} is no key of this recipe{near}")
    free = FREE_KEYS | set(recipe.train.may_differ)
    # The keys of both recipes: one of another version may have keys that the other lacks.
    keys = [k for k in {**old, **new} if old.get(k) != new.get(k) and not _and_above(k) & free]
    if keys:
        differing = [f"{key} was {old.get(key)}, now {new.get(key)}" for key in keys[:3]]
        raise BadInput(
            f"run_dir={recipe.run_dir} belongs to another recipe: {'; '.join(differing)}. "
            "Choose another run_dir, or give the recipe of that run; to go on with what differs, "
            f"name it: train.may_differ=[{','.join(keys)}]"
        )


def _and_above(key: str) -> set[str]:
    """A dotted key together with the keys of all sections around it."""
    parts = key.split(".")
    return {".".join(parts[:number]) for number in range(1, len(parts) + 1)}


def check_no_blocks(recipe: Section) -> None:
    """Raise `BadInput` for a recipe of an older version that holds out blocks."""
    if isinstance(recipe, MntpRecipe) and (blocks := recipe.mntp.held_out_blocks):
        raise BadInput(
            f"mntp.held_out_blocks={blocks}: whole documents are held out now, "
            "data.held_out_documents=N; a run that began with blocks is finished by the version it "
            "began with"
        )
