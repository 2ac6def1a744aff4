"""The divergence from a teacher's similarities, and its gradients, beside torch's own functions."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from toolkit.model import distillation, losses
from toolkit.model.distillation import Excluded, similarity_kl
from toolkit.model.losses import FalseNegatives, Taught, TeacherLimit, info_nce

B, N, D, E = 5, 12, 7, 4


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def taught() -> Taught:
    return Taught(F.normalize(drawn(B, E, seed=1), dim=1), F.normalize(drawn(N, E, seed=2), dim=1))


def naive(query: Tensor, candidate: Tensor, *, kept: Tensor, scale: float) -> Tensor:
    """Row by row in fp64, over the candidates that count only, by torch's kl_div."""
    given = taught()
    total = query.new_zeros((), dtype=torch.float64)
    for row in range(B):
        places = kept[row].nonzero().flatten()
        if not len(places):
            continue
        student = F.cosine_similarity(query[row].double(), candidate[places].double(), dim=1)
        wanted = (given.candidate_NE[places].double() @ given.query_BE[row].double()) * scale
        total = total + F.kl_div(
            (student * scale).log_softmax(0),
            wanted.log_softmax(0),
            log_target=True,
            reduction="sum",
        )
    return total


@pytest.mark.parametrize("chunk", [1, 2 * N, 2**22])
@pytest.mark.parametrize("scale", [1.0, 20.0])
@pytest.mark.parametrize("own", [False, True])
def test_it_is_the_divergence_over_what_counts(
    own: bool, scale: float, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distillation, "CHUNK_ELEMENTS", chunk)
    query, candidate = (drawn(n, D, seed=n).requires_grad_() for n in (B, N))
    filler = torch.zeros(N, dtype=torch.bool)
    filler[[0, 7]] = True
    own_B = torch.tensor([1, 3, 5, 9, 11]) if own else None
    kept = (~filler).repeat(B, 1)
    if own_B is not None:
        kept[torch.arange(B), own_B] = False
    expected = naive(query, candidate, kept=kept, scale=scale)
    wanted = torch.autograd.grad(3 * expected, [query, candidate])
    found = similarity_kl(
        query,
        candidate_ND=candidate,
        taught=taught(),
        excluded=Excluded(filler, own_B=own_B),
        scale=scale,
    )
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
    for ours, theirs in zip(
        torch.autograd.grad(3 * found, [query, candidate]), wanted, strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_a_student_that_sees_what_the_teacher_sees_has_nothing_to_learn() -> None:
    given = taught()
    query = given.query_BE.clone().requires_grad_()
    excluded = Excluded(torch.zeros(N, dtype=torch.bool))
    found = similarity_kl(
        query, candidate_ND=given.candidate_NE, taught=given, excluded=excluded, scale=10.0
    )
    assert abs(found.item()) < 1e-5
    (gradient,) = torch.autograd.grad(found, [query])
    assert gradient.abs().max() < 1e-4


def test_a_query_without_candidates_counts_as_zero() -> None:
    query, candidate = (drawn(n, D, seed=n).requires_grad_() for n in (B, N))
    excluded = Excluded(torch.ones(N, dtype=torch.bool))
    found = similarity_kl(
        query, candidate_ND=candidate, taught=taught(), excluded=excluded, scale=20.0
    )
    assert found.item() == 0.0
    for gradient in torch.autograd.grad(found, [query, candidate]):
        assert not gradient.any()


@pytest.mark.parametrize("chunk", [1, 2**22])
@pytest.mark.parametrize(("ratio", "margin"), [(1.0, 0.0), (0.5, 0.0), (1.0, -0.3), (1.0, 0.4)])
def test_what_the_teacher_finds_nearer_is_no_negative(
    ratio: float, margin: float, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses, "CHUNK_ELEMENTS", chunk)
    query, candidate = drawn(B, D, seed=3), drawn(N, D, seed=4)
    target = torch.tensor([2, 0, 5, 9, 11])
    given, hashes = taught(), torch.arange(1, N + 1)
    false = FalseNegatives(
        query_B=torch.full((B,), -1),
        positive_B=hashes[target],
        candidate_N=hashes,
        answers_N=torch.zeros(N, dtype=torch.int64),
        limit=TeacherLimit(given, ratio=ratio, margin=margin),
    )
    found, _ = info_nce(query, candidate_ND=candidate, target_B=target, scale=20.0, false=false)
    total, left_out = 0.0, 0
    for row in range(B):
        seen = [float(given.query_BE[row] @ vector) for vector in given.candidate_NE]
        most = seen[target[row]] * ratio + margin
        kept = [n for n in range(N) if n == target[row] or seen[n] <= most]
        left_out += N - len(kept)
        scores = 20 * F.cosine_similarity(query[row], candidate[kept], dim=1)
        total -= float(scores.log_softmax(0)[kept.index(int(target[row]))])
    assert 0 < left_out < B * (N - 1)
    assert float(found) == pytest.approx(total, rel=1e-5)
