"""Linear layers by oneDNN: what they give is what torch's give, for every family."""

import copy

import pytest
import torch
from torch import Tensor, nn

from tests.model.test_attention import FAMILIES, batch, model_of, packed
from toolkit.model.attention_kernels import PACKED
from toolkit.model.onednn import lay_out_linears, train_by_onednn


@torch.inference_mode()
@pytest.mark.parametrize("family", FAMILIES)
def test_states_are_those_of_torchs_linears(family: str) -> None:
    plain = model_of(family, attention=PACKED)
    laid_out = copy.deepcopy(plain)
    linears = [one for one in plain.modules() if type(one) is nn.Linear]
    assert lay_out_linears(laid_out) == len(linears) > 0
    assert not [one for one in laid_out.modules() if type(one) is nn.Linear]
    ids_BT, mask_BT = batch()
    torch.testing.assert_close(
        packed(laid_out, ids_BT, mask_BT), packed(plain, ids_BT, mask_BT), atol=1e-5, rtol=1e-5
    )


@torch.inference_mode()
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(7,), (3, 7), (2, 0, 7), (2, 3, 7)])
def test_any_shape_with_and_without_bias(shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Linear(7, 5, bias=bias))
    input = torch.randn(shape)
    wanted = layer(input)
    assert lay_out_linears(layer) == 1
    torch.testing.assert_close(layer(input), wanted)
    assert lay_out_linears(layer) == 0  # the second time


class Doubled(nn.Linear):
    """A layer that only looks like a linear one."""

    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


def test_other_layers_stay_as_they_are() -> None:
    layers = nn.Sequential(Doubled(3, 3), nn.Linear(3, 3, dtype=torch.bfloat16))
    assert lay_out_linears(layers) == 0


def test_where_torch_lacks_the_operators_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert lay_out_linears(nn.Sequential(nn.Linear(3, 3))) == 0


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(7,), (3, 7), (2, 0, 7), (2, 3, 7)])
def test_gradients_are_those_of_torchs_linear(
    shape: tuple[int, ...], bias: bool, frozen: bool
) -> None:
    torch.manual_seed(0)
    plain = nn.Linear(7, 5, bias=bias)
    plain.requires_grad_(not frozen)
    ours = copy.deepcopy(plain)
    assert train_by_onednn(ours) == 1
    assert isinstance(ours, nn.Linear)
    assert list(ours.state_dict()) == list(plain.state_dict())
    wanted, found = (torch.randn(shape).requires_grad_() for _ in range(2))
    found.data.copy_(wanted.data)
    for layer, input in ((plain, wanted), (ours, found)):
        layer(input).square().sum().backward()
    torch.testing.assert_close(found.grad, wanted.grad)
    for one, other in zip(ours.parameters(), plain.parameters(), strict=True):
        assert (one.grad is None) == frozen
        torch.testing.assert_close(one.grad, other.grad)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_of_training_is_that_of_torchs_linears(family: str) -> None:
    plain = model_of(family, attention=PACKED)
    ours = copy.deepcopy(plain)
    assert train_by_onednn(ours) == len([one for one in plain.modules() if type(one) is nn.Linear])
    ids_BT, mask_BT = batch()
    for model in (plain, ours):
        packed(model, ids_BT, mask_BT).square().sum().backward()
    for (name, one), other in zip(ours.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, atol=1e-4, rtol=1e-4, msg=name)
