"""The maths of the objectives, for one rank's rows. Shapes: B rows, N candidates, D width, E width
of a teacher, M masked tokens, V vocabulary."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

# The number of similarities that are in memory at one time.
CHUNK_ELEMENTS = 2**22
# The number of logits that are in memory as fp32 at one time.
CHUNK_LOGITS = 2**22
Kernel = Literal["torch", "liger"]
LIGER: Kernel = "liger"
FILLER = 0  # the hash of a candidate that only fills a place; it is no negative of any query


@dataclass(frozen=True)
class Taught:
    """A teacher's vectors of the queries (B, E) and of the candidates (N, E), of unit length."""

    query_BE: Tensor
    candidate_NE: Tensor

    def rows(self, *, start: int, stop: int) -> "Taught":
        """The vectors of the queries from `start` to before `stop`, and of all candidates."""
        return Taught(self.query_BE[start:stop], self.candidate_NE)

    def cosines(self) -> Tensor:
        """The cosines (B, N) that the teacher sees."""
        return self.query_BE @ self.candidate_NE.T


@dataclass(frozen=True)
class TeacherLimit:
    """How near a negative may be to a query in the eyes of a teacher: its cosine is at most that of
    the positive times `ratio` plus `margin` (GISTEmbed, Solatorio 2024, has 1 and 0)."""

    taught: Taught
    ratio: float = 1.0
    margin: float = 0.0

    def rows(self, *, start: int, stop: int) -> "TeacherLimit":
        """The limit for the queries from `start` to before `stop`."""
        return replace(self, taught=self.taught.rows(start=start, stop=stop))

    def is_nearer(self, target_B1: Tensor) -> Tensor:
        """Whether a candidate is nearer than that (B, N); `target_B1` are the columns of the
        positives."""
        cosine_BN = self.taught.cosines()
        return cosine_BN > cosine_BN.gather(1, target_B1) * self.ratio + self.margin


@dataclass(frozen=True)
class FalseNegatives:
    """The facts by which a candidate is left out as a negative of a query, because it may be right.

    They are hashes of texts: `query_B` of each query, `positive_B` of its positive, `candidate_N`
    of each candidate (FILLER for none), and `answers_N` of the query whose positive a candidate is
    (0 for hard negatives). If `margin` is given, candidates whose similarity exceeds that of the
    positive by more than it are left out too (as in NV-Retriever, de Souza P. Moreira et al. 2024,
    "perc/margin" mining, but applied at training time); and those that are too near by the
    `limit` of a teacher.
    """

    query_B: Tensor
    positive_B: Tensor
    candidate_N: Tensor
    answers_N: Tensor
    margin: float | None = None
    limit: TeacherLimit | None = None


def info_nce(
    query_BD: Tensor,
    *,
    candidate_ND: Tensor,
    target_B: Tensor,
    scale: float,
    false: FalseNegatives | None = None,
) -> tuple[Tensor, Tensor]:
    """The SUM over rows of the cross-entropy of scaled cosine similarities, a scalar in fp32; and
    the number of rows whose positive is the most similar candidate of those that count, a scalar.

    The positive of row i is `candidate_ND[target_B[i]]`; all other candidates are its negatives
    (SimCSE, Gao et al. 2021, eq. 1; `scale` is 1 / temperature), except those that `false` leaves
    out. Rows are processed in chunks, and the gradient is computed together with the loss, in one
    matrix of a chunk's size. So memory does not grow with B x N, and nothing is computed twice.
    """
    query = F.normalize(query_BD.float(), dim=-1)
    candidate = F.normalize(candidate_ND.float(), dim=-1)
    loss, correct = _ChunkedNce.apply(query, candidate, target_B, scale, false)  # type: ignore[no-untyped-call]
    return loss, correct


