"""`dtype: auto` is bf16 where a device has instructions for it, and nowhere else."""

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig

from toolkit.encoding.encoder import Encoder
from toolkit.evaluation.program import settle_dtypes
from toolkit.model import precision
from toolkit.parallel import comm
from toolkit.settings.schema import EncoderSettings, EvaluateRecipe

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
# Lines of /proc/cpuinfo, cut.
ZEN4 = "processor\t: 0\nflags\t\t: fpu avx2 avx512f avx512_bf16 avx512_vnni\n"
SAPPHIRE_RAPIDS = "processor\t: 0\nflags\t\t: fpu avx512f amx_bf16 amx_tile amx_int8\n"
SKYLAKE = "processor\t: 0\nflags\t\t: fpu avx2 avx512f avx512bw\n"
HASWELL = "processor\t: 0\nmodel name\t: avx512_bf16\nflags\t\t: fpu avx avx2 fma\n"
NEOVERSE = "processor\t: 0\nFeatures\t: fp asimd bf16 i8mm\n"


@pytest.fixture
def cpu_info(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the processor says of itself, for a test to write."""
    path = tmp_path / "cpuinfo"
    monkeypatch.setattr(precision, "CPU_INFO", path)
    return path


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (ZEN4, "bf16"),
        (SAPPHIRE_RAPIDS, "bf16"),
        (SKYLAKE, "fp32"),
        (HASWELL, "fp32"),
        (NEOVERSE, "fp32"),  # never measured
        ("", "fp32"),
        (None, "fp32"),  # no Linux
    ],
)
def test_a_cpu_computes_in_what_it_has_instructions_for(
    text: str | None, wanted: str, cpu_info: Path
) -> None:
    if text is not None:
        cpu_info.write_text(text)
    assert precision.dtype_for("auto", device=CPU) == wanted
    assert precision.dtype_for("fp32", device=CPU) == "fp32"
    assert precision.dtype_for("bf16", device=CPU) == "bf16"


@pytest.mark.parametrize(
    ("capability", "wanted"),
    [((7, 0), "fp32"), ((7, 5), "fp32"), ((8, 0), "bf16"), ((9, 0), "bf16")],
)
def test_a_gpu_computes_in_bf16_from_ampere_on(
    capability: tuple[int, int], wanted: str, cpu_info: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu_info.write_text(SKYLAKE)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert precision.dtype_for("auto", device=GPU) == wanted
    config = AutoConfig.for_model("llama")
    lines = precision.remarks("fp32", device=GPU, attention="packed", config=config)
    assert len(lines) == (wanted == "bf16")
    assert all("no flash attention" in line and "dtype=auto" in line for line in lines)
    assert precision.remarks("fp32", device=GPU, attention="sdpa", config=config) == []
    assert precision.remarks("bf16", device=GPU, attention="packed", config=config) == []


@pytest.mark.parametrize(
    ("text", "asked", "settled", "warns"),
    [
        (SKYLAKE, "bf16", "bf16", True),
        (SKYLAKE, "auto", "fp32", False),
        (SKYLAKE, "fp32", "fp32", False),
        (ZEN4, "bf16", "bf16", False),
        (ZEN4, "auto", "bf16", False),
    ],
)
def test_an_encoder_computes_in_the_settled_type_and_says_where_that_is_slow(
    text: str,
    asked: str,
    settled: str,
    warns: bool,
    tiny_model: Path,
    cpu_info: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cpu_info.write_text(text)
    values = {"model": str(tiny_model), "max_tokens": 16, "dtype": asked}
    encoder = Encoder(EncoderSettings.model_validate(values), device=CPU)
    lines = capsys.readouterr().err.splitlines()
    assert encoder.settings.facts()["dtype"] == settled
    plain = Encoder(EncoderSettings.model_validate({**values, "dtype": settled}), device=CPU)
    assert (encoder.encode(["a bridge"]) == plain.encode(["a bridge"])).all()
    told = f"warning: {tiny_model}: dtype=bf16 on a processor without instructions for it"
    assert [line.startswith(told) for line in lines] == [True] * warns


@pytest.mark.parametrize(("text", "settled"), [(ZEN4, "bf16"), (SKYLAKE, "fp32")])
def test_an_evaluation_settles_its_encoders_before_its_parts_have_facts(
    text: str, settled: str, tiny_model: Path, cpu_info: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu_info.write_text(text)
    monkeypatch.setattr(comm, "device_of", lambda _: CPU)
    encoders = {
        asked: EncoderSettings.model_validate({"model": str(tiny_model), "dtype": asked})
        for asked in ("auto", "fp32", "bf16")
    }
    recipe = EvaluateRecipe(kind="evaluate", output_dir="out", encoders=encoders)
    found = settle_dtypes(recipe, local_rank=0).encoders
    assert {name: one.dtype for name, one in found.items()} == {
        "auto": settled,
        "fp32": "fp32",
        "bf16": "bf16",
    }


def test_what_is_not_settled_identifies_no_vectors() -> None:
    with pytest.raises(AssertionError):
        EncoderSettings(model="m", dtype="auto").facts()
