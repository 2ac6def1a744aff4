"""The plan: parameters as transformers counts them, partitions as ZeRO makes them."""

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from tests.conftest import run, torchrun
from tests.model.test_attention import FAMILIES, model_of
from tests.test_launch import hub_cache
from toolkit import plan
from toolkit.model.backbone import add_lora
from toolkit.runs.estimate import GPUS, Cluster, Need, busy_rows, need, recommend
from toolkit.runs.shapes import read_shape
from toolkit.settings.model_schema import Lora
from toolkit.settings.recipes import load_recipe
from toolkit.settings.schema import TrainingRecipe

Door = Callable[..., str]
MISTRAL = {
    "model_type": "mistral",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 32000,
    "tie_word_embeddings": False,
}


def cluster(nodes: int, gpus: int, name: str = "h100", gbit: float = 3200) -> Cluster:
    return Cluster(nodes, gpus, gpu=GPUS[name], network=gbit * 1e9 / 8)


@pytest.mark.parametrize("family", [*FAMILIES, "qwen3_moe"])
def test_parameters_are_counted_as_transformers_counts_them(family: str) -> None:
    if family == "qwen3_moe":
        from transformers import Qwen3MoeConfig

        config = Qwen3MoeConfig(
            hidden_size=32, intermediate_size=64, moe_intermediate_size=16, num_experts=4,
            num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
            vocab_size=100,
        )  # fmt: skip
    else:
        config = model_of(family, attention="eager").config
    model = AutoModelForCausalLM.from_config(config)
    shape = read_shape(json.loads(config.to_json_string(use_diff=False)))
    assert shape.weights(head=True) == sum(weight.numel() for weight in model.parameters())
    targets = ["q_proj", "o_proj", "gate_proj", "down_proj"]
    if family == "phi3":
        targets = ["qkv_proj", "gate_up_proj"]
    if not shape.experts:
        lora = Lora(rank=4, alpha=8, dropout=0.0, targets=tuple(targets))
        adapted = add_lora(model, lora=lora)
        trained = sum(w.numel() for w in adapted.parameters() if w.requires_grad)
        assert shape.adapters(lora) == trained


def test_partitions_are_what_zero_makes(tiny_model: Path, shards: Path) -> None:
    """One rank was tried too: it holds everything."""
    cases = [f"{kind}:{stage}" for kind in ("mntp", "mntp-full", "simcse") for stage in "0123"]
    script = ["tests/training/partitions.py", str(tiny_model), str(shards)]
    run([*torchrun(2), *script, *cases])


def test_mistral_7b_is_planned_as_people_run_it() -> None:
    """LoRA fits a GPU of 80 GB without partitioning weights; to train all of them takes 18 bytes
    each, spread over GPUs."""
    shape = read_shape(MISTRAL)
    assert shape.weights(head=True) == 7_241_732_096  # as its model card says
    recipe = load_recipe("mntp_mistral_7b")
    assert isinstance(recipe, TrainingRecipe)
    found = recommend(shape, recipe, cluster=cluster(1, 8))
    assert found and found.layout == "zero2"
    whole = {"lora": None, "activation_checkpointing": True}
    fewer = recipe.train.model_copy(update={"micro_batch_rows": 4})
    full = recipe.model_copy(
        update={"model": recipe.model.model_copy(update=whole), "train": fewer}
    )
    spread = need(shape, full, layout_name="zero3", cluster=cluster(1, 8))
    assert sum(list(spread.memory.values())[:4]) == pytest.approx(7_241_732_096 * 18 / 8)
    places = {"zero2": (1, 8, "h100"), "zero3_hpz": (2, 8, "a10g"), "zero3": (1, 2, "h100")}
    places["zero3_offload"] = (1, 1, "a10g")
    for layout, place in places.items():
        best = recommend(shape, full, cluster=cluster(*place))
        assert best and best.layout == layout
    offload = need(shape, full, layout_name="zero3_offload", cluster=cluster(2, 8))
    assert offload.memory["weights"] == 0
    assert offload.host == pytest.approx(7_241_732_096 * 18 / 2)  # on each of two nodes
    large = full.train.model_copy(update={"micro_batch_rows": 32})
    longer = full.data.model_copy(update={"max_tokens": 2048})
    full = full.model_copy(update={"train": large, "data": longer})
    assert recommend(shape, full, cluster=cluster(1, 1, "a10g")) is None
    # 4 nodes do four times the work, if there is enough for all.
    large = recipe.train.model_copy(update={"global_batch_rows": 512})
    recipe = recipe.model_copy(update={"train": large})
    times = [need(shape, recipe, layout_name="zero2", cluster=cluster(n, 8)).hours for n in (1, 4)]
    assert times[0] == pytest.approx(4 * times[1], rel=0.02)


