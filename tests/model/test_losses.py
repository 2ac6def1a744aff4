"""Losses and pooling against their definitions."""

import importlib.util

import pytest
import torch
import torch.nn.functional as F

from tests.conftest import need
from toolkit.model import losses
from toolkit.model.losses import (
    FILLER,
    FalseNegatives,
    Kernel,
    info_nce,
    masked_token_nll,
    matryoshka,
)
from toolkit.model.pooling import mean_pool


def test_info_nce_is_its_definition() -> None:
    torch.manual_seed(0)
    query, candidate = torch.randn(3, 5), torch.randn(7, 5)
    target = torch.tensor([4, 0, 6])
    expected = torch.tensor(0.0)
    for i in range(3):
        scores = [20.0 * torch.dot(query[i], c) / (query[i].norm() * c.norm()) for c in candidate]
        expected -= torch.log_softmax(torch.stack(scores), dim=0)[target[i]]
    found, correct = info_nce(query, candidate_ND=candidate, target_B=target, scale=20.0)
    torch.testing.assert_close(found, expected)
    cosine = torch.nn.functional.cosine_similarity(query[:, None], candidate[None], dim=-1)
    assert int(correct) == int((cosine.argmax(dim=1) == target).sum())


@pytest.mark.parametrize("margin", [None, 0.0, 0.3])
def test_false_negatives_are_left_out_as_the_loops_say(margin: float | None) -> None:
    torch.manual_seed(1)
    query, candidate = torch.randn(6, 4), torch.randn(15, 4)
    target = torch.tensor([0, 1, 2, 3, 4, 5])
    hashes = torch.tensor([7, 8, 9, 7, 5, 6, 7, 1, 2, 8, 11, 12, 3, FILLER, 4])
    false = FalseNegatives(
        query_B=torch.tensor([11, 12, 13, 14, 11, 16]),
        positive_B=hashes[:6],
        candidate_N=hashes,
        answers_N=torch.tensor([11, 12, 13, 14, 11, 16] + [0] * 9),
        margin=margin,
    )
    expected, right = torch.tensor(0.0), 0
    for i in range(6):
        cosine = torch.nn.functional.cosine_similarity(query[i][None], candidate, dim=-1)
        kept = []
        for j in range(15):
            same = hashes[j] in (hashes[i], false.query_B[i], FILLER)
            same |= j < 6 and false.query_B[j] == false.query_B[i]
            same |= margin is not None and bool(cosine[j] > cosine[i] + margin)
            if j == i or not same:
                kept.append(j)
        scores = 5.0 * cosine[kept]
        expected -= torch.log_softmax(scores, dim=0)[kept.index(i)]
        right += kept[int(scores.argmax())] == i
    found, correct = info_nce(
        query, candidate_ND=candidate, target_B=target, scale=5.0, false=false
    )
    torch.testing.assert_close(found, expected)
    assert int(correct) == right


def test_matryoshka_is_the_mean_over_cut_vectors() -> None:
    torch.manual_seed(0)
    query, candidate, target = torch.randn(3, 8), torch.randn(5, 8), torch.tensor([0, 4, 2])

    def loss(dim: int) -> tuple[torch.Tensor, torch.Tensor]:
        return info_nce(query[:, :dim], candidate_ND=candidate[:, :dim], target_B=target, scale=2.0)

    found, correct = matryoshka(loss, dims=[2, 4, 8, 99], width=8)
    torch.testing.assert_close(found, (loss(2)[0] + loss(4)[0] + loss(8)[0]) / 3)
    assert int(correct) == int(loss(8)[1])


def test_masked_token_nll_sums_and_keeps_an_empty_batch_in_the_graph() -> None:
    torch.manual_seed(0)
    logits = torch.randn(4, 9, requires_grad=True)
    target = torch.tensor([1, 2, 3, 8])
    expected = -torch.log_softmax(logits, dim=1)[torch.arange(4), target].sum()
    found, correct = masked_token_nll(logits * 1.0, target_M=target)
    torch.testing.assert_close(found, expected)
    assert int(correct) == int((logits.argmax(dim=1) == target).sum())
    empty, none = masked_token_nll(logits[:0], target_M=target[:0])
    empty.backward()
    assert int(none) == 0
    assert float(empty.detach()) == 0.0
    assert logits.grad is not None
    assert not logits.grad.any()


def place_of(kernel: Kernel) -> str:
    """The device to try a kernel on."""
    if kernel == "torch":
        return "cpu"
    need(importlib.util.find_spec("liger_kernel") is not None, "liger-kernel is not installed")
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("kernel", "tokens"), [("torch", 1), ("torch", 4), ("torch", 100), ("liger", 0)]
)
def test_masked_token_nll_in_place_equals_cross_entropy(
    dtype: torch.dtype, kernel: Kernel, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loss and the gradient of what the logits come from, whatever the chunks, whatever follows."""
    torch.manual_seed(0)
    device = place_of(kernel)
    hidden, head = (torch.randn(*size).to(device, dtype) for size in ((30, 5), (5, 9)))
    target = torch.randint(9, (30,), device=device)
    gradients = []
    for naive in (True, False):
        leaf = hidden.clone().requires_grad_()
        logits = leaf @ head
        if naive:
            loss = F.cross_entropy(logits.float(), target, reduction="sum")
            right = (logits.argmax(dim=1) == target).sum()
            wanted = loss.detach()
        else:
            monkeypatch.setattr(losses, "CHUNK_LOGITS", 9 * tokens)
            loss, correct = masked_token_nll(logits, target_M=target, kernel=kernel)
            rounded = kernel == "liger" and dtype == torch.bfloat16  # each token's loss
            torch.testing.assert_close(
                loss.detach(), wanted, rtol=4e-3 if rounded else 1e-6, atol=0
            )
            assert int(correct) == int(right)
        (loss * 0.37).backward()
        gradients.append(leaf.grad)
    # In bf16 the factor after the loss is one rounding more.
    tolerance = 1e-6 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(gradients[1], gradients[0], atol=tolerance, rtol=1e-5)


@pytest.mark.parametrize("kernel", ["torch", "liger"])
def test_logits_that_are_needed_again_are_an_error_not_a_wrong_gradient(kernel: Kernel) -> None:
    device = place_of(kernel)
    hidden = torch.randn(3, 9, requires_grad=True, device=device)
    logits = hidden.tanh()  # keeps its result for its gradient
    target = torch.tensor([1, 2, 3], device=device)
    loss, _ = masked_token_nll(logits, target_M=target, kernel=kernel)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_mean_pool_sees_own_tokens_only() -> None:
    hidden = torch.tensor([[[9.0], [1.0], [3.0], [50.0]], [[7.0], [7.0], [7.0], [7.0]]])
    own = torch.tensor([[0, 1, 1, 0], [0, 0, 0, 0]])
    assert mean_pool(hidden, own_BT=own).tolist() == [[2.0], [0.0]]
