"""The loss on the order of cosines against its definition, with every two pairs."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from toolkit.model.cosent import cosent, share_in_order


def naive(cosines: Tensor, grades: list[float], scale: float) -> Tensor:
    """The definition, with a loop over every two pairs."""
    total = torch.ones((), dtype=torch.float64)
    for mine, cosine in zip(grades, cosines, strict=True):
        for theirs, other in zip(grades, cosines, strict=True):
            if mine > theirs:
                total = total + (scale * (other - cosine)).exp()
    return total.log()


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(-99, 99)), min_size=1, max_size=20),
    st.sampled_from([1.0, 20.0, 100.0]),
)
def test_loss_and_gradient_are_those_of_the_definition(
    pairs: list[tuple[int, int]], scale: float
) -> None:
    """With equal grades and equal cosines among them, in any order."""
    grades = [grade / 2 for grade, _ in pairs]
    values = torch.tensor([cosine / 100 for _, cosine in pairs], dtype=torch.float64)
    ours, theirs = (values.clone().requires_grad_() for _ in range(2))
    found = cosent(ours, grade_N=torch.tensor(grades, dtype=torch.float64), scale=scale)
    expected = naive(theirs, grades, scale)
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-9, abs=1e-12)
    found.backward()  # type: ignore[no-untyped-call]
    if expected.requires_grad:  # else no two grades differ, and nothing is learnt
        expected.backward()  # type: ignore[no-untyped-call]
    wanted = torch.zeros_like(values) if theirs.grad is None else theirs.grad
    assert ours.grad is not None
    torch.testing.assert_close(ours.grad, wanted, rtol=1e-7, atol=1e-10)


def test_sentence_transformers_has_the_same_loss() -> None:
    from sentence_transformers.sentence_transformer.losses import CoSENTLoss

    rng = np.random.default_rng(1)
    vectors = [torch.tensor(rng.standard_normal((12, 8)), dtype=torch.float32) for _ in range(2)]
    grades = torch.tensor(rng.integers(0, 4, 12), dtype=torch.float32)
    theirs = CoSENTLoss(None, scale=20.0)
    expected = theirs.compute_loss_from_embeddings(vectors, grades)
    cosines = torch.nn.functional.cosine_similarity(*vectors)
    found = cosent(cosines, grade_N=grades.double(), scale=20.0)
    assert float(found) == pytest.approx(float(expected), rel=1e-5)


def test_what_is_in_order_costs_little_and_what_is_not_much() -> None:
    grades = torch.tensor([3.0, 1.0, 2.0])
    right, wrong = torch.tensor([0.9, 0.1, 0.5]), torch.tensor([0.1, 0.9, 0.5])
    assert float(cosent(right, grade_N=grades, scale=20.0)) < 1e-3
    # exp(16) and twice exp(8) are far more than 1.
    expected = math.log(math.exp(16) + 2 * math.exp(8) + 1)
    assert float(cosent(wrong, grade_N=grades, scale=20.0)) == pytest.approx(expected)
    assert float(share_in_order(right, grade_N=grades)) == 1.0
    assert float(share_in_order(wrong, grade_N=grades)) == 0.0
    assert float(share_in_order(torch.tensor([0.9, 0.1, 0.05]), grade_N=grades)) == 2 / 3
    assert float(share_in_order(right, grade_N=torch.ones(3))) == 1.0


def test_extreme_cosines_at_a_large_scale_stay_finite() -> None:
    cosines = torch.tensor([1.0, -1.0, 1.0, -1.0]).requires_grad_()
    loss = cosent(cosines, grade_N=torch.tensor([0.0, 3.0, 1.0, 2.0]), scale=1000.0)
    loss.backward()  # type: ignore[no-untyped-call]
    assert float(loss.detach()) == pytest.approx(2000 + math.log(4))
    assert cosines.grad is not None
    assert cosines.grad.isfinite().all()