def needs(layout: str, *, nodes: int = 4, gbit: float = 400, **train: object) -> Need:
    recipe = load_recipe("mntp_mistral_7b")
    assert isinstance(recipe, TrainingRecipe)
    recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update=train)})
    return need(
        read_shape(MISTRAL), recipe, layout_name=layout, cluster=cluster(nodes, 8, gbit=gbit)
    )


@pytest.mark.parametrize(("gbit", "hours"), [(10, 6.28), (100, 0.628)])
def test_hours_hold_the_gathers_of_all_weights(gbit: float, hours: float) -> None:
    """By hand: 7.24 G weights and 42 M of adapters, 2 bytes each, forward and backward, 31/32 of
    it from elsewhere, a thousand times; the computing, half a minute, hides behind it."""
    lora = 32 * 16 * (2 * 2 * 4096 + 2 * (4096 + 1024) + 3 * (4096 + 14336))
    moved = 2 * 31 / 32 * (2 * (7_241_732_096 + lora) + lora)
    found = needs("zero3", gbit=gbit)
    assert found.hours == pytest.approx(1000 * moved / (gbit * 1e9 / 8) / 3600)
    assert found.hours == pytest.approx(hours, rel=0.01)
    assert found.compute_s < found.hidden_s


def test_each_layout_moves_what_it_must() -> None:
    """ZeRO-2 with adapters sends no frozen weight; hpZ gathers backward within the node."""
    slow, fast = needs("zero3", gbit=10), needs("zero2", gbit=10)
    assert fast.hidden_s < slow.hidden_s / 100
    assert fast.hours < slow.hours / 80
    assert fast.exposed_s > 0 == slow.exposed_s
    assert needs("zero3_hpz", gbit=10).hours == pytest.approx(slow.hours / 2, rel=0.01)
    assert needs("zero3", nodes=1, gbit=10) == needs("zero3", nodes=1, gbit=400)  # none is crossed
    # Rows of a rank in four micro-batches: four times the gathers.
    several = needs("zero3", gbit=10, global_batch_rows=128, micro_batch_rows=1)
    assert several.hidden_s == pytest.approx(4 * slow.hidden_s)


@given(
    st.lists(st.floats(1, 10_000), min_size=2, max_size=2).map(sorted),
    st.sampled_from(["zero0", "zero1", "zero2", "zero3", "zero3_hpz"]),
    st.sampled_from([1, 2, 4]),
)
def test_a_faster_network_is_never_slower(gbits: list[float], layout: str, nodes: int) -> None:
    slow, fast = (needs(layout, nodes=nodes, gbit=gbit) for gbit in gbits)
    assert fast.hours <= slow.hours
    assert slow.hours >= slow.steps * slow.compute_s / 3600


