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

from toolkit.batching.batch import Rows, embed_rows, lay_out
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
    """One sentence as a row of token ids."""

    ids_T: NDArray[np.int64]

    @property
    def num_tokens(self) -> int:
        """The number of tokens of both views."""
        return 2 * len(self.ids_T)


@dataclasses.dataclass(frozen=True)
class SimcseBatch:
    """The rows of `num_sentences` sentences, and then the same rows once more."""

    rows: Rows
    num_sentences: int


@dataclasses.dataclass(frozen=True)
class SimcseObjective:
    """Two dropout views of a sentence are a positive pair; all other sentences are negatives."""

    settings: Simcse
    tokenizer: TextTokenizer
    packed: bool
    low_precision: bool = False
    needs_head: bool = False

    def encode(self, samples: Sequence[Sample[str]]) -> list[Sentence]:
        """The tokens of each sentence."""
        texts = [sample.content for sample in samples]
        return [Sentence(ids_T) for ids_T in self.tokenizer.encode(texts)]

    def collate(self, encoded: Sequence[Sentence]) -> SimcseBatch:
        """The batch of some sentences, each of them twice.

        Both views share a forward pass: dropout differs from row to row anyway, and one pass of
        twice the rows keeps a device busier than two passes.
        """
        views = [sentence.ids_T for sentence in encoded] * 2
        rows = lay_out(views, tokenizer=self.tokenizer, packed=self.packed)
        return SimcseBatch(rows, num_sentences=len(encoded))

    def num_units(self, batch: SimcseBatch) -> int:
        """The number of sentences in a batch."""
        return batch.num_sentences

    def terms(
        self, forward: Callable[..., Any], batches: Sequence[SimcseBatch]
    ) -> Iterator[tuple[Tensor, Figures]]:
        """Summed InfoNCE of our rows against the second views of all ranks, however many
        micro-batches hold them."""
        return cached_terms(
            batches, embed=lambda batch: embed_rows(forward, batch.rows), loss=self._loss_sum
        )

    def _loss_sum(self, vectors: Sequence[Tensor]) -> tuple[Tensor, Figures]:
        """The loss of all micro-batches' vectors, each the first views and then the second."""
        first_BD, second_BD = (
            torch.cat(views) for views in zip(*(v.chunk(2) for v in vectors), strict=True)
        )
        candidate_ND = gather_vectors(second_BD, low_precision=self.low_precision)
        num_rows = len(first_BD)
        # The positive of a row is its second view, at the same place among the rows of this rank.
        target_B = torch.arange(num_rows, device=first_BD.device) + comm.rank() * num_rows
        loss, correct = info_nce(
            first_BD, candidate_ND=candidate_ND, target_B=target_B, scale=self.settings.scale
        )
        return loss, contrastive_figures(
            loss, correct=correct, query_BD=first_BD, positive_BD=second_BD
        )
