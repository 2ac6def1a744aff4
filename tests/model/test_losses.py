"""Losses and pooling against their definitions."""

import torch

from toolkit.model.losses import info_nce, masked_token_nll
from toolkit.model.pooling import mean_pool


def test_info_nce_is_its_definition() -> None:
    torch.manual_seed(0)
    query, candidate = torch.randn(3, 5), torch.randn(7, 5)
    target = torch.tensor([4, 0, 6])
    expected = torch.tensor(0.0)
    for i in range(3):
        scores = [20.0 * torch.dot(query[i], c) / (query[i].norm() * c.norm()) for c in candidate]
        expected -= torch.log_softmax(torch.stack(scores), dim=0)[target[i]]
    found = info_nce(query, candidate_ND=candidate, target_B=target, scale=20.0)
    torch.testing.assert_close(found, expected)


def test_masked_token_nll_sums_and_keeps_an_empty_batch_in_the_graph() -> None:
    torch.manual_seed(0)
    logits = torch.randn(4, 9, requires_grad=True)
    target = torch.tensor([1, 2, 3, 8])
    expected = -torch.log_softmax(logits, dim=1)[torch.arange(4), target].sum()
    torch.testing.assert_close(masked_token_nll(logits, target_M=target), expected)
    empty = masked_token_nll(logits[:0], target_M=target[:0])
    empty.backward()
    assert float(empty.detach()) == 0.0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_mean_pool_sees_own_tokens_only() -> None:
    hidden = torch.tensor([[[9.0], [1.0], [3.0], [50.0]], [[7.0], [7.0], [7.0], [7.0]]])
    own = torch.tensor([[0, 1, 1, 0], [0, 0, 0, 0]])
    assert mean_pool(hidden, own_BT=own).tolist() == [[2.0], [0.0]]