@pytest.mark.parametrize("gbit", [10, 100, 400, 3200])
@pytest.mark.parametrize("rows", [32, 512])
def test_advice_that_is_followed_comes_true(
    gbit: int, rows: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(MISTRAL))
    command = ["mntp_mistral_7b", f"model.base={tmp_path}", "--nodes", "4"]
    command.append("deepspeed.config=zero3")
    command += ["--network-gbit", str(gbit), f"train.global_batch_rows={rows}"]
    command += ["train.micro_batch_rows=1"]

    def hours(*more: str) -> str:
        assert plan.main([*command, *more]) == 0
        printed.append(capsys.readouterr().out)
        return re.findall(r"rows, (.+) at", printed[-1])[0]

    printed: list[str] = []
    before = hours()
    (line,) = re.findall("(?:the network slows it down|host-bound: [^;]*); (.*)", printed[0])
    advice = dict(part.split(": ") for part in line.split("; "))
    assert ("deepspeed.config=zero2" in advice) or gbit == 3200
    # 32 rows are one for each GPU already.
    assert any("micro_batch_rows" in what for what in advice) == (rows > 32)
    for what, promised in advice.items():
        assert hours(what) == promised != before


def test_the_door_prints_a_plan(door: Door, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(MISTRAL))
    base = f"model.base={tmp_path}"
    printed = door(
        "plan", "llm2vec_mistral_7b", base, "--nodes", "4", "mntp.deepspeed.config=zero3"
    )
    assert "7.24 B parameters; 4 x 8 h100" in printed
    assert re.search(r"mntp: 1000 steps of 32 rows, 14 min at [\d,]+ tokens/s", printed)
    step = r"per step: [\d.]+ s; [\d.]+ s of computing, beside it [\d.]+ s of the host and "
    assert re.search(step + r"[\d.]+ s of network", printed)
    assert "deepspeed.config=zero3 fits 75 GiB; better: deepspeed.config=zero2" in printed
    slow = "host-bound: starting operations takes longer than 512 tokens; "
    assert f"{slow}deepspeed.config=zero2: 3.2 min" in printed
    advice = "the batch of 128 rows is too small for 32 GPUs: 8 would do, or another run with "
    assert f"1,024 tokens; {advice}train.global_batch_rows=512" in printed
    slow_network = ["--network-gbit", "25", "mntp.deepspeed.config=zero3"]
    printed = door("plan", "llm2vec_mistral_7b", base, "--nodes", "4", *slow_network)
    assert "the network slows it down; deepspeed.config=zero2: 3.6 min" in printed
    printed = door("plan", "mntp_mistral_7b", base, "--gpu", "h1000", code=2)
    assert "--gpu h1000: not known; valid: a10g" in printed
    printed = door("plan", "mntp_mistral_7b", base, "--gpus-per-node", "7", code=2)
    assert "train.global_batch_rows=32 cannot be dealt to 7 ranks" in printed
    printed = door("plan", "quickstart_evaluate", code=2)
    assert "toolkit.plan takes pipeline, mntp, simcse, supervised, graded, embed" in printed
    printed = door("plan", "mntp_mistral_7b", "model.base=nobody/nothing", code=2)
    assert "not in this machine's hub cache" in printed


def test_a_config_in_the_hubs_cache_is_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hub_cache(tmp_path, "us/model", "config.json")
    (config,) = (tmp_path / "hub").rglob("config.json")
    config.write_text(json.dumps(MISTRAL))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert plan.main(["mntp_mistral_7b", "model.base=us/model"]) == 0
    assert "us/model: 7.24 B parameters" in capsys.readouterr().out
    assert plan.main(["mntp_mistral_7b", "model.base=us/other"]) == 2
    assert "hf download us/other config.json" in capsys.readouterr().err


def test_the_launcher_warns_of_what_will_not_fit(door: Door, shards: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(MISTRAL))
    (tmp_path / "model.safetensors").touch()
    arguments = ["--recipe", "mntp_mistral_7b", "--cluster", "slurm", "--dry-run"]
    arguments += [
        "--gpus-per-node",
        "2",
        f"model.base={tmp_path}",
        f"data.train={shards}",
        "model.lora=null",
    ]
    arguments += ["deepspeed.config=zero2", f"run_dir={tmp_path / 'run'}"]
    arguments += ["train.micro_batch_rows=4", "model.activation_checkpointing=true"]
    warned = "warning: mntp: needs 72 GiB per GPU, and a GPU has 75; see python -m toolkit.plan"
    assert warned in door("launch", *arguments, "--gpu", "h100")
    assert "warning: mntp" not in door("launch", *arguments, "--gpu", "h200")
    assert "warning: mntp" not in door("launch", *arguments)


