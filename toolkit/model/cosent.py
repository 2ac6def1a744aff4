"""A loss on the order of cosines: pairs of texts with a higher grade should have a higher one.

Knows the cosines and grades of a whole batch. Refuses to know vectors and ranks.

Shapes: N pairs.
"""

import torch
from torch import Tensor

MAX_ORDERED_PAIRS = 1024  # whose order is reported: it compares every two of them


def cosent(cosine_N: Tensor, *, grade_N: Tensor, scale: float) -> Tensor:
    """log(1 + the sum of exp(scale (c_j - c_i)) over all i, j with grade_i > grade_j), a scalar in
    fp64 (CoSENT, Su 2022; sentence-transformers' CoSENTLoss).

    Pairs of equal grades say nothing to each other. In the order of grades, the sum over j is one
    of a prefix, so that it takes N log N steps and no matrix.
    """
    order_N = grade_N.argsort()
    score_N, sorted_N = (cosine_N.double() * scale)[order_N], grade_N[order_N].contiguous()
    num_below_N = torch.searchsorted(sorted_N, sorted_N)
    sum_N = score_N.logcumsumexp(0)  # as logarithms: of the first, the first two, ...
    term_N = sum_N[(num_below_N - 1).clamp(min=0)] - score_N
    term_N = term_N.masked_fill(num_below_N == 0, -torch.inf)
    return torch.cat([score_N.new_zeros(1), term_N]).logsumexp(0)


@torch.no_grad()
def share_in_order(cosine_N: Tensor, *, grade_N: Tensor) -> Tensor:
    """Of every two pairs with different grades, among the first of the batch, the share whose
    cosines are in the order of their grades; 1 where there are none."""
    cosine_N, grade_N = cosine_N[:MAX_ORDERED_PAIRS], grade_N[:MAX_ORDERED_PAIRS]
    above_NN = grade_N[:, None] > grade_N
    right_NN = above_NN & (cosine_N[:, None] > cosine_N)
    # 0 of 0 counts as all of 1.
    none = (~above_NN.any()).double()
    return (right_NN.sum() + none) / (above_NN.sum() + none)
