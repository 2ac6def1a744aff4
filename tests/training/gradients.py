"""Run by the parity tests on ranks: loss and every gradient of the first step, to a file.

usage: gradients.py OUT.safetensors BASE SHARDS PAIRS kind:stage[:no-gather-gradient] ...
"""

import contextlib
import functools
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import torch
from safetensors.torch import save_file

from tests.light import FEW_ADAPTERS
from toolkit.cluster.topology import detect
from toolkit.cluster.watchdog import Watchdog
from toolkit.model import fused
from toolkit.model.backbone import add_lora, load_backbone, load_config
from toolkit.model.weights import saved_name
from toolkit.parallel import comm, zero
from toolkit.settings.model_schema import Lora
from toolkit.settings.model_source import resolve_model
from toolkit.settings.recipes import load_recipe
from toolkit.settings.schema import MntpRecipe, TrainingRecipe
from toolkit.training import admission, program
from toolkit.training.checkpoint import Checkpoint
from toolkit.training.loop import Trainer

# No dropout: its masks depend on the rank. Rows enough for two micro-batches on two ranks.
OVERRIDES = ["model.lora.dropout=0.0", "train.global_batch_rows=8", "data.max_tokens=24"]
EXTRA = {
    "mntp": ["train.micro_batch_rows=2"],
    "simcse": ["model.attention_dropout=0.0", "train.micro_batch_rows=8"],
    "supervised": ["supervised.num_hard_negatives=2", "train.micro_batch_rows=8"],
    "graded": ["train.micro_batch_rows=8"],
}
VARIANTS = {
    "sdpa": ["model.attention=sdpa"],
    "cached": ["train.micro_batch_rows=2"],  # more than one micro-batch: GradCache
    "one": ["train.micro_batch_rows=1"],
    "few": [FEW_ADAPTERS],
    "short": ["data.max_tokens=8"],
    "full": ["model.lora=null"],
    "recomputed": ["model.activation_checkpointing=true"],
    "matryoshka": ["supervised.matryoshka_dims=[32, 64]", "supervised.false_negative_margin=0.1"],
    "tokens": ["train.micro_batch_tokens=64"],  # as many micro-batches as the longer rank needs
    "weighted": ["model.pooling=weighted_mean", "model.begin_token=pool"],
    "fused": [],  # the norms and adapters of a GPU
    "taught": [],  # see `TEACHER`
    "stored": [],  # see `STORED`
    "mixed": [],  # of two sources
}
STORED = ("stored_as=[{vectors: int8, dims: 24}, {vectors: binary, weight: 0.5}]",)
STORED += ("spread_out_weight=0.3",)
# By the margins a random teacher leaves out some candidates of some queries.
TEACHER = {"weight": 0.4, "scale": 3.0}
MARGIN = {"simcse": -0.6, "supervised": -0.2}


def case_recipe(
    kind: str, *, shards: str, base: str, stage: str = "3", pairs: str = ""
) -> TrainingRecipe:
    """The recipe of a parity case, such as "simcse-cached-full" (see `VARIANTS`)."""
    kind, *variants = kind.split("-")
    overrides = [*OVERRIDES, *EXTRA[kind], "model.attention=packed"]
    for variant in variants:
        overrides += VARIANTS[variant]
    train = {"supervised": pairs, "graded": Path(pairs).parent / "graded.tsv"}.get(kind, shards)
    if "mixed" in variants:
        train = f"{{{shards}: 0.6, {Path(pairs).with_name('letters')}: 0.4}}"
    overrides += [f"data.train={train}", f"model.base={base}"]
    if "taught" in variants:
        settings = {"embeddings": Path(pairs).with_name("teacher"), **TEACHER}
        settings |= {"false_negative_margin": MARGIN[kind]}
        overrides += [f"{kind}.teacher.{name}={value}" for name, value in settings.items()]
    if "stored" in variants:
        overrides += [f"{kind}.{setting}" for setting in STORED]
    if "full" in variants:
        overrides = [value for value in overrides if not value.startswith("model.lora.")]
    recipe = load_recipe(f"tiny_{kind}", overrides=[*overrides, f"deepspeed.config=zero{stage}"])
    assert isinstance(recipe, TrainingRecipe)
    return recipe