class _ChunkedNce(torch.autograd.Function):
    """The gradient of a row's loss with respect to its scaled similarities is softmax - one-hot.
    What follows the loss can only multiply it by a factor, so `forward` can compute it already."""

    @staticmethod
    def forward(
        ctx: Any,
        query_BD: Tensor,
        candidate_ND: Tensor,
        target_B: Tensor,
        scale: float,
        false: FalseNegatives | None,
    ) -> tuple[Tensor, Tensor]:
        wanted = any(ctx.needs_input_grad)
        query_grad_BD, candidate_grad_ND = (
            torch.empty_like(query_BD),
            torch.zeros_like(candidate_ND),
        )
        loss, correct = query_BD.new_zeros(()), target_B.new_zeros(())
        rows = max(1, CHUNK_ELEMENTS // len(candidate_ND))
        # One matrix for all chunks: if each chunk had its own, memory could grow with every chunk,
        # because the C library splits freed blocks for smaller allocations.
        room_BN = query_BD.new_empty(min(rows, len(query_BD)), len(candidate_ND))
        for start in range(0, len(query_BD), rows):
            part_BD, target_B1 = (
                part[start : start + rows] for part in (query_BD, target_B[:, None])
            )
            score_BN = torch.mm(part_BD, candidate_ND.T, out=room_BN[: len(part_BD)])
            if false is not None:
                some = _rows_of(false, start=start, stop=start + rows)
                score_BN.masked_fill_(_no_negative(score_BN, target_B1, some), -torch.inf)
            correct += (score_BN.argmax(dim=1, keepdim=True) == target_B1).sum()
            score_BN *= scale
            total_B1 = score_BN.logsumexp(dim=1, keepdim=True)
            loss += (total_B1 - score_BN.gather(1, target_B1)).sum()
            if wanted:
                # The scores are not needed any more, and become their own gradient: first the
                # softmax, then minus one at the positive.
                score_BN.sub_(total_B1).exp_()
                score_BN.scatter_add_(1, target_B1, -torch.ones_like(total_B1))
                torch.mm(score_BN, candidate_ND, out=query_grad_BD[start : start + rows])
                candidate_grad_ND.addmm_(score_BN.T, part_BD)
        ctx.save_for_backward(query_grad_BD, candidate_grad_ND)
        ctx.scale = scale
        ctx.mark_non_differentiable(correct)
        return loss, correct

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        query_grad_BD, candidate_grad_ND = ctx.saved_tensors
        factor = gradients[0] * ctx.scale
        return query_grad_BD.mul_(factor), candidate_grad_ND.mul_(factor), None, None, None


@torch.no_grad()
def _no_negative(cosine_BN: Tensor, target_B1: Tensor, false: FalseNegatives) -> Tensor:
    left_out_BN = false.candidate_N == false.positive_B[:, None]
    left_out_BN |= false.candidate_N == false.query_B[:, None]
    left_out_BN |= false.answers_N == false.query_B[:, None]
    left_out_BN |= false.candidate_N == FILLER
    if false.margin is not None:
        left_out_BN |= cosine_BN > cosine_BN.gather(1, target_B1) + false.margin
    if false.limit is not None:
        left_out_BN |= false.limit.is_nearer(target_B1)
    # The positive of a row matches its own hashes, but must stay.
    left_out_BN.scatter_(1, target_B1, False)
    return left_out_BN


def _rows_of(false: FalseNegatives, *, start: int, stop: int) -> FalseNegatives:
    return replace(
        false,
        query_B=false.query_B[start:stop],
        positive_B=false.positive_B[start:stop],
        limit=false.limit and false.limit.rows(start=start, stop=stop),
    )


def matryoshka(
    loss: Callable[[int], tuple[Tensor, Tensor]], *, dims: Sequence[int], width: int
) -> tuple[Tensor, Tensor]:
    """The mean of the losses of the whole vectors and of those cut to each of `dims` (Kusupati et
    al. 2022, section 3), and the second result of the loss of the whole vectors. `loss(d)` is the
    loss of the first d coordinates."""
    results = [loss(dim) for dim in (*(dim for dim in dims if dim < width), width)]
    return torch.stack([part for part, _ in results]).mean(), results[-1][1]


def masked_token_nll(
    logits_MV: Tensor, *, target_M: Tensor, kernel: Kernel = "torch"
) -> tuple[Tensor, Tensor]:
    """The SUM over masked tokens of the negative log-likelihood, a scalar in fp32; and the number
    of masked tokens that the model ranks first, a scalar.

    It is a sum, because the caller divides by the number of masked tokens of the whole global
    batch. The logits are overwritten by their gradient, in chunks, so that there is neither a
    second matrix of this size nor an fp32 copy of it.

    `kernel` "liger" is that of liger-kernel, with one pass over each row of logits; for bf16 logits
    it rounds each token's loss to bf16 before the sum.
    """
    if target_M.numel() == 0:
        # A zero that still depends on the logits: under ZeRO-3 the backward pass is collective, and
        # a rank whose loss reached no weight would make all others wait forever.
        return logits_MV.float().sum() * 0.0, target_M.new_zeros(())
    loss, correct = _InPlaceNll.apply(logits_MV, target_M, kernel)  # type: ignore[no-untyped-call]
    return loss, correct


class _InPlaceNll(torch.autograd.Function):
    """The gradient of the sum with respect to the logits is softmax - one-hot, and what follows the
    loss can only multiply it by a factor. So it is computed in the forward pass, as in liger-kernel
    (Hsu et al. 2024)."""

    @staticmethod
    def forward(
        ctx: Any, logits_MV: Tensor, target_M: Tensor, kernel: Kernel
    ) -> tuple[Tensor, Tensor]:
        # Overwriting the logits is safe only if no operation before the loss needs them in its
        # backward pass (a linear head does not). A detached tensor shares memory and version
        # counter with the logits, so autograd raises an error if some operation does need them.
        place_MV = logits_MV.detach()
        make = _gradient_by_liger if kernel == LIGER else _gradient_by_torch
        loss, correct = make(place_MV, target_M)
        ctx.save_for_backward(place_MV)
        ctx.mark_non_differentiable(correct)
        return loss, correct

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None, None]:
        (gradient_MV,) = ctx.saved_tensors
        return gradient_MV.mul_(gradients[0]), None, None


