"""The training loop: one path for 1 and W ranks, for every objective.

Knows steps. Refuses to know what an objective computes and where samples come from.
"""

import dataclasses
import heapq
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from toolkit.batching.batch import num_tokens, to_device
from toolkit.cluster.watchdog import Watchdog
from toolkit.model.memory import give_back
from toolkit.parallel import comm, zero
from toolkit.settings.schema import Train
from toolkit.text.packing import best_fit
from toolkit.text.stream import Samples
from toolkit.training.ahead import Ahead, Phases
from toolkit.training.objective import Batch, Objective

# On a CPU. The batches of steps differ in size, so that the C library reuses less and less of the
# memory that they free: 64 texts of SmolLM2-135M took 12 GiB in the first steps, 21 after 110.
GIVE_BACK_EVERY_STEPS = 8


@dataclasses.dataclass(frozen=True)
class Step:
    """What one step did, over all ranks. A skipped step changed nothing, because its gradient was
    NaN or infinite on some rank."""

    step: int
    figures: Mapping[str, float]
    lr: float
    grad_norm: float
    tokens: int
    padding: float
    micro_batches: int
    seconds: float
    told_to_stop: bool
    skipped: bool
    phases: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def row(self) -> dict[str, float]:
        """The step's line in the metrics file. `tokens` counts real tokens, `padding` is a fraction
        of all cells, and the objective's figures are means over its units. Of the seconds, `data_s`
        is what was waited for the batch, `ranks_s` for the other ranks before the first pass,
        `backward_s` includes the sums of gradients over ranks, `step_s` is the optimizer's, and
        `save_s`, outside of the step, is what training waited for the checkpoint before it."""
        return {
            "step": self.step,
            **self.figures,
            "lr": self.lr,
            "grad_norm": self.grad_norm,
            "tokens": self.tokens,
            "tokens_per_s": self.tokens / self.seconds,
            "padding": self.padding,
            "seconds": self.seconds,
            **self.phases,
        }


