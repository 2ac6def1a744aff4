"""RMSNorm as one operation: equal to transformers' own within the type's rounding, both ways."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.model.test_attention import FAMILIES, batch, model_of, packed
from toolkit.model.attention_kernels import PACKED
from toolkit.model.norms import fuse_norms

GPU = torch.device("cuda")  # only the name: nothing is computed there
EPS = {torch.float32: 2.0**-23, torch.bfloat16: 2.0**-8}


def norms_of(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if "norm" in type(module).__name__.lower()]


def with_weights(family: str) -> Any:
    """A model whose norms have weights that are neither 0 nor 1."""
    model = model_of(family, attention=PACKED)
    with torch.no_grad():
        for norm in norms_of(model):
            norm.weight.add_(torch.randn_like(norm.weight), alpha=0.3)
    return model


def results(norm: nn.Module, hidden: Tensor, grad: Tensor) -> list[Tensor]:
    """Output, and the gradients of input and weight."""
    input = hidden.clone().requires_grad_()
    output = norm(input)
    output.backward(grad)
    found = [output.detach(), input.grad, norm.weight.grad]
    assert all(part is not None and part.dtype == hidden.dtype for part in found)
    return [part.double() for part in found if part is not None]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_norm_is_that_of_transformers_within_rounding(family: str, dtype: torch.dtype) -> None:
    """Both beside the definition in fp64: output, gradient of the input, gradient of the weight."""
    compare(family, dtype=dtype, device="cpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("family", FAMILIES)
def test_the_kernel_of_a_gpu_is_within_rounding_too(family: str) -> None:
    compare(family, dtype=torch.bfloat16, device="cuda")


def compare(family: str, *, dtype: torch.dtype, device: str) -> None:
    model = with_weights(family)
    plain = copy.deepcopy(norms_of(model)[0]).to(device, dtype)
    fused = nn.ModuleList([copy.deepcopy(plain)])
    assert fuse_norms(fused, device=GPU) == 1
    generator = torch.Generator().manual_seed(3)
    hidden, grad = (
        torch.randn(64, plain.weight.shape[0], generator=generator, dtype=torch.float64).to(dtype)
        for _ in range(2)
    )
    hidden = (hidden * torch.logspace(-2, 2, 64)[:, None].to(dtype)).to(device)
    grad = grad.to(device)
    ours, theirs = results(fused[0], hidden, grad), results(plain, hidden, grad)
    exact = results(in_fp64(plain), hidden.double(), grad.double())
    for our, their, right in zip(ours, theirs, exact, strict=True):
        rows = right.reshape(-1, right.shape[-1])
        size = rows.abs().amax(dim=-1, keepdim=True).expand_as(rows).reshape(right.shape)
        error, other = ((part - right).abs() / size for part in (our, their))
        assert error.max() <= max(3 * EPS[dtype], 1.5 * other.max())
        # Gemma's norm rounds twice, as Llama's own does and Gemma's own does not.
        assert error.mean() <= 2 * other.mean() + EPS[dtype] / 20


def in_fp64(norm: nn.Module) -> nn.Module:
    """The norm by its definition: transformers' own computes in fp32, whatever it is given."""

    class Exact(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(norm.weight.detach().double())
            self.eps = getattr(norm, "variance_epsilon", None) or norm.eps
            self.more = 1.0 if "Gemma" in type(norm).__name__ else 0.0

        def forward(self, hidden: Tensor) -> Tensor:
            scale = torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + self.eps)
            return hidden * scale * (self.weight + self.more)

    return Exact()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_whole_model_and_its_gradients_stay(family: str) -> None:
    plain = with_weights(family)
    fused = copy.deepcopy(plain)
    names = [name for name, _ in plain.named_parameters()]
    assert fuse_norms(fused, device=GPU) == len(norms_of(plain)) > 0
    assert [name for name, _ in fused.named_parameters()] == names
    found = []
    for model in (plain, fused):
        out = packed(model, *batch())
        out.pow(2).mean().backward()
        found.append([out.detach(), *(weight.grad for weight in model.parameters())])
    for one, other in zip(*found, strict=True):
        assert one is not None and other is not None
        torch.testing.assert_close(other, one, atol=2e-6 * float(one.abs().max()), rtol=1e-5)


def test_on_a_cpu_nothing_changes() -> None:
    model = model_of("llama", attention=PACKED)
    kinds = [type(module) for module in model.modules()]
    assert fuse_norms(model, device=torch.device("cpu")) == 0
    assert [type(module) for module in model.modules()] == kinds


def test_a_norm_that_is_not_known_stays() -> None:
    class OtherRMSNorm(nn.RMSNorm):
        pass

    model = nn.ModuleList([OtherRMSNorm(4), nn.LayerNorm(4)])
    assert fuse_norms(model, device=GPU) == 0