def _gradient_by_torch(place_MV: Tensor, target_M: Tensor) -> tuple[Tensor, Tensor]:
    """The loss and the number of right tokens; the logits are replaced by their gradient."""
    loss = place_MV.new_zeros((), dtype=torch.float32)
    correct = target_M.new_zeros(())
    # Chunks of rows, because the computation is in fp32: for all rows at once that would be two
    # more matrices, each twice as large as the bf16 logits.
    num_tokens = max(1, CHUNK_LOGITS // place_MV.shape[1])
    for start in range(0, len(target_M), num_tokens):
        part_MV = place_MV[start : start + num_tokens]
        target_M1 = target_M[start : start + num_tokens, None]
        fp32_MV = part_MV.float()
        correct += (fp32_MV.argmax(dim=1, keepdim=True) == target_M1).sum()
        total_M1 = fp32_MV.logsumexp(dim=1, keepdim=True)
        loss += (total_M1 - fp32_MV.gather(1, target_M1)).sum()
        # softmax minus one at the target, rounded to the logits' type only where it is stored.
        probability_MV = (fp32_MV - total_M1).exp_()
        probability_MV.scatter_add_(1, target_M1, -torch.ones_like(total_M1))
        part_MV.copy_(probability_MV)
    return loss, correct


def _gradient_by_liger(place_MV: Tensor, target_M: Tensor) -> tuple[Tensor, Tensor]:
    """`_gradient_by_torch` by liger-kernel 0.8 (Hsu et al. 2024, arXiv 2410.10989)."""
    from liger_kernel.ops.cross_entropy import cross_entropy_forward

    loss_M, _, right_M, _, made_MV = cross_entropy_forward(
        place_MV.requires_grad_(),  # the kernel computes the gradient only if this is set
        target_M,
        weight=None,
        ignore_index=-100,
        lse_square_scale=0.0,
        label_smoothing=0.0,
        reduction="none",
        softcap=None,
        return_z_loss=False,
        return_token_accuracy=True,
    )
    assert made_MV is place_MV
    place_MV.requires_grad_(False)
    # torch does not see what the kernel writes; without this the error above would not be raised.
    torch.autograd.graph.increment_version(place_MV)
    return loss_M.float().sum(), right_M.sum().to(target_M.dtype)
