"""A small task that is scored during training: is the model getting better?

Knows ranks and the model in training. Refuses to know when it is asked.

Shapes: N texts, D width.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from toolkit.base.errors import BadInput
from toolkit.batching.batch import embed_rows, lay_out, to_device
from toolkit.encoding.rows import RowMaker
from toolkit.evaluation.retrieval import RetrievalTask
from toolkit.evaluation.sts import StsTask, read_pairs
from toolkit.evaluation.task import Vectors
from toolkit.evaluation.tasks import read_retrieval
from toolkit.model.head import pooling_head
from toolkit.parallel import comm
from toolkit.settings.task_schema import Probe
from toolkit.training.loop import Trainer

SPEARMAN, NDCG = "probe_spearman", "probe_ndcg_at_10"


@dataclasses.dataclass(frozen=True)
class OpenProbe:
    """A probe with its files read. The first of its tasks judges checkpoints."""

    every_steps: int
    sts: StsTask | None
    retrieval: RetrievalTask | None

    def scores(self, trainer: Trainer) -> dict[str, float]:
        """Spearman of the pairs and nDCG@10 of the retrieval task, without dropout. Collective. The
        number of ranks changes the result by rounding only."""
        embed = _Embed(trainer)
        scores = {}
        if self.sts:
            scores[SPEARMAN] = self.sts.scores(embed)[self.sts.main]
        if self.retrieval:
            scores[NDCG] = self.retrieval.scores(embed)[self.retrieval.main]
        return scores


def open_probe(asked: Probe | None) -> OpenProbe | None:
    """Read the files of a probe. `BadInput` when they cannot be scored, or none are named."""
    if asked is None:
        return None
    if asked.sts is None and asked.retrieval is None:
        raise BadInput("train.probe: give it sts (graded pairs) or retrieval")
    sts = None if asked.sts is None else StsTask(read_pairs(Path(asked.sts)))
    retrieval = None if asked.retrieval is None else read_retrieval("probe", asked.retrieval)[0]
    return OpenProbe(asked.every_steps, sts, retrieval)


class _Embed:
    """Texts to vectors by the model in training. Ranks take micro-batches in turn. A rank that has
    none left runs the first one again without counting it, since under ZeRO-3 all ranks must run
    equally many."""

    name, revision = "in training", ""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer

    @torch.no_grad()
    def __call__(self, texts: Sequence[str], *, instructed: bool = True) -> Vectors:  # noqa: ARG002
        trainer, world = self._trainer, comm.world_size()
        objective = trainer.objective
        maker = RowMaker(objective.tokenizer, rules=objective.rules)
        head = pooling_head(objective.rules)
        rows = maker.rows(texts).rows
        # Rows of similar length share a batch; all ranks come to the same order.
        order = sorted(range(len(rows)), key=lambda number: (-len(rows[number]), number))
        size = trainer.micro_batch_rows
        batches = [order[start : start + size] for start in range(0, len(order), size)]
        found_ND: torch.Tensor | None = None
        trainer.engine.eval()
        for turn in range(comm.rank(), -(-len(batches) // world) * world, world):
            counts = turn < len(batches)
            numbers = batches[turn if counts else 0]
            some = [rows[number] for number in numbers]
            batch = lay_out(
                some,
                tokenizer=objective.tokenizer,
                packed=objective.packed,
                owns=maker.with_marks(some).owns,
            )
            here = to_device(batch, device=trainer.device)
            vectors_BD = embed_rows(self._forward, here, head=head)
            if found_ND is None:
                found_ND = vectors_BD.new_zeros(len(rows), vectors_BD.shape[1])
            if counts:
                found_ND[torch.tensor(numbers, device=trainer.device)] = vectors_BD
        trainer.engine.train()
        assert found_ND is not None
        # Each rank has filled its own rows and left the others at zero.
        comm.all_reduce(found_ND)
        vectors: Vectors = found_ND.cpu().numpy().astype(np.float32)
        return vectors

    def _forward(self, **arguments: Any) -> Any:
        """The last hidden states, by the whole engine: under ZeRO-3 no part of it can run alone."""
        trainer = self._trainer
        if not trainer.objective.needs_head:
            return trainer.engine(**arguments)
        # The head must run, but for one position only: full logits would take too much memory.
        output = trainer.engine(**arguments, logits_to_keep=1, output_hidden_states=True)
        return SimpleNamespace(last_hidden_state=output.hidden_states[-1])
