"""What a GPU computes as one operation: equal to the plain path within rounding, both ways."""

import copy
import importlib.util
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.conftest import need, refused
from tests.model.test_attention import FAMILIES, batch, model_of, packed
from toolkit import train
from toolkit.model import fused
from toolkit.model.attention_kernels import PACKED
from toolkit.model.backbone import add_lora
from toolkit.model.fused import FAMILIES as LIGERS
from toolkit.settings.model_schema import Lora

# Without these names, or (Gemma 2) with norms in fp32 that spoil fp64.
OTHERS = ("phi3", "mixtral", "gemma2")
GPU = torch.device("cuda")  # only the name: nothing is computed there
LORA = Lora(rank=4, alpha=12, dropout=0.1, targets=("q_proj", "v_proj", "down_proj"))
EPS = {torch.float32: 2.0**-23, torch.bfloat16: 2.0**-8}


def adapted(family: str) -> Any:
    """A model in fp64 with adapters that are not zero. (Gradients of queries are small differences,
    of which fp32 would leave three digits.)"""
    model = add_lora(model_of(family, attention=PACKED), lora=LORA).double()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.1)
    return model.train()


def gradients(model: Any) -> list[Tensor]:
    """The output and all gradients, under dropout of one seed."""
    torch.manual_seed(3)
    device = next(model.parameters()).device
    out = packed(model, *(part.to(device) for part in batch()))
    out.pow(2).mean().backward()
    found = [out.detach()]
    for parameter in model.parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None
            found.append(parameter.grad)
    return found


def assert_equal(ours: list[Tensor], theirs: list[Tensor]) -> None:
    assert len(ours) == len(theirs) > 1
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6 * float(other.abs().max()), rtol=0)


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in OTHERS])
def test_adapters_that_add_in_place_are_those_of_peft(family: str) -> None:
    plain = adapted(family)
    ours = copy.deepcopy(plain)
    assert fused.fuse_lora(ours) == 9
    names = [name for name, _ in plain.named_parameters()]
    assert [name for name, _ in ours.named_parameters()] == names
    assert_equal(gradients(ours), gradients(plain))
    # What peft does with adapters otherwise is still done.
    ours.eval(), plain.eval()
    with ours.disable_adapter(), plain.disable_adapter(), torch.no_grad():
        torch.testing.assert_close(packed(ours, *batch()), packed(plain, *batch()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_adapter_rounds_less_than_that_of_peft(dtype: torch.dtype) -> None:
    """Both beside fp64. One product with its sum rounds once, peft's three times."""
    torch.manual_seed(1)
    plain = add_lora(Alone(), lora=LORA.model_copy(update={"targets": ("map",), "dropout": 0.0}))
    nn.init.normal_(plain.base_model.model.map.lora_B["default"].weight)
    exact = copy.deepcopy(plain).double()
    plain = plain.to(dtype)
    exact.load_state_dict(plain.state_dict())
    ours = copy.deepcopy(plain)
    assert fused.fuse_lora(ours) == 1
    input, above = torch.randn(2, 40, 24), torch.randn(2, 40, 16)
    found = []
    for model, kind in ((ours, dtype), (plain, dtype), (exact, torch.float64)):
        given = input.to(dtype).to(kind, copy=True).requires_grad_()
        out = model.base_model.model.map(given)
        out.backward(above.to(dtype).to(kind))
        up = model.base_model.model.map.lora_B["default"].weight
        found.append([part.double() for part in (out.detach(), given.grad, up.grad)])
    for one, other, right in zip(*found, strict=True):
        size = right.abs().max()
        error, theirs = (float((part - right).abs().max() / size) for part in (one, other))
        assert error <= max(2 * EPS[dtype], 1.2 * theirs)


class Alone(nn.Module):
    base_model_prefix = "none"

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(24, 16)
        self.config = {"model_type": "alone"}


def test_an_adapter_never_overwrites_what_a_hook_has_returned() -> None:
    """Hooks, as DeepSpeed's, may return a view from a function of their own: autograd lets nobody
    overwrite that."""

    class Passed(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, output: Tensor) -> Tensor:
            return output.view_as(output)

        @staticmethod
        def backward(ctx: Any, *gradients: Tensor) -> Tensor:
            return gradients[0]

    plain = adapted("llama")
    for module in plain.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(lambda _module, _inputs, output: Passed.apply(output))
    ours = copy.deepcopy(plain)
    assert fused.fuse_lora(ours) == 9
    assert_equal(gradients(ours), gradients(plain))


class Multiplier(float):
    """The interpreter of triton gives a kernel Python's floats, which it converts."""

    def to(self, _dtype: Any) -> float:
        return self


@pytest.mark.parametrize("family", [family.lower() for family in LIGERS])
def test_swiglu_and_positions_of_liger_are_those_of_transformers(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forward and backward, with every weight's gradient; without a GPU in triton's interpreter.
    In fp32, in which triton computes; gradients of queries are small differences there."""
    need(importlib.util.find_spec("liger_kernel") is not None, "liger-kernel is not installed")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    plain = model_of(family, attention=PACKED).to(device)
    ours = copy.deepcopy(plain)
    want = gradients(plain)
    counts = fused.fuse(ours, device=GPU)
    assert (counts["swiglu"], counts["rope"]) == (3, 3)
    if device == "cpu":
        from liger_kernel.ops import swiglu

        monkeypatch.setattr(swiglu, "float", Multiplier, raising=False)
    calls: list[str] = []

    def counted(name: str) -> Any:
        original = getattr(fused, name)
        return lambda *parts: calls.append(name) or original(*parts)  # type: ignore[func-returns-value]

    for name in ("silu_and_mul", "rotate"):
        monkeypatch.setattr(fused, name, counted(name))
    monkeypatch.setattr(fused, "has_kernels", lambda _tensor: True)
    got = gradients(ours)
    assert sorted(calls) == ["rotate"] * 3 + ["silu_and_mul"] * 3
    for one, other in zip(got, want, strict=True):
        assert float((one - other).abs().max()) <= 3e-4 * float(other.abs().max())


def test_on_a_cpu_nothing_changes() -> None:
    model = adapted("llama")
    kinds = [type(module) for module in model.modules()]
    assert fused.fuse(model, device=torch.device("cpu")) == {}
    assert [type(module) for module in model.modules()] == kinds


def test_without_liger_or_where_torch_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = fused.fuse(adapted("llama"), device=GPU, kernels="torch")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    assert fused.fuse(adapted("llama"), device=GPU) == asked == {"norms": 7, "lora": 9}


def test_kernels_that_cannot_be_are_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, shards: Any, tmp_path: Any
) -> None:
    given = [f"run_dir={tmp_path / 'run'}", f"data.train={shards}"]
    line = refused(capsys, train.main, "tiny_mntp", *given, "model.kernels=fast")
    assert "'auto', 'torch' or 'liger'" in line
    if not torch.cuda.is_available():
        line = refused(capsys, train.main, "tiny_mntp", *given, "model.kernels=liger")
        assert "needs a GPU; model.kernels=auto runs anywhere" in line
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(fused.BadInput, match="not installed; pip install liger-kernel"):
        fused.check_kernels("liger", on_gpu=True, key="model.kernels")
