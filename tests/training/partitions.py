"""Run on ranks: bytes that this rank holds of what ZeRO partitions, beside what the plan says.

usage: partitions.py BASE SHARDS kind:layout ...
"""

import sys
from typing import Any

import pytest
import torch

from tests.training.gradients import case_recipe, start_rank, trainer_of
from toolkit.parallel import comm
from toolkit.runs.estimate import partitioned
from toolkit.runs.shapes import shape_of
from toolkit.settings.layouts import read_layout


def bytes_of(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def measured(trainer: Any) -> dict[str, int]:
    """Between backward and step, of the second step: AdamW's state exists by then."""
    trainer.do_step(0)
    batches = trainer.batches(1)
    trainer.backward(batches, all_units=1.0)
    engine, zero = trainer.engine, trainer.engine.optimizer
    parameters = list(engine.module.parameters())
    if not engine.zero_optimization():
        states = zero.state.values()
        return {
            "weights": bytes_of(parameters),
            "gradients": bytes_of(p.grad for p in parameters if p.grad is not None),
            "fp32 masters": 0,
            "AdamW moments": bytes_of(s[m] for s in states for m in ("exp_avg", "exp_avg_sq")),
        }
    stage3 = engine.zero_optimization_partition_weights()
    weights = [p.ds_tensor for p in parameters] if stage3 else parameters
    flats = zero.fp32_partitioned_groups_flat if stage3 else zero.single_partition_of_fp32_groups
    states = [zero.optimizer.state[flat] for flat in flats]
    return {
        "weights": bytes_of(weights),
        "gradients": bytes_of(
            gradient for group in zero.averaged_gradients.values() for gradient in group
        ),
        "fp32 masters": bytes_of(flats),
        "AdamW moments": bytes_of(state[m] for state in states for m in ("exp_avg", "exp_avg_sq")),
    }


def watch_buckets(zero: Any) -> list[int]:
    """Where the bytes of its gradient buckets will be: at stages 1 and 2 DeepSpeed allocates them
    in each backward pass and frees them after it."""
    found: list[int] = []

    def note() -> None:
        buffers = [bucket.buffer for bucket in zero.ipg_buckets.values()]
        found.append(bytes_of(b for some in buffers for b in (some if shared else [some])))

    shared = hasattr(zero, "setup_buckets")
    if not shared:  # stage 3
        note()
        return found
    whole = zero.setup_buckets

    def watched() -> None:
        whole()
        note()

    zero.setup_buckets = watched
    return found


def main(base: str, shards: str, cases: list[str]) -> None:
    """Raises `AssertionError` where plan and measurement differ by more than padding."""
    device = start_rank()
    for case in cases:
        kind, stage = case.split(":")
        recipe = case_recipe(kind, shards=shards, base=base, stage=stage)
        if stage != "0":
            model = recipe.model.model_copy(update={"dtype": "bf16"})
            recipe = recipe.model_copy(update={"model": model})
        trainer = trainer_of(recipe, device=device)
        buckets = watch_buckets(trainer.engine.optimizer) if stage != "0" else [0]
        found = measured(trainer)
        planned = partitioned(
            shape_of(base),
            recipe,
            layout=read_layout(recipe.deepspeed.config),
            world=comm.world_size(),
            per_node=comm.world_size(),
        )
        if stage == "1":  # whole while they are made, and only a part is kept
            assert found.pop("gradients") <= planned.pop("gradients")
        layout = read_layout(recipe.deepspeed.config)
        assert max(buckets) == 2 * layout.staged, f"{case}: {buckets}"  # bf16
        assert found == pytest.approx(planned, rel=0.01), f"{case}: {found} {planned}"
    comm.barrier()
    comm.stop()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:3], cases=sys.argv[3:])