def test_a_step_is_the_longer_of_both_and_what_all_wait_for() -> None:
    times = {"compute_s": 3.0, "host_s": 1.0, "hidden_s": 2.0, "exposed_s": 1.0}
    found = Need("zero2", memory={}, host=0.0, steps=1800, tokens=8.0, tokens_per_step=8.0, **times)
    assert (found.step_s, found.hours, found.tokens_per_s) == (4.0, 2.0, 2.0)
    assert dataclasses.replace(found, hidden_s=7.0).step_s == 8.0
    slower = dataclasses.replace(found, host_s=6.0)
    assert (slower.step_s, slower.is_host_bound, found.is_host_bound) == (7.0, True, False)


SHAPES = {
    "mistral_7b": MISTRAL,
    "llama2_7b": {**MISTRAL, "intermediate_size": 11008, "num_key_value_heads": 32},
    "llama3_8b": {**MISTRAL, "vocab_size": 128256},
    "sheared_llama_1b": {
        **{**MISTRAL, "hidden_size": 2048, "intermediate_size": 5504, "num_hidden_layers": 24},
        **{"num_attention_heads": 16, "num_key_value_heads": 16},
    },
}


@pytest.mark.parametrize("model", SHAPES)
@pytest.mark.parametrize("kind", ["mntp", "simcse", "supervised"])
def test_the_papers_recipes_fit_and_fill_the_gpus_that_they_name(kind: str, model: str) -> None:
    """Published batches, the layout with the least traffic, no row alone on a GPU."""
    recipe = load_recipe(f"{kind}_{model}")
    assert isinstance(recipe, TrainingRecipe)
    gpus = 1 if model == "sheared_llama_1b" else {"mntp": 4}.get(kind, 8)
    on = (
        [cluster(1, gpus, "a10g")] if gpus == 1 else [cluster(1, gpus, n) for n in ("h100", "a100")]
    )
    published = {"mntp": 32, "simcse": 32 if gpus == 1 else 128, "supervised": 512}
    assert recipe.train.global_batch_rows == published[kind]
    shape = read_shape(SHAPES[model])
    for place in on:
        found = need(shape, recipe, layout_name=recipe.deepspeed.config, cluster=place)
        best = recommend(shape, recipe, cluster=place)
        assert best and best.layout == recipe.deepspeed.config == "zero2"
        assert found.fits(place.gpu) and not found.is_host_bound and found.tokens >= 4096
        # It computes nothing twice unless it must.
        plain = recipe.model.model_copy(update={"activation_checkpointing": False})
        kept = recipe.model_copy(update={"model": plain})
        again = need(shape, kept, layout_name="zero2", cluster=place)
        assert recipe.model.activation_checkpointing == (not again.fits(place.gpu))


def test_the_host_is_what_keeps_a_gpu_waiting_with_one_row() -> None:
    """As the recipe was: ZeRO-3, recomputation, four rows of 512 tokens, on 32 GPUs one row."""
    recipe = load_recipe("mntp_mistral_7b")
    assert isinstance(recipe, TrainingRecipe)
    model = recipe.model.model_copy(update={"activation_checkpointing": True})
    before = recipe.model_copy(update={"model": model})
    shape = read_shape(MISTRAL)
    place = cluster(4, 8)
    was = need(shape, before, layout_name="zero3", cluster=place)
    assert was.host_s == pytest.approx(1.7, rel=0.02)  # measured: 1,712 ms
    now = need(shape, recipe, layout_name="zero2", cluster=place)
    assert now.is_host_bound and now.host_s < was.host_s / 8
    rows = busy_rows(now, recipe=recipe, cluster=place)
    assert rows == 8
    larger = recipe.train.model_copy(update={"global_batch_rows": 32 * rows})
    filled = need(
        shape,
        recipe.model_copy(update={"train": larger}),
        layout_name="zero2",
        cluster=place,
    )
    assert not filled.is_host_bound and busy_rows(filled, recipe=recipe, cluster=place) is None
