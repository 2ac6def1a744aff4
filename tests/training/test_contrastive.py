"""GradCache in one process: masks replayed, one micro-batch in memory, the whole's gradient."""

import json
import sys
import weakref
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.conftest import run, torchrun
from toolkit.model import losses
from toolkit.model.losses import info_nce
from toolkit.training.contrastive import cached_terms
from toolkit.training.objective import Figures

slow = pytest.mark.slow


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Linear(6, 32), nn.Tanh(), nn.Dropout(0.5), nn.Linear(32, 8))
    return nn.Sequential(*layers).double().train()


def batches(*, num_rows: int, size: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(num_rows, 6, generator=generator, dtype=torch.float64)
    return list(rows.split(size))


def loss_sum(vectors: Sequence[Tensor]) -> tuple[Tensor, Figures]:
    first, second = torch.cat(list(vectors)).chunk(2)
    target = torch.arange(len(first))
    loss, _ = info_nce(first, candidate_ND=second, target_B=target, scale=5.0)
    return loss, {"loss": loss.detach()}


def gradients(model: nn.Module) -> list[Tensor]:
    found = [parameter.grad for parameter in model.parameters()]
    model.zero_grad()
    return [gradient for gradient in found if gradient is not None]


@pytest.mark.parametrize("size", [1, 5, 16, 99])
def test_dropout_is_replayed_and_the_gradient_is_that_of_the_whole(
    model: nn.Module, size: int
) -> None:
    """The oracle keeps every micro-batch's graph: the same masks, one loss, one backward pass."""
    parts = batches(num_rows=32, size=size)
    torch.manual_seed(7)
    seed = torch.initial_seed()
    vectors = []
    for number, batch in enumerate(parts):
        torch.manual_seed(seed + number)
        vectors.append(model(batch))
    whole, _ = loss_sum(vectors)
    whole.backward()
    wanted = gradients(model)
    torch.manual_seed(7)
    reported = 0.0
    terms = cached_terms(parts, embed=model, loss=loss_sum)
    for term, figures in terms:
        term.backward()
        reported += float(figures.get("loss", 0.0))
    assert reported == pytest.approx(float(whole.detach()), rel=1e-7)
    for mine, other in zip(gradients(model), wanted, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-9)


def test_only_one_micro_batch_is_in_the_graph_at_a_time(model: nn.Module) -> None:
    """What is saved for a backward pass while a term lives: one micro-batch's activations."""
    alive, most = 0, 0

    def pack(saved: Tensor) -> Tensor:
        nonlocal alive, most
        alive += saved.shape[:1] == (2,)  # rows of a micro-batch of two
        most = max(most, alive)
        return saved

    terms = cached_terms(batches(num_rows=32, size=2), embed=model, loss=loss_sum)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
        for number, (term, _) in enumerate(terms):
            term.backward()
            alive = 0
            assert number < 16
    assert 0 < most <= 8


def test_the_loss_in_row_chunks_and_its_gradient_are_autograds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    query, candidate = (torch.randn(n, 5, requires_grad=True) for n in (50, 90))
    target = torch.randint(90, (50,))
    cosine = F.cosine_similarity(query[:, None], candidate[None], dim=-1)
    value = F.cross_entropy(20.0 * cosine, target, reduction="sum")
    wanted = (value, *torch.autograd.grad(0.37 * value, (query, candidate)))
    for elements in (2**24, 700, 1):
        monkeypatch.setattr(losses, "CHUNK_ELEMENTS", elements)
        value, correct = info_nce(query, candidate_ND=candidate, target_B=target, scale=20.0)
        assert int(correct) == int((cosine.argmax(dim=1) == target).sum())
        found = (value, *torch.autograd.grad(0.37 * value, (query, candidate)))
        for mine, whole in zip(found, wanted, strict=True):
            torch.testing.assert_close(mine, whole, rtol=1e-5, atol=1e-5)


def test_vectors_are_gone_when_the_second_pass_begins(model: nn.Module) -> None:
    """What stays of a global batch is the gradient of its vectors, and they do not stay too."""
    vectors: list[weakref.ref[torch.UntypedStorage]] = []

    def embed(batch: Tensor) -> Tensor:
        vector = model(batch)
        if not torch.is_grad_enabled():
            vectors.append(weakref.ref(vector.untyped_storage()))
        return vector

    terms = cached_terms(batches(num_rows=8, size=2), embed=embed, loss=loss_sum)
    next(terms)
    assert [vector() for vector in vectors] == [None] * 4


@pytest.mark.parametrize(
    ("num_layers", "rows"), [(1, (256, 2048)), pytest.param(6, (1024, 16384), marks=slow)]
)
def test_the_memory_of_a_step_is_flat_in_the_global_batch(
    shards: Path, tmp_path: Path, num_layers: int, rows: tuple[int, int]
) -> None:
    """The peak of the whole process, within 1.2 times: micro-batches of 64 rows of 8 tokens."""
    command = [*torchrun(1), "-m", "tests.training.growth", str(tmp_path), str(shards)]
    printed = run([*command, str(num_layers), *map(str, rows)], timeout_s=3600)
    few, many = json.loads(printed.splitlines()[-1])
    assert many <= 1.2 * few


GROWTH = """
import deepspeed, torch
from tests.training.growth import peak_mib
from toolkit.model.losses import info_nce
query, candidate = (torch.randn(8192, 64, requires_grad=True) for _ in range(2))
peaks = []
for rows in (1024, 8192):
    some, target = query[:rows], torch.arange(rows)
    info_nce(some, candidate_ND=candidate[:rows], target_B=target, scale=20.0)[0].backward()
    peaks.append(peak_mib())
print(peaks[1] - peaks[0])
"""


def test_the_memory_of_the_loss_does_not_grow_with_its_chunks() -> None:
    """MiB of the process: what the allocator does counts. 16 chunks of 16 MiB took 0.8 GiB once."""
    assert float(run([sys.executable, "-c", GROWTH], real=True).splitlines()[-1]) < 128
