"""What is a pure function of the step: the learning rate, and what dropout draws."""

import itertools
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from toolkit.settings.recipes import load_recipe
from toolkit.settings.schema import SimcseRecipe, Train
from toolkit.training import loop
from toolkit.training.loop import Step, Trainer, learning_rate


def settings(**changed: Any) -> Train:
    recipe = load_recipe("tiny_simcse")
    assert isinstance(recipe, SimcseRecipe)
    return recipe.train.model_copy(update=changed)


def test_the_rate_rises_to_its_peak_and_falls_to_zero_in_lines() -> None:
    train = settings(lr=1.0, warmup_steps=4, horizon_steps=10)
    rates = [learning_rate(train, step=step) for step in range(12)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4:10] == pytest.approx([1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6])
    assert rates[10:] == [0.0, 0.0]


def drawn(*, seed: int, step: int, rank: int) -> tuple[float, ...]:
    """What dropout would draw on a rank of two, of which the other is not there."""
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=2)
    trainer: Any = SimpleNamespace(train=settings(seed=seed))
    try:
        Trainer._seed_dropout(trainer, step)
        return tuple(torch.rand(8).tolist())
    finally:
        dist.destroy_process_group()


def test_dropout_is_another_for_every_seed_step_and_rank_and_the_same_again() -> None:
    places = list(itertools.product((0, 1, 42), (0, 1, 2), (0, 1)))
    found = [drawn(seed=seed, step=step, rank=rank) for seed, step, rank in places]
    assert len(set(found)) == len(places)
    assert found == [drawn(seed=seed, step=step, rank=rank) for seed, step, rank in places]


@pytest.mark.parametrize(("device", "wanted"), [("cpu", [8, 16]), ("cuda", [])])
def test_free_memory_goes_back_to_the_kernel_on_a_cpu(
    device: str, wanted: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps of differing sizes leave gaps, which would grow from step to step."""
    done: list[int] = []
    given_back: list[int] = []
    step = Step(1, {}, 1e-4, 1.0, 1, 0.0, 1, 1.0, told_to_stop=False, skipped=False)
    trainer: Any = SimpleNamespace(
        train=settings(steps=20),
        device=torch.device(device),
        do_step=lambda *_, **__: step,
        _encoded=lambda step: step,
    )
    monkeypatch.setattr(loop, "give_back", lambda: given_back.append(len(done)))
    Trainer.run(trainer, first_step=0, on_step=done.append, save=lambda *_: None)
    assert given_back == wanted
