"""GradCache with weights of 7B that are drawn on the device: its price, and whether it is exact."""

import os
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tests.benchmarks.certify.large import adapted, engine_of, recipe_of, texts_of
from tests.benchmarks.certify.machine import Machine, Notes, worst
from tests.benchmarks.random_model import QUICKSTART
from toolkit.batching.tokenizer import text_tokenizer
from toolkit.cluster.topology import detect
from toolkit.cluster.watchdog import Watchdog
from toolkit.model.fused import fuse
from toolkit.parallel import zero
from toolkit.settings.model_source import resolve_model
from toolkit.text.stream import Sample
from toolkit.training.admission import join
from toolkit.training.loop import Trainer
from toolkit.training.objectives import build_objective


def gradcache(machine: Machine, notes: Notes) -> None:
    """Eight micro-batches of 128 sentences beside one of 128; gradients beside those of one batch;
    the vectors of both passes, with dropout."""
    device = join(detect(os.environ), timeout_s=60)
    model = adapted(machine, head=False)
    fuse(model, device=torch.device("cuda"))
    model.train()
    trainer = trainer_of(model, machine=machine, device=device)
    # Short ones: without recomputation 128 pairs must fit 80 GB.
    sentences = [text[:100] for text in texts_of(machine.sized(1024, 32))]
    size = machine.sized(128, 4)
    parts = [
        collated(trainer, sentences[first : first + size]) for first in range(0, 8 * size, size)
    ]

    def plain() -> None:
        take(trainer, parts[:1])

    def cached() -> None:
        take(trainer, parts)

    machine.fresh_memory()
    one_s = machine.seconds(plain, runs=machine.sized(4, 1), warmup=1)
    notes.add(plain_s=one_s, plain_gib=machine.peak_gib())
    machine.fresh_memory()
    all_s = machine.seconds(cached, runs=machine.sized(2, 1), warmup=machine.sized(1, 0))
    notes.add(cached_s=all_s, cached_gib=machine.peak_gib(), price=all_s / (len(parts) * one_s))
    notes.add(both_passes_differ=both_passes(trainer, parts[:2]))
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    few = sentences[: machine.sized(64, 8)]
    quarter = len(few) // 4
    cut = [collated(trainer, few[n : n + quarter]) for n in range(0, len(few), quarter)]
    whole = gradients(trainer, [collated(trainer, few)])
    again = gradients(trainer, [collated(trainer, few)])
    found = gradients(trainer, cut)
    notes.add(gradient_error=worst(found, whole), gradient_error_two_runs=worst(again, whole))
    cosine = torch.nn.functional.cosine_similarity(found.double(), whole.double(), dim=0)
    notes.add(gradient_cosine=float(cosine))


def trainer_of(model: Any, *, machine: Machine, device: torch.device) -> Trainer:
    """The trainer of the recipe, without its data."""
    base = resolve_model(str(QUICKSTART / "tiny-mistral"))
    recipe = recipe_of("tiny_simcse", model__attention_dropout=0.0, data__max_tokens=128)
    tokenizer = text_tokenizer(base, max_tokens=128)
    stream: Any = None  # batches are given
    return Trainer(
        engine=engine_of(model, machine=machine, micro_batches=8),
        objective=build_objective(recipe, tokenizer=tokenizer),
        stream=stream,
        train=recipe.train,
        micro_batch_rows=1,
        device=device,
        watchdog=Watchdog.off(),
    )


def collated(trainer: Trainer, sentences: Sequence[str]) -> Any:
    """A micro-batch of sentences."""
    samples = [Sample(0, number, text) for number, text in enumerate(sentences)]
    return trainer.objective.collate(trainer.objective.encode(samples))


def take(trainer: Trainer, batches: Sequence[Any]) -> None:
    """A step, with a learning rate of zero."""
    units = sum(trainer.objective.num_units(batch) for batch in batches)
    trainer.backward(batches, all_units=units)
    zero.step(trainer.engine)


def gradients(trainer: Trainer, batches: Sequence[Any]) -> Tensor:
    """The whole gradient of some micro-batches, one number after another."""
    units = sum(trainer.objective.num_units(batch) for batch in batches)
    trainer.backward(batches, all_units=units)
    trained = zero.trainable_parameters(trainer.engine).values()
    found = torch.cat(
        [zero.full_gradient(parameter).flatten().float().cpu() for parameter in trained]
    )
    zero.step(trainer.engine)
    return found


def both_passes(trainer: Trainer, batches: Sequence[Any]) -> float:
    """The largest difference between the states of the first pass and those of the second."""
    seen: list[Tensor] = []
    engine = trainer.engine
    handle = engine.module.register_forward_hook(
        lambda _module, _inputs, output: seen.append(output.last_hidden_state.detach().cpu())
    )
    take(trainer, batches)
    handle.remove()
    pairs: Iterator[tuple[Tensor, Tensor]] = zip(
        seen[: len(batches)], seen[len(batches) :], strict=True
    )
    return max(float((one - other).abs().max()) for one, other in pairs)
