"""A contrastive batch of any size in the memory of one micro-batch: GradCache.

Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup". First
all micro-batches are embedded without gradient; then the loss and its gradient with respect to the
vectors alone; then each micro-batch again, with gradient, driven by its vectors' share. Exact: the
sum over micro-batches is the gradient of the whole batch.

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
GIVE_BACK_EVERY = 16  # micro-batches, a hundredth of whose time it takes

Batch = TypeVar("Batch")
Loss = Callable[[Sequence[Tensor]], tuple[Tensor, Figures]]


def cached_terms(
    batches: Sequence[Batch], *, embed: Callable[[Batch], Tensor], loss: Loss
) -> Iterator[tuple[Tensor, Figures]]:
    """A scalar to go backward from for each micro-batch, in order, and the figures to report.

    `embed` gives vectors (B, D); `loss` the scalar loss of all micro-batches' vectors, over ranks
    too, and its figures. A single micro-batch is not embedded twice.

    Dropout is seeded anew before each micro-batch, by its number: the second pass drops what the
    first one dropped, on any device, without a generator's state being kept.
    """
    seed = torch.initial_seed()
    if len(batches) == 1:
        yield loss([embed(batches[0])])
        return
    gradients, figures = _vector_gradients(batches, embed=embed, loss=loss, seed=seed)
    give_back()
    for batch, gradient_BD in zip(_in_turn(batches, seed=seed), gradients, strict=True):
        yield (embed(batch) * gradient_BD).sum(), figures
        figures = {}


def _vector_gradients(
    batches: Sequence[Batch], *, embed: Callable[[Batch], Tensor], loss: Loss, seed: int
) -> tuple[list[Tensor], Figures]:
    """The gradient of the loss with respect to the vectors of each micro-batch, and its figures.
    The vectors themselves are gone when this returns."""
    with torch.no_grad():
        vectors = [embed(batch) for batch in _in_turn(batches, seed=seed)]
    leaves = [vector.detach().requires_grad_() for vector in vectors]
    whole, figures = loss(leaves)
    whole.backward()  # type: ignore[no-untyped-call]
    return [leaf.grad for leaf in leaves if leaf.grad is not None], figures


def _in_turn(batches: Sequence[Batch], *, seed: int) -> Iterator[Batch]:
    """Each micro-batch, with dropout seeded by its number.

    They differ in size, and the C library finds less and less room in what they leave free: it
    gives that back now and then.
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
    """Loss, accuracy, and what Wang and Isola 2020 call alignment and uniformity, summed over rows:
    the squared distance of a query to its positive (lower is better), and the logarithm of the
    mean of exp(-2 d^2) over pairs of queries of one rank (lower is more uniform)."""
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
    """The vectors (N, D) of all ranks, with gradient, in fp32; sent as bf16 with `low_precision`,
    which halves the traffic and costs no more than the model's own rounding."""
    return comm.gather_rows(rows_BD.bfloat16() if low_precision else rows_BD).float()