@functools.cache
def adapter_shapes(base: str, lora: str, *, head: bool) -> dict[str, torch.Size]:
    """The saved names and shapes of the adapters that these settings (JSON) give a model."""
    config = load_config(resolve_model(base))
    plain = load_backbone(
        resolve_model(base), config=config, head=head, dtype="fp32", attention="sdpa"
    )
    model = add_lora(plain, lora=Lora.model_validate_json(lora))
    return {saved_name(n): p.shape for n, p in model.named_parameters() if p.requires_grad}


def random_start(recipe: TrainingRecipe, *, head: bool) -> Checkpoint | None:
    """Adapters with random values: a fresh B is zero, and hides every gradient of A."""
    if recipe.model.lora is None:
        return None
    lora = recipe.model.lora.model_dump_json()
    shapes = adapter_shapes(recipe.model.base, lora, head=head)
    generator = torch.Generator().manual_seed(5)
    weights = {
        name: torch.randn(shape, generator=generator) * 0.05 for name, shape in shapes.items()
    }
    zeros = {name: torch.zeros_like(value) for name, value in weights.items()}
    moments = dict.fromkeys(zero.MOMENTS, zeros)
    return Checkpoint(
        step=0, skipped_steps=0, weights=weights, moments=moments, state={}, folder=Path()
    )


def trainer_of(recipe: TrainingRecipe, *, device: torch.device) -> Trainer:
    """A trainer at step 0 from the random start."""
    found = admission.check(recipe, topology=detect(os.environ), environ={})
    head = isinstance(recipe, MntpRecipe)
    return program.build_trainer(
        recipe,
        admission=found,
        restored=random_start(recipe, head=head),
        device=device,
        watchdog=Watchdog.off(),
    )


@contextlib.contextmanager
def fused_as_on_a_gpu() -> Iterator[None]:
    """What is built meanwhile is fused by torch as it would be on a GPU, and must have what can be:
    norms, and adapters unless all weights are trained. oneDNN's layers of a CPU are left out."""
    counts: list[dict[str, int]] = []

    def fuse(model: torch.nn.Module, *, device: torch.device, **_kernels: str) -> None:
        assert fused.fuse(model, device=device) == {}
        counts.append(fused.fuse(model, device=torch.device("cuda"), kernels="torch"))

    with mock.patch.multiple(program, fuse=fuse, train_by_onednn=lambda _model: 0):
        yield
    # Two norms in each of two layers, and the last; seven adapters per layer.
    assert counts in ([{"norms": 5, "lora": 14}], [{"norms": 5, "lora": 0}])


def start_rank() -> torch.device:
    """Join the ranks that the environment describes."""
    return admission.join(detect(os.environ), timeout_s=120)


def main(out: str, base: str, shards: str, pairs: str, cases: list[str]) -> None:
    """Write `case/loss` and `case/<parameter>` of every case."""
    device = start_rank()
    found: dict[str, torch.Tensor] = {}
    for case in cases:
        kind, stage, *broken = case.split(":")
        gather = comm.gather_rows
        if broken:
            comm.gather_rows = lambda rows: gather(rows).detach()  # noqa: B023
        recipe = case_recipe(kind, shards=shards, base=base, stage=stage, pairs=pairs)
        as_on_a_gpu = "fused" in kind.split("-")
        with fused_as_on_a_gpu() if as_on_a_gpu else contextlib.nullcontext():
            trainer = trainer_of(recipe, device=device)
        batches = trainer.batches(0)
        units = sum(trainer.objective.num_units(batch) for batch in batches)
        (all_units,) = comm.sum_over_ranks(units, device=device)
        figures = comm.sum_of_each(trainer.backward(batches, all_units=all_units))
        for name in figures:
            if name != "uniformity":  # of the rows of one rank
                value = figures[name] / all_units
                found[f"{case}/{name}"] = torch.tensor(value, dtype=torch.float64)
        for name, parameter in zero.trainable_parameters(trainer.engine).items():
            found[f"{case}/{saved_name(name)}"] = zero.full_gradient(parameter)
        comm.gather_rows = gather
    if comm.rank() == 0:
        save_file(found, out)
    comm.barrier()
    comm.stop()


if __name__ == "__main__":
    main(*sys.argv[1:5], cases=sys.argv[5:])
