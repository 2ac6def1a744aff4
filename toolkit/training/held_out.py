"""The loss on samples that are not trained on. Knows ranks. Refuses to know when it is asked."""

import torch

from toolkit.batching.batch import to_device
from toolkit.parallel import comm
from toolkit.text.mixture import Mixture
from toolkit.text.stream import Stream
from toolkit.training.loop import Trainer


@torch.no_grad()
def evaluate(trainer: Trainer) -> dict[str, float]:
    """The objective's figures, as means over the units of all held-out samples, without dropout.

    Empty when the stream holds nothing out. Collective: ranks take micro-batches in turn. A rank
    that has none left runs the first one again without counting it, since under ZeRO-3 all ranks
    must run equally many. The number of ranks changes the result by rounding only.
    """
    stream = trainer.stream
    if not isinstance(stream, Stream | Mixture) or not stream.num_held_out:
        return {}
    size, world = trainer.micro_batch_rows, comm.world_size()
    starts = range(0, stream.num_held_out, size)
    units = 0
    total: dict[str, torch.Tensor] = {}
    trainer.engine.eval()
    # The number of turns is rounded up to a multiple of the ranks, so that all take equally many.
    for turn in range(comm.rank(), -(-len(starts) // world) * world, world):
        counts = turn < len(starts)
        start = starts[turn] if counts else 0
        samples = stream.held_out(start, min(start + size, stream.num_held_out))
        encoded = trainer.objective.encode(samples)
        batch = trainer.objective.collate(encoded)
        units += trainer.objective.num_units(batch) * counts
        on_device = to_device(batch, device=trainer.device)
        for _, figures in trainer.objective.terms(trainer.engine, [on_device]):
            for name, value in figures.items():
                total[name] = total.get(name, torch.zeros_like(value).double()) + value * counts
    trainer.engine.train()
    (all_units,) = comm.sum_over_ranks(units, device=trainer.device)
    sums = comm.sum_of_each(total)
    return {f"held_out_{name}": value / max(all_units, 1) for name, value in sums.items()}
