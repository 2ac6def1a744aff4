"""Dropout by bits of our own: as defined, and the same bits again where they must be."""

import numpy as np
import pytest
import torch
from torch.utils.checkpoint import checkpoint

from toolkit.model.dropout import Dropout, dropout


@pytest.mark.parametrize("p", [0.05, 0.3, 0.5, 0.9])
def test_the_share_and_the_mean_are_those_of_the_definition(p: float) -> None:
    torch.manual_seed(0)
    output = dropout(torch.ones(1000, 1000), p=p)
    dropped = float((output == 0).double().mean())
    # Four standard deviations of a million draws, and half a step of 2^-16.
    assert abs(dropped - p) < 4 * (p * (1 - p) / 1e6) ** 0.5 + 2**-17
    kept = output[output != 0]
    assert float(kept.min()) == float(kept.max()) == pytest.approx(1 / (1 - p), rel=1e-3)


def test_neighbours_and_rows_are_independent() -> None:
    """The count of 1 in every 4 x 4 pieces is binomial, across words and rows."""
    torch.manual_seed(1)
    kept = (dropout(torch.ones(2048, 512), p=0.5) != 0).double().numpy()
    for shift in (1, 2, 3, 4, 5, 8, 512):
        flat = kept.ravel() - 0.5
        assert abs(np.mean(flat[:-shift] * flat[shift:]) * 4) < 4 / flat.size**0.5
    blocks = kept.reshape(512, 4, 128, 4).sum((1, 3))
    assert blocks.var() == pytest.approx(4.0, rel=0.05)


def test_two_calls_differ_and_a_seed_repeats_them() -> None:
    input = torch.ones(64, 64)
    torch.manual_seed(3)
    first, second = dropout(input, p=0.3), dropout(input, p=0.3)
    torch.manual_seed(3)
    assert torch.equal(dropout(input, p=0.3), first)
    assert torch.equal(dropout(input, p=0.3), second)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_gradient_is_the_mask(dtype: torch.dtype) -> None:
    input = torch.randn(33, 7, dtype=dtype, requires_grad=True)
    output = dropout(input, p=0.4)
    output.sum().backward()
    assert output.dtype == dtype
    assert input.grad is not None
    torch.testing.assert_close(input.grad * input.detach(), output.detach())


def test_recomputed_activations_drop_the_same() -> None:
    """The gradient of a checkpointed function is right only if its mask comes again."""
    input = torch.randn(50, 50, requires_grad=True)
    layer = Dropout(0.5)
    torch.manual_seed(5)
    plain = layer(input).square().sum()
    (wanted,) = torch.autograd.grad(plain, input)
    torch.manual_seed(5)
    again = checkpoint(lambda x: layer(x).square().sum(), input, use_reentrant=False)
    torch.manual_seed(6)  # what runs between the passes
    (found,) = torch.autograd.grad(again, input)
    assert torch.equal(found, wanted)


def test_nothing_is_dropped_at_zero_or_in_evaluation() -> None:
    input = torch.randn(5, 5)
    assert torch.equal(dropout(input, p=0.0), input)
    assert torch.equal(Dropout(0.5).eval()(input), input)
    assert dropout(torch.ones(0, 4), p=0.5).shape == (0, 4)


@pytest.mark.parametrize("threads", [1, 2])
def test_bits_are_fixed_for_every_processor_and_thread_count(threads: int) -> None:
    """Written down once; SFC64 is integer arithmetic."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        torch.manual_seed(42)
        kept = dropout(torch.ones(300, 300), p=0.3).flatten() != 0
    finally:
        torch.set_num_threads(before)
    bits = "".join(str(int(one)) for one in kept[:40])
    assert (bits, int(kept.sum())) == ("1101111111110011111111101110011101010101", 62813)
