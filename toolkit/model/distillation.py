"""Learning from the similarities that a teacher sees, for one rank's rows.

Shapes: B rows, N candidates, D width of the student, E width of the teacher.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from toolkit.model.losses import CHUNK_ELEMENTS, Taught


@dataclass(frozen=True)
class Excluded:
    """What is no candidate: where `filler_N` is true, of any query; and of each query its own
    column `own_B`, if given (the query itself, whose similarity says nothing)."""

    filler_N: Tensor
    own_B: Tensor | None = None

    def rows(self, *, start: int, stop: int) -> "Excluded":
        """What is no candidate of the queries from `start` to before `stop`."""
        own_B = None if self.own_B is None else self.own_B[start:stop]
        return Excluded(self.filler_N, own_B)

    def mark(self, marked_BN: Tensor) -> Tensor:
        """Set what is no candidate to true, in place."""
        marked_BN |= self.filler_N
        if self.own_B is not None:
            marked_BN.scatter_(1, self.own_B[:, None], True)
        return marked_BN


def similarity_kl(
    query_BD: Tensor,
    *,
    candidate_ND: Tensor,
    taught: Taught,
    excluded: Excluded,
    scale: float,
) -> Tensor:
    """The SUM over rows of KL(teacher || student), a scalar in fp32. Both are softmaxes over the
    candidates of cosines times `scale` (as in ListNet, Cao et al. 2007, with cosines as scores).

    Rows are processed in chunks, and the gradient is computed together with the loss, as in
    `losses.info_nce`. A query without any candidate counts as zero.
    """
    query = F.normalize(query_BD.float(), dim=-1)
    candidate = F.normalize(candidate_ND.float(), dim=-1)
    loss: Tensor = _ChunkedKl.apply(query, candidate, taught, excluded, scale)  # type: ignore[no-untyped-call]
    return loss


class _ChunkedKl(torch.autograd.Function):
    """The gradient of a row's loss with respect to the student's scaled cosines is the difference
    of the two distributions."""

    @staticmethod
    def forward(
        ctx: Any,
        query_BD: Tensor,
        candidate_ND: Tensor,
        taught: Taught,
        excluded: Excluded,
        scale: float,
    ) -> Tensor:
        query_grad_BD = torch.empty_like(query_BD)
        candidate_grad_ND = torch.zeros_like(candidate_ND)
        loss = query_BD.new_zeros(())
        size = max(1, CHUNK_ELEMENTS // len(candidate_ND))
        for start in range(0, len(query_BD), size):
            stop = start + size
            part_BD = query_BD[start:stop]
            score_BN = (part_BD @ candidate_ND.T) * scale
            marked_BN = excluded.rows(start=start, stop=stop).mark(
                torch.zeros_like(score_BN, dtype=torch.bool)
            )
            wanted_BN = taught.rows(start=start, stop=stop).cosines() * scale
            student_BN, teacher_BN = (
                # A finite number, so that a row without candidates gives no NaN.
                values_BN.masked_fill_(marked_BN, torch.finfo(torch.float32).min).log_softmax(1)
                for values_BN in (score_BN, wanted_BN)
            )
            share_BN = teacher_BN.exp().masked_fill_(marked_BN, 0.0)
            loss += (share_BN * (teacher_BN - student_BN)).sum()
            change_BN = student_BN.exp().masked_fill_(marked_BN, 0.0).sub_(share_BN)
            query_grad_BD[start:stop] = change_BN @ candidate_ND
            candidate_grad_ND.addmm_(change_BN.T, part_BD)
        ctx.save_for_backward(query_grad_BD, candidate_grad_ND)
        ctx.scale = scale
        return loss

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        query_grad_BD, candidate_grad_ND = ctx.saved_tensors
        factor = gradients[0] * ctx.scale
        return query_grad_BD * factor, candidate_grad_ND * factor, None, None, None
