"""Vectors as they will be stored, with a gradient; and a loss that spreads vectors out.

Knows formulas over the vectors of one process. Refuses to know ranks, and how a file is written
(`encoding.formats`, with which the rounding here agrees to the bit).

Shapes: R rows, N texts, D width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from toolkit.model.losses import FILLER
from toolkit.settings.storage_schema import RoundedFormat

INT8_MAX = 127


def as_stored(vectors_RD: Tensor, *, form: RoundedFormat) -> Tensor:
    """The vectors as they are read from a file of this form, divided by their length, in fp32.

    Rounding has no useful gradient: it is taken to be that of the unrounded vectors of unit length
    (the straight-through estimator, Bengio et al. 2013, section 4). Both have one length, so that
    neither form teaches more strongly than the plain vectors.
    """
    plain_RD = F.normalize(vectors_RD.float(), dim=-1)
    with torch.no_grad():
        stored_RD = F.normalize(_rounded(vectors_RD.float(), form=form), dim=-1)
    # The difference is exactly zero, and carries the gradient.
    return stored_RD + (plain_RD - plain_RD.detach())


def _rounded(vectors_RD: Tensor, *, form: RoundedFormat) -> Tensor:
    if form == "binary":
        signs_RD = (vectors_RD > 0).float() * 2 - 1
        return signs_RD * vectors_RD.any(dim=1, keepdim=True)  # the zero vector stays zero
    scale_R1 = vectors_RD.abs().amax(dim=1, keepdim=True) / INT8_MAX
    scale_R1 = torch.where(scale_R1 > 0, scale_R1, 1.0)
    return (vectors_RD / scale_R1).round() * scale_R1


def spread_out(vectors_ND: Tensor, *, hash_N: Tensor | None = None) -> Tensor:
    """The spread-out regulariser (GOR) over all pairs of different texts, a scalar in fp32: the
    square of their mean cosine, plus what their mean squared cosine exceeds 1/D by. Both are zero
    for directions that are uniform on the sphere (Zhang et al. 2017, section 3).

    `hash_N` are the hashes of the texts: of equal texts only the first counts, and FILLER does not
    count. Without it all texts are different.

    The sum of all cosines is the squared length of the sum of all vectors, and that of their
    squares is the squared Frobenius norm of the Gram matrix, on whichever side it is smaller. So no
    more than D x D numbers are in memory, however many texts there are.
    """
    unit_ND = F.normalize(vectors_ND.float(), dim=-1)
    num_texts = unit_ND.new_full((), len(unit_ND))
    if hash_N is not None:
        counts_N1 = _firsts(hash_N)[:, None].float()
        unit_ND, num_texts = unit_ND * counts_N1, counts_N1.sum()
    gram = unit_ND @ unit_ND.T if len(unit_ND) < unit_ND.shape[1] else unit_ND.T @ unit_ND
    own_N = unit_ND.square().sum(dim=1)  # a text's cosine with itself: 1, or 0 for no vector
    pairs = (num_texts * (num_texts - 1)).clamp(min=1)
    mean = (unit_ND.sum(dim=0).square().sum() - own_N.sum()) / pairs
    mean_square = (gram.square().sum() - own_N.square().sum()) / pairs
    return mean.square() + (mean_square - 1 / unit_ND.shape[1]).clamp(min=0)


def _firsts(hash_N: Tensor) -> Tensor:
    """Whether a hash is not FILLER and is none of those before it (N,)."""
    sorted_N, order_N = hash_N.sort(stable=True)
    is_new_N = F.pad(sorted_N[1:] != sorted_N[:-1], (1, 0), value=True) & (sorted_N != FILLER)
    return torch.zeros_like(is_new_N).scatter(0, order_N, is_new_N)
