"""The maths of the objectives, for one rank's rows. Shapes: B rows, N candidates, D width,
M masked tokens, V vocabulary."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

# Rows whose similarities to all candidates exist at one time, when gradients are wanted.
CHUNK_ELEMENTS = 2**24


def info_nce(query_BD: Tensor, *, candidate_ND: Tensor, target_B: Tensor, scale: float) -> Tensor:
    """The SUM over rows of the cross-entropy of scaled cosine similarities, a scalar in fp32.

    Row i's positive is `candidate_ND[target_B[i]]`, all other candidates are its negatives
    (SimCSE, Gao et al. 2021, eq. 1; `scale` is 1 / temperature). Rows go through in chunks that are
    computed again in the backward pass, so that memory does not grow with B x N.
    """
    query = F.normalize(query_BD.float(), dim=-1)
    candidate = F.normalize(candidate_ND.float(), dim=-1)
    num_rows = max(1, CHUNK_ELEMENTS // len(candidate))
    if num_rows >= len(query):
        return _row_losses(query, candidate, target_B, scale)
    chunks = zip(torch.split(query, num_rows), torch.split(target_B, num_rows), strict=True)
    losses = [
        checkpoint(_row_losses, rows, candidate, target, scale, use_reentrant=False)
        for rows, target in chunks
    ]
    return torch.stack(losses).sum()


def _row_losses(query_BD: Tensor, candidate_ND: Tensor, target_B: Tensor, scale: float) -> Tensor:
    return F.cross_entropy(scale * query_BD @ candidate_ND.T, target_B, reduction="sum")


def masked_token_nll(logits_MV: Tensor, *, target_M: Tensor) -> Tensor:
    """The SUM over masked tokens of the negative log-likelihood, a scalar in fp32.

    A sum, because the normaliser is the number of masked tokens of the whole global batch.
    With no masked token it is a zero that still reaches the logits: under ZeRO-3 a rank that
    leaves the backward graph stops all others.
    """
    if target_M.numel() == 0:
        return logits_MV.float().sum() * 0.0
    return F.cross_entropy(logits_MV.float(), target_M, reduction="sum")
