"""A contrastive batch of any size in the memory of one micro-batch: GradCache.

Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup". First
all micro-batches are embedded without gradient. Then the loss gives its gradient with respect to
the vectors alone. Then each micro-batch is embedded again, with gradient, and its vectors' share of
that gradient is sent backward. This is exact: the sum over micro-batches is the gradient of the
whole batch.

Shapes: B rows of a micro-batch, D width.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from toolkit.model.memory import give_back
from toolkit.parallel import comm
from toolkit.training.objective import Figures

MAX_UNIFORMITY_ROWS = 1024
GIVE_BACK_EVERY = 16  # micro-batches; giving back takes a hundredth of their time

Batch = TypeVar("Batch")
Loss = Callable[[Sequence[Tensor]], tuple[Tensor, Figures]]


def cached_terms(
    batches: Sequence[Batch], *, embed: Callable[[Batch], Tensor], loss: Loss
) -> Iterator[tuple[Tensor, Figures]]:
    """For each micro-batch in order a scalar to call backward on, and the figures to report.

    `embed` gives vectors (B, D). `loss` gives the scalar loss of the vectors of all micro-batches,
    with candidates of all ranks, and its figures. A single micro-batch is not embedded twice.

    Dropout is seeded before each micro-batch by its number, so that the second pass drops what the
    first one dropped, on any device, without saving the state of a generator.
    """
    seed = torch.initial_seed()
    if len(batches) == 1:
        yield loss([embed(batches[0])])
        return
    gradients, figures = _vector_gradients(batches, embed=embed, loss=loss, seed=seed)
    give_back()
    for batch, gradient_BD in zip(_in_turn(batches, seed=seed), gradients, strict=True):
        # The gradient of this scalar is the loss's gradient through these vectors (chain rule).
        yield (embed(batch) * gradient_BD).sum(), figures
        figures = {}


def _vector_gradients(
    batches: Sequence[Batch], *, embed: Callable[[Batch], Tensor], loss: Loss, seed: int
) -> tuple[list[Tensor], Figures]:
    """The gradient of the loss with respect to the vectors of each micro-batch, and its figures.
    The vectors themselves are freed when this returns."""
    with torch.no_grad():
        vectors = [embed(batch) for batch in _in_turn(batches, seed=seed)]
    leaves = [vector.detach().requires_grad_() for vector in vectors]
    whole, figures = loss(leaves)
    whole.backward()  # type: ignore[no-untyped-call]
    return [leaf.grad for leaf in leaves if leaf.grad is not None], figures


def _in_turn(batches: Sequence[Batch], *, seed: int) -> Iterator[Batch]:
    """Each micro-batch, with dropout seeded by its number.

    Micro-batches differ in size, so that the C library reuses less and less of the memory that
    they free; now and then it is made to give that back.
    """
    for number, batch in enumerate(batches):
        torch.manual_seed(seed + number)
        yield batch
        if (number + 1) % GIVE_BACK_EVERY == 0:
            give_back()


@torch.no_grad()
def contrastive_figures(
    loss: Tensor, *, correct: Tensor, query_BD: Tensor, positive_BD: Tensor
) -> Figures:
    """Loss, accuracy, and the alignment and uniformity of Wang and Isola 2020, summed over rows.

    Alignment is the squared distance of a query to its positive (lower is better). Uniformity is
    the logarithm of the mean of exp(-2 d^2) over pairs of queries of one rank (lower is more
    uniform).
    """
    query, positive = (F.normalize(part.float(), dim=-1) for part in (query_BD, positive_BD))
    some = query[:MAX_UNIFORMITY_ROWS]
    uniformity = torch.pdist(some).pow(2).mul(-2).exp().mean().log() * len(query)
    return {
        "loss": loss.detach(),
        "accuracy": correct,
        "alignment": (query - positive).pow(2).sum(),
        "uniformity": uniformity if len(some) > 1 else query.new_zeros(()),
    }


def gather_vectors(rows_BD: Tensor, *, low_precision: bool) -> Tensor:
    """The vectors (N, D) of all ranks, with gradient, in fp32. With `low_precision` they are sent
    as bf16: half the traffic, and no more rounding than the model's own."""
    return comm.gather_rows(rows_BD.bfloat16() if low_precision else rows_BD).float()
