"""What a GPU computes, at the shapes of 7B, forward and backward: beside fp64, or the plain path.

Each test also runs on a CPU with tiny shapes, so that it is right when it meets a GPU.
"""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.mistral import modeling_mistral

from tests.benchmarks.certify.kernels import Attention
from tests.benchmarks.certify.machine import Machine, worst
from toolkit.base.errors import BadInput
from toolkit.encoding.encoder import Encoder
from toolkit.model import fp8
from toolkit.model.backbone import add_lora
from toolkit.model.dropout import dropout
from toolkit.model.fused import fuse, has_liger
from toolkit.model.losses import Kernel, info_nce, masked_token_nll
from toolkit.model.pooling import mean_pool_packed
from toolkit.model.precision import dtype_for, remarks
from toolkit.parallel.comm import device_of
from toolkit.runs.estimate import peak_of
from toolkit.settings.model_schema import Lora
from toolkit.settings.schema import EncoderSettings
from toolkit.training.preflight import _matmul_flops

WITHOUT = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, WITHOUT])])
def machine(request: pytest.FixtureRequest, tmp_path: Path) -> Machine:
    return Machine(dry=request.param == "cpu", folder=tmp_path)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("windowed", [False, True])
def test_packed_attention_at_real_shapes(machine: Machine, windowed: bool, causal: bool) -> None:
    """32 query heads and 8 key heads of 128 numbers; rows of 1 to 2,048 tokens."""
    lengths = machine.sized((1, 7, 512, 2048), (1, 7, 33))
    heads, keys, width = machine.sized((32, 8, 128), (4, 2, 16))
    window = machine.sized(300, 4) if windowed else None
    case = Attention(machine, lengths, heads, keys, width, window=window, causal=causal)
    errors = case.errors()
    assert errors["forward"] < 0.02 and errors["backward"] < 0.02, errors
    assert errors["two_runs"] == 0 and errors["two_runs_backward"] < 0.02, errors


def gradients(model: Any, machine: Machine) -> list[Tensor]:
    """The states and all gradients of a batch, under dropout of one seed."""
    torch.manual_seed(4)
    given = machine.batch(rows=4, length=machine.sized(256, 9))
    torch.manual_seed(5)
    out = model(**given).last_hidden_state
    out.float().pow(2).mean().backward()
    trained = [part for part in model.parameters() if part.requires_grad]
    return [out.detach(), *(part.grad for part in trained if part.grad is not None)]


@pytest.mark.parametrize("kernels", ["torch", "auto"])
def test_a_fused_model_is_the_plain_one(
    machine: Machine, kernels: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two layers of 7B's widths in bf16 with adapters: about as far from fp32 as the plain path."""
    if kernels == "auto" and not has_liger():
        pytest.skip("liger-kernel is not installed")
    config = copy.deepcopy(machine.config)
    config.num_hidden_layers = 2
    lora = Lora(rank=16, alpha=32, dropout=0.0, targets=TARGETS)
    plain = add_lora(machine.drawn(head=False, config=config), lora=lora).train()
    for name, weight in plain.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.01)
    # Positions are fused for all models of the process: what must be plain is computed before.
    if hasattr(modeling_mistral.apply_rotary_pos_emb, "plain"):
        monkeypatch.setattr(
            modeling_mistral, "apply_rotary_pos_emb", modeling_mistral.apply_rotary_pos_emb.plain
        )
    ours, exact = copy.deepcopy(plain), copy.deepcopy(plain).float()
    theirs, right = gradients(plain, machine), gradients(exact, machine)
    counts = fuse(ours, device=torch.device("cuda"), kernels=kernels)
    assert counts["norms"] == 5 and counts["lora"] == 14
    if kernels == "auto":
        assert (counts["swiglu"], counts["rope"]) == (2, 2)
    found = gradients(ours, machine)
    assert len(found) == len(right) == 1 + 2 * 14
    for one, other, true in zip(found, theirs, right, strict=True):
        assert distance(one, true) <= 1.5 * distance(other, true) + 0.005


def distance(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact.double()).norm() / exact.double().norm())


@pytest.mark.parametrize("kernel", ["torch", "liger"])
def test_the_loss_of_masked_tokens(machine: Machine, kernel: Kernel) -> None:
    """2,000 tokens of a vocabulary of 128,256 in bf16, beside fp64."""
    if kernel == "liger" and not (has_liger() and machine.on_gpu):
        pytest.skip("liger-kernel needs a GPU, or triton's interpreter (tests/model)")
    tokens, vocabulary, width = machine.sized((2000, 128_256, 256), (20, 300, 16))
    place: dict[str, Any] = {"device": machine.device, "dtype": torch.bfloat16}
    hidden, head = torch.randn(tokens, width, **place), torch.randn(width, vocabulary, **place) / 16
    target = torch.randint(vocabulary, (tokens,), device=machine.device)
    leaf = hidden.clone().requires_grad_()
    loss, correct = masked_token_nll(leaf @ head, target_M=target, kernel=kernel)
    loss.backward()
    true = hidden.double().requires_grad_()
    logits = true @ head.double()
    exact = F.cross_entropy(logits, target, reduction="sum")
    exact.backward()
    assert float(loss.detach()) == pytest.approx(float(exact.detach()), rel=5e-3)
    assert leaf.grad is not None and true.grad is not None
    assert distance(leaf.grad, true.grad) < 0.01
    assert int(correct) == pytest.approx(int((logits.argmax(1) == target).sum()), abs=5)


