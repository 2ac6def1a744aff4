"""The loss of a contrastive batch from its vectors: over widths, over the forms in which vectors
will be stored, with a teacher, and spread out.

Knows how these parts are combined. Refuses to know texts and micro-batches.

Shapes: B local queries, N candidates or texts of all ranks, D width.
"""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from toolkit.model.losses import FalseNegatives, info_nce, matryoshka
from toolkit.model.storage import as_stored, spread_out
from toolkit.settings.storage_schema import ForStorage
from toolkit.training.contrastive import contrastive_figures
from toolkit.training.objective import Figures
from toolkit.training.teacher import Lesson


@dataclasses.dataclass(frozen=True)
class Texts:
    """The vectors of the texts of all ranks that are spread out among each other, with their hashes
    if some may be equal (`model.storage.spread_out`)."""

    vectors_ND: Tensor
    hash_N: Tensor | None = None


@dataclasses.dataclass(frozen=True)
class BatchLoss:
    """What a loss needs beside vectors: the columns of the positives, the scale of the cosines,
    candidates that are no negatives, a teacher's lesson, and the widths of Matryoshka (None: the
    objective has none, and no view of the vectors that would add its gradients in another order).
    """

    settings: ForStorage
    target_B: Tensor
    scale: float
    false: FalseNegatives | None = None
    lesson: Lesson | None = None
    dims: Sequence[int] | None = None

    def of(
        self,
        query_BD: Tensor,
        *,
        positive_BD: Tensor,
        candidate_ND: Tensor,
        texts: Sequence[Texts] = (),
    ) -> tuple[Tensor, Figures]:
        """The SUM over our queries, and the figures to report. `texts` are needed for
        `spread_out_weight` alone: each are spread out by themselves, and the mean counts."""

        def loss_of(dim: int) -> tuple[Tensor, Tensor]:
            return self._info_nce(query_BD[:, :dim], candidate_ND[:, :dim])

        if self.dims is None:
            loss, correct = self._info_nce(query_BD, candidate_ND)
        else:
            loss, correct = matryoshka(loss_of, dims=self.dims, width=query_BD.shape[1])
        figures: dict[str, Tensor] = {}
        if self.settings.stored_as:
            loss = self._with_stored(loss, query_BD, candidate_ND, figures)
        if self.lesson is not None:
            loss, more = self.lesson.add(
                loss, query_BD, candidate_ND=candidate_ND, dims=self.dims or ()
            )
            figures |= more
        if self.settings.spread_out_weight:
            # It is one of the whole global batch. Every rank computes all of it and takes it as
            # often as it has queries, so that what the ranks add up to is a mean over queries.
            spread = self._spread(texts) * len(query_BD)
            loss = loss + self.settings.spread_out_weight * spread
            figures["spread_out"] = spread.detach()
        always = contrastive_figures(
            loss, correct=correct, query_BD=query_BD, positive_BD=positive_BD
        )
        return loss, {**always, **figures}

    def _info_nce(self, query_BD: Tensor, candidate_ND: Tensor) -> tuple[Tensor, Tensor]:
        return info_nce(
            query_BD,
            candidate_ND=candidate_ND,
            target_B=self.target_B,
            scale=self.scale,
            false=self.false,
        )

    def _with_stored(
        self, plain: Tensor, query_BD: Tensor, candidate_ND: Tensor, figures: dict[str, Tensor]
    ) -> Tensor:
        """The weighted mean of the plain loss and of those on stored vectors (also reported)."""
        total, weights = plain, 1.0
        for stored in self.settings.stored_as:
            query, candidate = (
                as_stored(vectors[:, : stored.dims], form=stored.vectors)
                for vectors in (query_BD, candidate_ND)
            )
            part, _ = self._info_nce(query, candidate)
            total, weights = total + stored.weight * part, weights + stored.weight
            figures[f"loss_{stored.name}"] = part.detach()
        return total / weights

    def _spread(self, texts: Sequence[Texts]) -> Tensor:
        def spread_of(dim: int) -> tuple[Tensor, Tensor]:
            parts = [spread_out(t.vectors_ND[:, :dim], hash_N=t.hash_N) for t in texts]
            mean = torch.stack(parts).mean()
            return mean, mean

        dims, width = self.settings.cuts(self.dims or ()), texts[0].vectors_ND.shape[1]
        return matryoshka(spread_of, dims=dims, width=width)[0]
