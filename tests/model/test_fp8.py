"""Products in 8 bits: beside arithmetic in fp64, through both doors, and refused where they cannot
be. torch multiplies such numbers on a CPU, too, so that nothing here stands in for a GPU but the
question whether there is one."""

import copy
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.conftest import QUICKSTART, need, refused
from tests.model.test_attention import FAMILIES, batch, model_of, packed
from toolkit import encode, search, train
from toolkit.base.errors import BadInput
from toolkit.encoding.encoder import Encoder
from toolkit.model import fp8
from toolkit.model.attention_kernels import PACKED
from toolkit.model.backbone import add_lora
from toolkit.model.fused import has_liger
from toolkit.runs.records import read_metrics
from toolkit.settings.model_schema import Lora
from toolkit.settings.schema import EncoderSettings

TINY = QUICKSTART / "tiny-mistral"
TEXTS = [
    "A bridge carries the railway over the river.",
    "The council repaired two bridges after the flood of last spring.",
    "She poured the acid into a beaker.",
]


@pytest.fixture
def has_fp8(monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine counts as one with products of 8-bit numbers."""
    monkeypatch.setattr(fp8, "has_fp8", lambda _device: True)


def test_each_row_is_kept_within_the_rounding_of_the_type() -> None:
    torch.manual_seed(0)
    value_NI = torch.randn(40, 96) * torch.logspace(-30, 30, 40)[:, None]
    value_NI[3] = 0
    value_NI[5, 7] *= 1000  # an outlier costs the others of its row at most the smallest step
    codes_NI, scale_N1 = fp8.quantized(value_NI)
    assert codes_NI.dtype == torch.float8_e4m3fn and scale_N1.shape == (40, 1)
    back = codes_NI.double() * scale_N1.double()
    bound = (value_NI.double().abs() / 16).clamp(min=2.0**-10 * scale_N1.double())
    assert bool(((back - value_NI.double()).abs() <= 1.001 * bound).all())
    assert not codes_NI.float()[3].any() and bool(codes_NI.float().isfinite().all())
    assert float(codes_NI.float().abs().amax(dim=1)[0]) == 448


@pytest.mark.slow
def test_the_one_kernel_of_a_gpu_gives_the_same_bits() -> None:
    """torch compiles it for a CPU, too."""
    for rows in (7, 300, 1):
        value_NI = torch.randn(rows, 96).to(torch.bfloat16)
        for one, other in zip(fp8._one_kernel()(value_NI), fp8.quantized(value_NI), strict=True):
            assert torch.equal(one.float(), other.float())


def layer(bias: bool) -> nn.Linear:
    torch.manual_seed(1)
    return nn.Linear(64, 48, bias=bias).to(torch.bfloat16).requires_grad_(False)


def by_hand(value: Tensor) -> Tensor:
    """A matrix as 8-bit numbers hold it: its three bits after the first, of fp64."""
    scale = value.double().abs().amax(dim=1, keepdim=True) / 448
    part = value.double() / scale
    step = torch.exp2(part.abs().clamp(min=2.0**-6).log2().floor() - 3)
    return (part / step).round() * step * scale


@pytest.mark.parametrize("bias", [False, True])
def test_a_layer_multiplies_what_was_rounded_and_passes_the_gradient_on(bias: bool) -> None:
    plain = layer(bias)
    ours = fp8.Fp8Linear(plain)
    input = torch.randn(2, 5, 64).to(torch.bfloat16).requires_grad_()
    output = ours(input)
    rounded = by_hand(input.detach().reshape(-1, 64)) @ by_hand(plain.weight).T
    wanted = rounded if plain.bias is None else rounded + plain.bias.double()
    assert output.shape == (2, 5, 48) and output.dtype == torch.bfloat16
    torch.testing.assert_close(output.double().view(10, 48), wanted, atol=2e-2, rtol=2.0**-7)
    above = torch.randn(2, 5, 48).to(torch.bfloat16)
    output.backward(above)
    assert input.grad is not None
    gradient = above.double().view(10, 48) @ by_hand(plain.weight)
    torch.testing.assert_close(input.grad.double().view(10, 64), gradient, atol=3e-2, rtol=2.0**-6)


def test_neither_a_change_of_type_nor_a_checkpoint_touches_the_numbers() -> None:
    ours = fp8.Fp8Linear(layer(True))
    input = torch.randn(3, 64).to(torch.bfloat16)
    before = ours(input)
    assert torch.equal(copy.deepcopy(ours).to(torch.bfloat16).half().bfloat16()(input), before)
    assert ours.state_dict() == {} and not list(ours.parameters())


def bf16_model(family: str) -> Any:
    return model_of(family, attention=PACKED).to(torch.bfloat16).requires_grad_(False)


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "mixtral"])
def test_a_model_in_8_bits_is_near_the_model(family: str) -> None:
    plain = bf16_model(family)
    ours = copy.deepcopy(plain)
    linears = sum(type(part) is nn.Linear for part in plain.modules())
    assert fp8.quantize(ours) == linears == (12 if family == "phi3" else 21)
    found, wanted = (packed(model, *batch()).float() for model in (ours, plain))
    own = batch()[1].bool()
    cosine = nn.functional.cosine_similarity(found[own], wanted[own], dim=-1)
    assert 0.98 < float(cosine.min()) < 0.99999


def test_experts_and_narrow_layers_stay_and_a_model_without_others_is_refused() -> None:
    experts = bf16_model("mixtral")
    assert fp8.quantize(experts) == 12  # attention; the experts are one parameter
    narrow = nn.Sequential(nn.Linear(24, 24)).to(torch.bfloat16).requires_grad_(False)
    with pytest.raises(BadInput, match="widths that are multiples of 16"):
        fp8.quantize(narrow)
    with pytest.raises(BadInput, match="no frozen linear layer"):
        fp8.quantize(nn.Sequential(layer(False)).requires_grad_(True))


def test_below_adapters_the_frozen_weights_alone_change() -> None:
    lora = Lora(rank=4, alpha=12, dropout=0.0, targets=("q_proj", "down_proj"))
    plain = add_lora(model_of("llama", attention=PACKED), lora=lora).to(torch.bfloat16)
    with torch.no_grad():
        for name, weight in plain.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.1)
    ours = copy.deepcopy(plain)
    names = [name for name, part in plain.named_parameters() if part.requires_grad]
    assert fp8.quantize(ours) == 21
    assert [name for name, part in ours.named_parameters() if part.requires_grad] == names
    found, direction = [], torch.randn(32)
    for model in (ours, plain):
        (packed(model, *batch()).float() @ direction).sum().backward()
        parts = [part.grad for part in model.parameters() if part.requires_grad]
        found.append(torch.cat([part.flatten().float() for part in parts if part is not None]))
    assert float(nn.functional.cosine_similarity(*found, dim=0)) > 0.97
    assert not torch.equal(*found)


def vectors(**changes: Any) -> tuple[Any, Encoder]:
    settings = {"model": str(TINY), "dtype": "bf16", **changes}
    encoder = Encoder(EncoderSettings(**settings))
    return encoder.encode(TEXTS), encoder


@pytest.mark.usefixtures("has_fp8")
def test_an_encoder_in_8_bits_says_how_near_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    plain, _ = vectors()
    capsys.readouterr()
    found, encoder = vectors(fp8=True)
    said = capsys.readouterr()
    line = next(one for one in (said.out + said.err).splitlines() if "fp8" in one)
    assert line.startswith("fp8: 42 layers; least cosine to bf16 of 4 texts 0.9")
    cosine = (found * plain).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(plain, axis=1)
    assert 0.98 < cosine.min() < 0.9999999
    # Workers of one encoding must not mix, and the facts of an older one stay as they were.
    assert encoder.settings.facts()["fp8"] is True
    assert not {"fp8", "kernels"} & EncoderSettings(model="m").facts().keys()


@pytest.mark.usefixtures("has_fp8")
def test_an_encoder_whose_vectors_are_others_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    right = fp8.quantized

    def wrong(value_NI: Tensor) -> tuple[Tensor, Tensor]:
        codes, scale = right(value_NI)
        return codes.flip(0), scale

    monkeypatch.setattr(fp8, "quantized", wrong)
    with pytest.raises(BadInput, match=r"of this model are others .* use encoder.fp8=false"):
        vectors(fp8=True)


def test_what_was_made_in_8_bits_is_searched_on_any_machine(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [f"encoder.model={TINY}", f"corpus.input={shards}", f"output_dir={tmp_path / 'out'}"]
    asked = ["encoder.dtype=bf16", "encoder.fp8=true", "encoder.max_tokens=16"]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(fp8, "has_fp8", lambda _device: True)
        assert encode.main(["tiny_embed", *given, *asked]) == 0
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["encoder"]["fp8"] is True
    capsys.readouterr()
    assert search.main([str(tmp_path / "out"), "canals and barges"]) == 0
    said = capsys.readouterr()
    told = "other texts are embedded in bf16, which is near, and not the same"
    assert (said.out + said.err).count(told) == 1
    assert "\n  1. 0." in said.out


@pytest.fixture
def recipe(shards: Path, tmp_path: Path) -> list[str]:
    sizes = ["train.global_batch_rows=8", "train.micro_batch_rows=8", "train.steps=3"]
    places = [f"run_dir={tmp_path / 'run'}", f"data.train={shards}", f"model.base={TINY}"]
    lora = ["model.lora.rank=4", "model.lora.alpha=8", "model.lora.dropout=0"]
    lora += ["model.lora.targets=[q_proj, down_proj]"]
    return ["tiny_mntp", *places, *sizes, *lora, "model.dtype=bf16", "deepspeed.config=zero2"]


@pytest.mark.usefixtures("has_fp8")
def test_adapters_are_trained_on_a_base_in_8_bits(recipe: list[str], tmp_path: Path) -> None:
    found = []
    for name in ("false", "true"):
        run = tmp_path / name
        given = [*recipe, f"run_dir={run}", f"model.fp8={name}", "train.log_every_steps=1"]
        assert train.main(given) == 0
        found.append([row["loss"] for row in read_metrics(run)])
    plain, ours = found
    assert len(ours) == 3 and ours != plain
    assert ours == pytest.approx(plain, rel=0.01)


REFUSED: list[tuple[Sequence[str], str]] = [
    (["model.fp8=true"], "model.fp8=true needs a GPU .* not a CPU; model.fp8=false runs anywhere"),
    (["model.fp8=true", "model.dtype=fp32"], "model.fp8=true needs model.dtype=bf16, not fp32"),
    (["model.fp8=true", "model.lora=null"], "model.lora=null trains all of them: give adapters"),
    (["model.fp8=true", "deepspeed.config=zero3"], "zero3 deals the weights .* zero1 or zero2"),
    (["model.fp8=maybe"], 'boolean.*, not "maybe"'),
]


@pytest.mark.parametrize(("given", "message"), REFUSED)
def test_a_run_that_cannot_be_is_refused(
    given: list[str], message: str, recipe: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert re.search(message, refused(capsys, train.main, *recipe, *given))


def test_an_encoding_without_such_a_gpu_is_refused(
    capsys: pytest.CaptureFixture[str], shards: Path, tmp_path: Path
) -> None:
    given = [f"encoder.model={TINY}", f"corpus.input={shards}", f"output_dir={tmp_path / 'out'}"]
    for dtype, told in (("bf16", "needs a GPU"), ("fp32", "needs encoder.dtype=bf16, not fp32")):
        asked = ["encoder.fp8=true", f"encoder.dtype={dtype}"]
        assert told in refused(capsys, encode.main, "tiny_embed", *given, *asked)
    need(has_liger(), "liger-kernel is not installed")
    line = refused(capsys, encode.main, "tiny_embed", *given, "encoder.kernels=liger")
    assert "encoder.kernels=liger needs a GPU; encoder.kernels=auto runs anywhere" in line