@pytest.mark.parametrize("bias", [False, True])
def test_products_in_8_bits(machine: Machine, bias: bool) -> None:
    """A layer of 4,096 to 14,336 numbers, and its gradient, beside fp64 of the rounded numbers."""
    if not (fp8.has_fp8(machine.device) or machine.dry):
        with pytest.raises(BadInput, match="Hopper or newer"):
            fp8.check_fp8(dtype="bf16", device=machine.device, key="encoder.fp8")
        return
    rows, inputs, outputs = machine.sized((3001, 4096, 14_336), (7, 32, 48))
    place: dict[str, Any] = {"device": machine.device, "dtype": torch.bfloat16}
    plain = torch.nn.Linear(inputs, outputs, bias=bias, **place).requires_grad_(False)
    input = torch.randn(rows, inputs, **place).requires_grad_()
    above = torch.randn(rows, outputs, **place)
    output = fp8.Fp8Linear(plain)(input)
    output.backward(above)
    rounded = [
        codes.double() * scale.double()
        for codes, scale in map(fp8.quantized, (input.detach(), plain.weight))
    ]
    wanted = rounded[0] @ rounded[1].T + (0 if plain.bias is None else plain.bias.double())
    assert distance(output.detach(), wanted) < 0.005
    assert input.grad is not None
    assert distance(input.grad, above.double() @ rounded[1]) < 0.005


def test_a_contrastive_loss_of_many_candidates(machine: Machine) -> None:
    """512 rows against 65,536 candidates in chunks, beside fp64."""
    rows, candidates, width = machine.sized((512, 65_536, 1024), (6, 40, 16))
    place: dict[str, Any] = {"device": machine.device, "dtype": torch.float32}
    query, candidate = torch.randn(rows, width, **place), torch.randn(candidates, width, **place)
    target = torch.arange(rows, device=machine.device)
    found = []
    for dtype in (torch.float32, torch.float64):
        given = [part.to(dtype, copy=True).requires_grad_() for part in (query, candidate)]
        if dtype == torch.float32:
            loss, _ = info_nce(given[0], candidate_ND=given[1], target_B=target, scale=20.0)
        else:
            cosines = F.normalize(given[0], dim=-1) @ F.normalize(given[1], dim=-1).T
            loss = F.cross_entropy(20 * cosines, target, reduction="sum")
        loss.backward()
        found.append([loss.detach()[None], *(part.grad for part in given)])
    for one, other in zip(*found, strict=True):
        assert one is not None and other is not None
        assert worst(one, other) < 1e-3  # a GPU may multiply in TF32


def test_dropout_comes_again_from_its_seed(machine: Machine) -> None:
    input = torch.ones(machine.sized(4096, 64), 4096, device=machine.device)
    dropped = []
    for _ in range(2):
        torch.manual_seed(9)
        dropped.append(dropout(input, p=0.3))
    assert torch.equal(*dropped)
    assert float((dropped[0] == 0).float().mean()) == pytest.approx(0.3, abs=0.02)
    assert float(dropped[0].mean()) == pytest.approx(1.0, abs=0.02)


def test_pooling_is_the_same_in_every_run(machine: Machine) -> None:
    """A segmented sum, not atomic additions: the same bits, and those of fp64 within rounding."""
    lengths: Sequence[int] = machine.sized((1, 4096, 17, 900), (1, 9, 3))
    total, width = sum(lengths), machine.config.hidden_size
    hidden = torch.randn(1, total, width, device=machine.device, dtype=torch.bfloat16)
    own = torch.rand(1, total, device=machine.device) < 0.8
    bounds = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32, device=machine.device)
    found = [mean_pool_packed(hidden, own_BT=own.long(), bound_S=bounds) for _ in range(2)]
    assert torch.equal(*found)
    first = 0
    for row, length in enumerate(lengths):
        part = hidden[0, first : first + length][own[0, first : first + length]].double()
        exact = part.mean(0) if len(part) else torch.zeros(width, device=machine.device)
        torch.testing.assert_close(found[0][row].double(), exact.double(), atol=1e-4, rtol=1e-3)
        first += length


def test_an_encoder_here_and_on_a_cpu(machine: Machine, tiny_model: Path) -> None:
    """In fp32 and bf16; the type that is chosen by itself, and what is said of the other."""
    texts = [f"Canal {n} carries barges. " * (1 + n % 7) for n in range(40)] + [""]
    asked = EncoderSettings(model=str(tiny_model), max_tokens=64, batch_tokens=256)
    exact = Encoder(asked.model_copy(update={"dtype": "fp32"}), device=torch.device("cpu"))
    expected = exact.encode(texts)
    for dtype, least in (("fp32", 0.99999), ("bf16", 0.999)):
        encoder = Encoder(asked.model_copy(update={"dtype": dtype}), device=machine.device)
        found = encoder.encode(texts)
        size = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
        assert not found[-1].any()
        assert ((found * expected).sum(axis=1)[:-1] / size[:-1]).min() > least
    if machine.on_gpu:
        assert dtype_for("auto", device=machine.device) == "bf16"
        (line,) = remarks("fp32", device=machine.device, attention="packed", config=machine.config)
        assert "no flash attention" in line


def test_the_device_is_found_and_multiplies(machine: Machine) -> None:
    wanted = torch.device("cuda", 0) if machine.on_gpu else torch.device("cpu")
    assert device_of(0) == wanted or not machine.on_gpu
    assert _matmul_flops(machine.device) > 1e6
    if machine.on_gpu:
        assert _matmul_flops(machine.device) < 1.05 * (
            peak_of(torch.cuda.get_device_name()) or 9e99
        )
    assert machine.seconds(lambda: torch.ones(9, device=machine.device), runs=2) > 0
    assert machine.facts()["device"] and machine.peak_gib() > 0
