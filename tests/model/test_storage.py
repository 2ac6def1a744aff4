"""Vectors as they will be stored, and vectors that are spread out, against their definitions."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.training.storing import as_read
from toolkit.model.losses import FILLER
from toolkit.model.storage import as_stored, spread_out
from toolkit.settings.storage_schema import RoundedFormat

FORMS: tuple[RoundedFormat, ...] = ("int8", "binary")


@pytest.mark.parametrize("form", FORMS)
def test_the_rounding_is_that_of_the_files(form: RoundedFormat) -> None:
    """Halves, zeros, the zero vector, a single large number, tiny and large vectors."""
    torch.manual_seed(0)
    rows = [torch.randn(64) * 10.0**power for power in range(-20, 16)]
    rows += [torch.zeros(64), torch.arange(64) - 31.5, (torch.arange(64) == 5) * -3.0]
    rows += [torch.cat([torch.tensor([127.0]), torch.arange(63) / 2])]
    vectors = torch.stack(rows)
    wanted = F.normalize(as_read(vectors, form=form), dim=1)
    assert torch.equal(as_stored(vectors, form=form) + 0, wanted)
    plain = F.normalize(vectors, dim=1)
    assert not torch.allclose(wanted, plain, atol=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_the_gradient_goes_straight_through(form: RoundedFormat) -> None:
    """To the vector of unit length, from where it goes on as that of any cosine."""
    torch.manual_seed(0)
    vectors = torch.randn(5, 16, requires_grad=True)
    slope = torch.randn(5, 16)
    (found,) = torch.autograd.grad((as_stored(vectors, form=form) * slope).sum(), vectors)
    (wanted,) = torch.autograd.grad((F.normalize(vectors, dim=1) * slope).sum(), vectors)
    torch.testing.assert_close(found, wanted)


def spread_by_pairs(vectors: Tensor, *, hashes: list[int]) -> Tensor:
    cosines = [
        F.cosine_similarity(vectors[i], vectors[j], dim=0)
        for i in range(len(hashes))
        for j in range(len(hashes))
        if i != j
        and FILLER not in (hashes[i], hashes[j])
        and hashes[i] not in hashes[:i]
        and hashes[j] not in hashes[:j]
    ]
    every = torch.stack(cosines)
    return every.mean() ** 2 + (every.square().mean() - 1 / vectors.shape[1]).clamp(min=0)


@pytest.mark.parametrize("width", [4, 40])  # fewer and more than there are texts
@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_spread_out_is_its_definition(width: int, shift: float) -> None:
    torch.manual_seed(0)
    vectors = (torch.randn(9, width, dtype=torch.float64) + shift).requires_grad_()
    hashes = [7, 8, FILLER, 7, -2, FILLER, 9, 8, 3]
    for some in (hashes, list(range(1, 10))):
        given = torch.tensor(some) if some is hashes else None
        wanted = spread_by_pairs(vectors, hashes=some)
        found = spread_out(vectors, hash_N=given)
        torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-7)
        mine, theirs = (torch.autograd.grad(loss, vectors)[0] for loss in (found, wanted))
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-7)


def test_only_what_is_more_than_a_uniform_directions_is_pushed_apart() -> None:
    """An axis and its opposite each: the mean cosine is slightly below 0, its square below 1/D."""
    axes = torch.cat([torch.eye(8), -torch.eye(8)])
    assert float(spread_out(axes)) == pytest.approx((1 / 15) ** 2)
    assert float(spread_out(torch.ones(3, 8))) == pytest.approx(2 - 1 / 8)


@pytest.mark.parametrize("hashes", [[5], [5, 5], [FILLER, FILLER]])
def test_a_single_text_is_spread_out_already(hashes: list[int]) -> None:
    vectors = torch.randn(len(hashes), 6, requires_grad=True)
    spread_out(vectors, hash_N=torch.tensor(hashes)).backward()
    assert vectors.grad is not None
    assert float(vectors.grad.abs().max()) < 1e-6
