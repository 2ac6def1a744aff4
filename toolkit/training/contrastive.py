"""A contrastive batch of any size in the memory of one micro-batch: GradCache.

Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup". First
all micro-batches are embedded without gradient; then the loss and its gradient with respect to the
vectors alone; then each micro-batch again, with gradient, driven by its vectors' share. Exact: the
sum over micro-batches is the gradient of the whole batch.

Shapes: B rows of a micro-batch, D width.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from toolkit.training.objective import Batch

Embed = Callable[[Batch], Tensor]
Loss = Callable[[Sequence[Tensor]], Tensor]


def cached_terms(
    batches: Sequence[Batch], *, embed: Embed, loss: Loss
) -> Iterator[tuple[Tensor, float]]:
    """A scalar to go backward from for each micro-batch, in order, and the loss it accounts for.

    `embed` gives vectors (B, D); `loss` the scalar loss of all micro-batches' vectors, over ranks
    too. A single micro-batch is not embedded twice.

    Dropout is seeded anew before each micro-batch, by its number: the second pass drops what the
    first one dropped, on any device, without a generator's state being kept.
    """
    seed = torch.initial_seed()
    if len(batches) == 1:
        total = loss([embed(batches[0])])
        yield total, float(total.detach())
        return
    vectors = []
    for number, batch in enumerate(batches):
        torch.manual_seed(seed + number)
        with torch.no_grad():
            vectors.append(embed(batch))
    leaves = [vector.detach().requires_grad_() for vector in vectors]
    whole = loss(leaves)
    whole.backward()  # type: ignore[no-untyped-call]
    value = float(whole.detach())
    for number, (batch, leaf) in enumerate(zip(batches, leaves, strict=True)):
        torch.manual_seed(seed + number)
        again = embed(batch)
        assert leaf.grad is not None
        yield (again * leaf.grad).sum(), value if number == 0 else 0.0
