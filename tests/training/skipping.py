"""Run on 2 ranks: steps 0, 1, 2 with step 1 spoiled on rank 1 alone, beside steps 0 and 2 alone.

usage: skipping.py BASE SHARDS kind:layout:how ...     (how: "gradient" or "loss")
"""

import dataclasses
import sys
from collections.abc import Iterator
from typing import Any

import torch

from tests.training.gradients import case_recipe, start_rank, trainer_of
from toolkit.parallel import comm, zero


class Spoiled:
    """An objective that goes wrong on one rank."""

    def __init__(self, objective: Any, *, how: str, rank: int) -> None:
        self._objective, self._how, self._rank = objective, how, rank

    def __getattr__(self, name: str) -> Any:
        return getattr(self._objective, name)

    def terms(self, forward: Any, batches: Any) -> Iterator[Any]:
        """NaN in the gradient, or an infinite loss whose gradient is finite."""
        for term, figures in self._objective.terms(forward, batches):
            if comm.rank() == self._rank and self._how == "gradient":
                yield term * torch.nan, figures
            elif comm.rank() == self._rank and "loss" in figures:
                yield term, {**figures, "loss": figures["loss"] + torch.inf}
            else:
                yield term, figures


def state_of(trainer: Any) -> dict[str, torch.Tensor]:
    """Trained weights and moments, whole, on rank 1; nothing on rank 0."""
    found = {}
    for name, parameter in zero.trainable_parameters(trainer.engine).items():
        for moment in (None, *zero.MOMENTS):
            value = zero.value_at(trainer.engine, parameter, moment=moment, owner=1)
            if value is not None:
                found[f"{name}/{moment}"] = value.clone()
    return found


def main(base: str, shards: str, cases: list[str]) -> None:
    """Raises `AssertionError` when a skipped step left a trace."""
    device = start_rank()
    for case in cases:
        kind, layout, how = case.split(":")
        recipe = case_recipe(kind, shards=shards, base=base, stage=layout)
        states = []
        for spoil in (True, False):
            trainer = trainer_of(recipe, device=device)
            assert not trainer.do_step(0).skipped
            if spoil:
                spoiled = Spoiled(trainer.objective, how=how, rank=1)
                assert dataclasses.replace(trainer, objective=spoiled).do_step(1).skipped, case
            # One rank alone is told to stop: all are.
            done = trainer.do_step(2, should_stop=comm.rank() == 1)
            assert done.told_to_stop and not done.skipped
            states.append(state_of(trainer))
        assert (len(states[0]) > 0) == (comm.rank() == 1)
        for name, value in states[0].items():
            assert torch.equal(value, states[1][name]), f"{case}: {name}"
    comm.barrier()
    comm.stop()


if __name__ == "__main__":
    main(*sys.argv[1:3], cases=sys.argv[3:])