@dataclasses.dataclass(frozen=True)
class Trainer:
    """What a run needs at every step. Nothing of it changes once the run has started."""

    engine: zero.Engine
    objective: Objective[Any, Any]
    stream: Samples
    train: Train
    micro_batch_rows: int
    device: torch.device
    watchdog: Watchdog

    def run(
        self,
        *,
        first_step: int,
        on_step: Callable[[Step], None],
        save: Callable[[int, bool], None],
        should_stop: Callable[[], bool] = lambda: False,
    ) -> int:
        """Do steps first_step .. train.steps - 1, and call `save(n, last)` after n whole steps.

        When `should_stop` is true on any rank, all ranks save together and stop at the end of the
        step. Returns the number of whole steps.
        """
        ahead = Ahead(self._encoded, steps=self.train.steps)
        saved = {"save_s": 0.0}
        for step in range(first_step, self.train.steps):
            result = self.do_step(step, ahead=ahead, should_stop=should_stop())
            on_step(dataclasses.replace(result, phases={**result.phases, **saved}))
            done = step + 1
            if self.device.type == "cpu" and done % GIVE_BACK_EVERY_STEPS == 0:
                give_back()
            last = done == self.train.steps or result.told_to_stop
            saved = {"save_s": 0.0}
            if last or done % self.train.save_every_steps == 0:
                saving = Phases()
                save(done, last)
                saving.ends("save")
                saved = saving.row()
            if last:
                return done
        return self.train.steps

    def do_step(
        self, step: int, *, ahead: Ahead[Sequence[Any]] | None = None, should_stop: bool = False
    ) -> Step:
        """One optimizer step over the global batch of `step`; `ahead` may have read it already."""
        phases = Phases()
        self.watchdog.enter("data", step=step + 1)
        batches = self._laid_out(ahead.take(step) if ahead else self._encoded(step))
        units = sum(self.objective.num_units(batch) for batch in batches)
        counts = [num_tokens(batch.rows) for batch in batches]
        tokens, cells = (sum(numbers) for numbers in zip(*counts, strict=True))
        phases.ends("data")
        # A rank that waits here waits for others: its own data are ready.
        self.watchdog.enter("backward", step=step + 1)
        # The wish to stop is summed along with the counts: signals reach ranks at different
        # moments, and all must stop after the same step.
        all_units, all_tokens, all_cells, stop_votes = comm.sum_over_ranks(
            units, tokens, cells, should_stop, device=self.device
        )
        phases.ends("ranks")
        self._seed_dropout(step)
        lr = learning_rate(self.train, step=step)
        zero.set_rate(self.engine, lr=lr)
        summed = self.backward(batches, all_units=all_units, phases=phases)
        figures = comm.sum_of_each(summed)
        self.watchdog.enter("step", step=step + 1)
        taken, grad_norm = zero.step(self.engine)
        phases.ends("step")
        if ahead:  # what is recorded after the step may read the same files
            ahead.settle()
            phases.ends("data")
        return Step(
            step=step + 1,
            figures={name: value / all_units for name, value in figures.items()},
            lr=lr,
            grad_norm=grad_norm,
            tokens=int(all_tokens),
            padding=1.0 - all_tokens / all_cells,
            micro_batches=len(batches),
            seconds=phases.total,
            told_to_stop=stop_votes > 0,
            skipped=not taken,
            phases=phases.row(),
        )

    def sample_names(self, step: int) -> list[str]:
        """Readable names of the samples in the global batch of a step."""
        rows = self.train.global_batch_rows
        samples = self.stream.batch(step, global_rows=rows, start=0, stop=rows)
        return [self.stream.name(sample.index) for sample in samples]

    def batches(self, step: int) -> list[Batch]:
        """This rank's micro-batches of a step, on the CPU."""
        return self._laid_out(self._encoded(step))

    def _encoded(self, step: int) -> Sequence[Any]:
        """This rank's rows of a step, read and tokenised. No rank waits for another here, so that a
        thread may do it."""
        rows = self.train.global_batch_rows
        local = rows // comm.world_size()
        start = comm.rank() * local
        samples = self.stream.batch(step, global_rows=rows, start=start, stop=start + local)
        return self.objective.encode(samples)

    def _laid_out(self, encoded: Sequence[Any]) -> list[Batch]:
        return [
            self.objective.collate([encoded[row] for row in part])
            for part in self._micro_batches([item.num_tokens for item in encoded])
        ]

    def _micro_batches(self, tokens: Sequence[int]) -> list[list[int]]:
        """Which of our rows are in which micro-batch; all ranks make equally many micro-batches."""
        budget = self.train.micro_batch_tokens
        if budget is None:
            size = self.micro_batch_rows
            return [list(range(s, min(s + size, len(tokens)))) for s in range(0, len(tokens), size)]
        # A step runs collectives per micro-batch, so that the rank with the most decides for all.
        wanted = len(best_fit(tokens, room=max(budget, *tokens)))
        (most,) = comm.max_over_ranks(wanted, device=self.device)
        return balanced_parts(tokens, num_parts=int(most))

    def backward(
        self, batches: Sequence[Batch], *, all_units: float, phases: Phases | None = None
    ) -> dict[str, Tensor]:
        """Accumulate the gradient of the global mean; returns this rank's summed figures.

        The engine averages gradients over ranks, so the local sum is multiplied by their number and
        divided by the units of the whole global batch, on whatever ranks they are. A loss that is
        not finite makes the gradient NaN, so that the step is skipped: an infinite loss (of a
        probability of 0) may have a finite gradient.
        """
        scale = comm.world_size() / all_units
        total: dict[str, Tensor] = {}
        phases = phases or Phases()
        on_device = [to_device(batch, device=self.device) for batch in batches]
        for number, (term, figures) in enumerate(self.objective.terms(self.engine, on_device)):
            phases.ends("forward")
            finite = figures.get("loss", term).detach().isfinite()
            loss = term * torch.where(finite, scale, torch.nan)
            zero.backward(self.engine, loss, is_last=number == len(batches) - 1)
            # Sums of many micro-batches: fp64 keeps what fp32 would lose.
            for name, value in figures.items():
                total[name] = total[name] + value if name in total else value.double()
            phases.ends("backward")
        return total

    def _seed_dropout(self, step: int) -> None:
        """Seed dropout by (seed, step, rank), so that a restart needs no generator state."""
        # Integers have the same hash in every process.
        torch.manual_seed(hash((self.train.seed, step, comm.rank())) % 2**63)


def balanced_parts(tokens: Sequence[int], *, num_parts: int) -> list[list[int]]:
    """Share rows among `num_parts` parts with nearly equal tokens, none of them empty: the largest
    row first, each into the part with the fewest tokens (Graham 1969)."""
    parts: list[list[int]] = [[] for _ in range(num_parts)]
    loads = [(0, part) for part in range(num_parts)]
    for row in sorted(range(len(tokens)), key=lambda row: -tokens[row]):
        load, part = heapq.heappop(loads)
        parts[part].append(row)
        heapq.heappush(loads, (load + tokens[row], part))
    return parts


def learning_rate(train: Train, *, step: int) -> float:
    """The rate of `step` (from 0): a linear warm-up, then a linear fall to 0 at `horizon_steps`."""
    if step < train.warmup_steps:
        return train.lr * (step + 1) / train.warmup_steps
    left = train.horizon_steps - step
    return train.lr * max(0.0, left / max(1, train.horizon_steps - train.warmup_steps))
