"""What operations move and compute, from shapes: beside arithmetic by hand, and the plan."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.benchmarks import counted, roofline
from tests.benchmarks.roofline import ALL, NORMS, Case, Traced, config_of, trace
from toolkit.runs.estimate import GPUS, Cluster, forward_flops, need, work_flops
from toolkit.runs.shapes import read_shape
from toolkit.settings.recipes import load_recipe
from toolkit.settings.schema import TrainingRecipe

LAYERS, WIDTH, INNER, HEADS, KEYS = 2, 64, 128, 64, 32
MNTP = Case("mntp", rows=4, length=64)
STEP = {"fused": {}, "norms": NORMS, "lora": NORMS | {"lora"}, "all": ALL}


@pytest.fixture(scope="module")
def steps() -> dict[str, Traced]:
    """A step of MNTP with more and more of it fused."""
    config = config_of("tiny")
    return {
        name: trace(config, dataclasses.replace(MNTP, fused=frozenset(fused)))
        for name, fused in STEP.items()
    }


def per_token(traced: Traced, name: str) -> float:
    return traced.counted.moved()[name] / traced.tokens


def test_each_fusion_moves_what_it_must_and_saves_the_rest(steps: dict[str, Traced]) -> None:
    """In bytes of bf16 per token: what each kernel reads and writes, forward and backward."""
    # Forward in and out; backward the gradient, the input and the result; a scale of 4 bytes. The
    # first norm, of the embeddings, has no backward pass.
    wanted = 2 * LAYERS * (5 * 2 * WIDTH + 2 * 4) + 2 * 2 * WIDTH + 4
    assert per_token(steps["norms"], "rms_norm") == pytest.approx(wanted, rel=0.01)
    # gate, up and their product; backward the gradient and both, which are overwritten.
    assert per_token(steps["all"], "swiglu") == LAYERS * (3 + 5) * 2 * INNER
    # Queries and keys in place, both ways, with cosines and sines.
    places = 2 * 2 * 2 * 16
    found = per_token(steps["all"], "rope")
    assert found == LAYERS * (2 * 2 * 2 * (HEADS + KEYS) + places)
    moved = [sum(one.counted.moved().values()) for one in steps.values()]
    assert moved == sorted(moved, reverse=True)
    assert len(set(moved)) == len(moved)


def test_an_adapter_reads_and_writes_its_layers_output_once(steps: dict[str, Traced]) -> None:
    """Where peft writes a product, reads and writes it to scale it, and reads both to add them."""
    outputs = HEADS + 2 * KEYS + WIDTH + 2 * INNER + WIDTH
    low, weights = 7 * 16 * 2, 2 * 16 * outputs / MNTP.tokens
    wanted = LAYERS * (2 * 2 * outputs + low + weights)
    assert per_token(steps["lora"], "addmm_") == pytest.approx(wanted, rel=1e-6)
    saved = sum(
        per_token(steps["norms"], name) - per_token(steps["lora"], name) for name in ("mul", "add")
    )
    assert saved > LAYERS * (2 + 3) * 2 * outputs


def test_the_memory_of_a_step_is_that_of_its_tensors() -> None:
    """A product: both factors, then the result; what is freed counts no more."""
    one = torch.empty(1000, 10, dtype=torch.bfloat16, device="meta")
    with counted.counting(attended=1) as found:
        found.hold(one)
        other = one @ one.t()
        del other
        kept = one.t() @ one
        assert found.live == 2 * 10_000 + kept.untyped_storage().nbytes() == 20_200
    assert found.peak == 2 * 10_000 + 2 * 1_000_000
    assert [cost.flops for cost in found.costs] == [2 * 10 * 1_000_000, 2 * 1000 * 100]
    assert found.costs[0].moved == 2 * 2 * 10_000 + 2 * 1_000_000
    assert found.seconds(rate=1e6, bandwidth=1e9) == pytest.approx(20.2)


def test_recomputing_moves_more_and_keeps_less(steps: dict[str, Traced]) -> None:
    again = trace(config_of("tiny"), dataclasses.replace(MNTP, fused=ALL, recomputed=True))
    plain = steps["all"]
    assert again.moved > plain.moved and again.flops > 1.2 * plain.flops
    # All layers' forward passes once more, and nothing else.
    for name in ("rms_norm", "swiglu", "rope", "_varlen_attn", "dropout"):
        assert again.counted.moved()[name] > plain.counted.moved()[name], name


def few_layers(name: str) -> Any:
    """The configuration of a shape with twelve layers only, which takes less time."""
    config = config_of(name)
    config.num_hidden_layers = 12
    config.layer_types = (config.to_dict().get("layer_types") or [])[:12] or None
    return config


def test_products_in_8_bits_move_half_of_the_weights_and_take_half_the_time() -> None:
    case = Case("encode", ALL - {"lora"}, rows=2, length=64)
    plain, ours = (
        trace(config_of("tiny"), dataclasses.replace(case, fp8=fp8)) for fp8 in (False, True)
    )
    assert ours.flops == plain.flops
    # Each layer: its weight and its input in a byte each, its scales, and its output in bf16.
    layers = [(WIDTH, HEADS), *[(WIDTH, KEYS)] * 2, (HEADS, WIDTH)]
    layers += [(WIDTH, INNER)] * 2 + [(INNER, WIDTH)]
    tokens = case.tokens
    moved = sum(
        inputs * (outputs + tokens) + 4 * (outputs + tokens) + 2 * tokens * outputs
        for inputs, outputs in layers
    )
    assert ours.counted.moved()["_scaled_mm_v2"] == LAYERS * moved
    rounded = sum(3 * tokens * inputs + 4 * tokens for inputs, _ in layers)
    assert ours.counted.moved()["quantized"] == LAYERS * rounded
    # Attention's own products stay as they are.
    products = sum(cost.flops for cost in ours.counted.costs if cost.name == "_scaled_mm_v2")
    others = plain.flops * tokens - products
    taken = ours.counted.seconds(rate=1.0, bandwidth=1e30)
    assert taken == pytest.approx(products / 2 + others)


# Its norms of queries and keys keep their inputs, which the plan leaves out.
@pytest.mark.parametrize(("name", "within"), [("mistral-7b", 0.03), ("qwen3-0.6b", 0.12)])
def test_the_plan_knows_the_memory_of_a_step(name: str, within: float) -> None:
    """Without liger-kernel, and without recomputation, at 4,096 tokens: weights, their gradients,
    what layers keep, and logits."""
    config = few_layers(name)
    given = ["train.micro_batch_tokens=null", "train.micro_batch_rows=8", "data.max_tokens=512"]
    given += ["train.global_batch_rows=8", "mntp.mask_probability=0.2"]
    recipe = load_recipe("mntp_mistral_7b", overrides=given)
    assert isinstance(recipe, TrainingRecipe) and not recipe.model.activation_checkpointing
    alone = Cluster(1, 1, gpu=GPUS["h100"], network=1e12)
    asked = need(read_shape(config.to_dict()), recipe, layout_name="zero2", cluster=alone)
    items = ("weights", "gradients", "activations", "logits")
    planned = sum(asked.memory[name] for name in items)
    found = trace(config, Case("mntp", NORMS | {"lora"})).counted.peak
    assert planned == pytest.approx(found, rel=within)


@pytest.mark.parametrize("name", ["mistral-7b", "qwen3-0.6b", "smollm2-135m"])
def test_the_plan_counts_the_same_flops(name: str) -> None:
    """Of encoding and of MNTP, with and without recomputation: within two hundredths."""
    # Of the first layer no gradient of the input is computed: a tenth of a few layers.
    config = few_layers(name)
    shape = read_shape(config.to_dict())
    found = trace(config, Case("encode", rows=2))
    assert found.flops == pytest.approx(forward_flops(shape, attended=512), rel=0.02)
    for recomputed in (False, True):
        given = [f"model.activation_checkpointing={recomputed}", "mntp.mask_probability=0.2"]
        recipe = load_recipe("mntp_mistral_7b", overrides=given)
        assert isinstance(recipe, TrainingRecipe) and recipe.model.lora
        planned = work_flops(shape, recipe, attended=512, cached=False)
        case = Case("mntp", ALL, rows=2, recomputed=recomputed)
        assert trace(config, case).flops == pytest.approx(planned, rel=0.02)


def test_the_table_of_a_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config_of("tiny").save_pretrained(tmp_path)
    tables = []
    for name in ("tiny", str(tmp_path)):
        roofline.main([name, "h100"])
        tables.append(capsys.readouterr().out.splitlines()[1:])
    assert tables[0] == tables[1]
    rows = [line.split("|")[1].strip() for line in tables[0][3:]]
    assert rows == list(roofline.CASES)
    with pytest.raises(SystemExit, match=r"nothing: no config.json, and none of mistral-7b, "):
        roofline.main(["nothing", "h100"])


def rates(gpu: str) -> dict[str, float]:
    reached: Any = roofline.REACHED[gpu]
    config = config_of("mistral-7b")
    return {
        name: trace(config, case).tokens_per_s(reached)
        for name, case in roofline.CASES.items()
        if name.startswith(("encode, +", "MNTP, +"))
    }


@pytest.mark.slow
def test_the_bars_of_a_h100_are_within_reach() -> None:
    """What the fusions are for: 39 thousand tokens a second encoded, 14.5 thousand trained on."""
    found = rates("h100")
    assert found["encode, + SwiGLU and RoPE"] > 39_000
    assert found["MNTP, + SwiGLU and RoPE"] > found["MNTP, + LoRA as one product"] > 14_500
