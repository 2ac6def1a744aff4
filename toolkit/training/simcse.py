"""Unsupervised SimCSE with negatives from all ranks (Gao et al. 2021; LLM2Vec section 2.3).

Shapes: B local rows, T tokens, D width, N rows of all ranks.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from toolkit.batching.batch import Batch, embed_rows, lay_out
from toolkit.model.losses import info_nce
from toolkit.parallel import comm
from toolkit.settings.schema import Simcse
from toolkit.text.stream import Sample
from toolkit.text.tokens import TextTokenizer
from toolkit.training.contrastive import (
    cached_terms,
    contrastive_figures,
    gather_vectors,
)
from toolkit.training.objective import Figures


@dataclasses.dataclass(frozen=True)
class Sentence:
    """The tokens of a sentence."""

    ids_T: NDArray[np.int64]

    @property
    def num_tokens(self) -> int:
        """Tokens of both views."""
        return 2 * len(self.ids_T)


@dataclasses.dataclass(frozen=True)
class SimcseObjective:
    """Two dropout views of a sentence are a positive pair; all other sentences are negatives."""

    settings: Simcse
    packed: bool
    low_precision: bool = False
    needs_head: bool = False

    def encode(self, samples: Sequence[Sample[str]], *, tokenizer: TextTokenizer) -> list[Sentence]:
        """The tokens of each sentence."""
        return [Sentence(ids) for ids in tokenizer.encode([sample.content for sample in samples])]

    def collate(self, encoded: Sequence[Sentence], *, tokenizer: TextTokenizer) -> Batch:
        """The sentences, twice (see `lay_out`).

        Both views in one forward pass: dropout draws anew for every row, and one pass of twice the
        rows keeps a device busier than two.
        """
        rows = [sentence.ids_T for sentence in encoded]
        batch = lay_out([*rows, *rows], tokenizer=tokenizer, packed=self.packed)
        return {**batch, "num_rows": len(rows)}

    def num_units(self, batch: Batch) -> int:
        """The number of sentences."""
        num_rows = batch["num_rows"]
        assert isinstance(num_rows, int)
        return num_rows

    def terms(
        self, forward: Callable[..., Any], batches: Sequence[Batch]
    ) -> Iterator[tuple[Tensor, Figures]]:
        """Summed InfoNCE of our rows against the second views of all ranks, however many
        micro-batches hold them."""
        return cached_terms(
            batches, embed=lambda batch: embed_rows(forward, batch), loss=self._loss_sum
        )

    def _loss_sum(self, vectors: Sequence[Tensor]) -> tuple[Tensor, Figures]:
        """Of the vectors of each micro-batch: first views, then second views."""
        first_BD, second_BD = (
            torch.cat(views) for views in zip(*(v.chunk(2) for v in vectors), strict=True)
        )
        candidate_ND = gather_vectors(second_BD, low_precision=self.low_precision)
        num_rows = len(first_BD)
        target_B = torch.arange(num_rows, device=first_BD.device) + comm.rank() * num_rows
        loss, correct = info_nce(
            first_BD, candidate_ND=candidate_ND, target_B=target_B, scale=self.settings.scale
        )
        return loss, contrastive_figures(
            loss, correct=correct, query_BD=first_BD, positive_BD=second_BD
        )
