"""Memory, MFU and HFU: on a GPU's figures that are given here, since none is at hand."""

import json
from pathlib import Path

import pytest
import torch

from toolkit.runs.estimate import flops, peak_of
from toolkit.runs.shapes import read_shape
from toolkit.settings.recipes import load_recipe
from toolkit.settings.schema import TrainingRecipe
from toolkit.training.loop import Step
from toolkit.training.utilisation import Utilisation

STEP = Step(1, {}, 1e-4, 1.0, 14_000, 0.0, 2, 1.0, False, False)


def recipe_of(name: str, *overrides: str) -> TrainingRecipe:
    recipe = load_recipe(name, overrides=overrides)
    assert isinstance(recipe, TrainingRecipe)
    return recipe


@pytest.fixture
def on_h100(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: 3 * 2**30)
    return torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA A100-SXM4-40GB", 312e12),
        ("NVIDIA A10G", 70e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 NVL", 835e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA H200 NVL", 835e12),
        ("NVIDIA GH200 480GB", 989e12),
        ("NVIDIA GB200", 2500e12),
        ("NVIDIA B200", 2250e12),
        ("NVIDIA A10", 125e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA A100 80GB PCIe", 312e12),
        ("Tesla V100-SXM2-16GB", None),
    ],
)
def test_a_gpu_is_known_by_its_driver_name(name: str, peak: float | None) -> None:
    assert peak_of(name) == peak


def test_flops_are_those_of_the_literature(tiny_model: Path) -> None:
    """2N forward, 4N with frozen weights, 6N for all; 2N more for recomputing and GradCache each
    (Kaplan et al. 2020; the head counts at masked tokens only, and is not computed again)."""
    shape = read_shape(json.loads((tiny_model / "config.json").read_text()))
    weights, head = shape.active, shape.vocab * shape.hidden
    lora = recipe_of("tiny_mntp", "mntp.mask_probability=0.2")
    full = recipe_of("tiny_mntp", "mntp.mask_probability=0.2", "model.lora=null")
    again = recipe_of("tiny_simcse", "model.activation_checkpointing=true")
    assert flops(shape, lora, attended=0, cached=False)[0] == 4 * weights + 4 * 0.2 * head
    assert flops(shape, full, attended=0, cached=False)[0] == pytest.approx(
        6 * weights + 6 * 0.2 * head
    )
    assert flops(shape, again, attended=0, cached=True) == (4 * weights, 8 * weights)


def test_a_gpu_has_mfu_and_hfu(tiny_model: Path, on_h100: torch.device) -> None:
    recipe = recipe_of("tiny_simcse", "model.dtype=bf16", f"model.base={tiny_model}")
    shape = read_shape(json.loads((tiny_model / "config.json").read_text()))
    found = Utilisation(recipe, world_size=2, device=on_h100).figures(STEP)
    assert found["memory_gib"] == 3
    assert found["mfu"] == pytest.approx(4 * shape.active * 14_000 / (2 * 989e12))
    assert found["hfu"] == pytest.approx(found["mfu"] * 1.5)  # two micro-batches: GradCache


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_a_cpu_and_fp32_have_memory_only(
    dtype: str, tiny_model: Path, on_h100: torch.device
) -> None:
    recipe = recipe_of("tiny_simcse", f"model.dtype={dtype}", f"model.base={tiny_model}")
    device = on_h100 if dtype == "fp32" else torch.device("cpu")
    found = Utilisation(recipe, world_size=1, device=device).figures(STEP)
    assert found.keys() == {"memory_gib"}
    assert 0.1 < found["memory_gib"] < 100
