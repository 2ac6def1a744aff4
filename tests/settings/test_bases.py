"""Recipes that are made for a base of the table: shapes beside transformers' own models, settings
beside a recipe that is written out, and memory beside the GPU that the table names."""

from typing import Any

import pytest
import torch
import yaml
from transformers import AutoConfig, AutoModelForCausalLM

from tests.conftest import refused
from toolkit import plan, train
from toolkit.runs.estimate import Cluster, gpu_of, need
from toolkit.runs.shapes import read_shape
from toolkit.settings.bases import bases, config_of, recipe_text
from toolkit.settings.catalogue import STAGES, made_of, recipe_names
from toolkit.settings.recipes import flatten, load_recipe
from toolkit.settings.schema import TrainingRecipe
from toolkit.settings.training_checks import fit_to_ranks

# Billions of parameters that the makers of these models name.
NAMED = {
    "qwen3_0_6b": 0.6, "qwen3_4b": 4.0, "qwen3_8b": 8.2, "gemma3_270m": 0.27, "gemma3_1b": 1.0,
    "gemma3_4b": 3.9, "llama3_2_1b": 1.24, "llama3_2_3b": 3.21, "smollm2_1_7b": 1.71,
    "smollm3_3b": 3.08, "olmo2_1b": 1.48, "olmo2_7b": 7.3, "qwen3_30b_a3b": 30.5,
    "mixtral_8x7b": 46.7,
}  # fmt: skip
STAGES_OF_TRAINING = ("mntp", "simcse", "supervised")
GPUS = {"small": (1, 1, 1), "large": (4, 8, 8), "experts": (8, 8, 8)}  # as their hardware says


@pytest.mark.parametrize("base", bases())
def test_a_shape_has_the_parameters_of_transformers_own_model(base: str) -> None:
    config = dict(bases()[base]["config"])
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(config.pop("model_type"), **config)
        )
    counted = sum(part.numel() for part in model.parameters())
    assert read_shape(bases()[base]["config"]).weights(head=True) == counted
    assert counted / 1e9 == pytest.approx(NAMED[base], rel=0.02)


@pytest.mark.parametrize("stage", STAGES)
def test_a_template_is_the_recipe_of_llama_3(stage: str) -> None:
    """Large bases have the settings of a recipe that is written out, but for names."""
    made = flatten(load_recipe(f"{stage}_qwen3_8b").model_dump(mode="json"))
    written = flatten(load_recipe(f"{stage}_llama3_8b").model_dump(mode="json"))
    other = {key: (made[key], written[key]) for key in written if made[key] != written[key]}
    names = {"run_dir", "model.base", "stages.mntp.recipe", "stages.simcse.recipe"}
    assert set(other) <= names
    for key, (one, two) in other.items():
        if key == "model.base" and stage in ("mntp", "llm2vec"):
            assert (one, two) == ("Qwen/Qwen3-8B", "meta-llama/Meta-Llama-3-8B-Instruct")
        else:
            assert one == two.replace("llama3_8b", "qwen3_8b")


@pytest.mark.parametrize("base", bases())
def test_each_stage_fits_the_gpus_that_its_size_names(base: str) -> None:
    row = bases()[base]
    shape, gpu = read_shape(row["config"]), gpu_of(row["fits"])
    for stage, world in zip(STAGES_OF_TRAINING, GPUS[row["size"]], strict=True):
        recipe = load_recipe(f"{stage}_{base}")
        assert isinstance(recipe, TrainingRecipe)
        recipe = fit_to_ranks(recipe, world_size=world, tell=lambda _: None)
        cluster = Cluster(1, world, gpu=gpu, network=4e11)
        asked = need(shape, recipe, layout_name=recipe.deepspeed.config, cluster=cluster)
        assert asked.fits(gpu), (stage, asked.memory)
        targets = recipe.model.lora.targets if recipe.model.lora else ()
        assert set(targets) <= shape.linear.keys() - shape.experts


def test_the_names_that_help_texts_list_are_those_of_the_table() -> None:
    names = {name for name in recipe_names() if made_of(name)}
    assert names == {f"{stage}_{base}" for stage in STAGES for base in bases()}
    assert made_of("mntp_mistral_7b") is None  # it is written out
    assert len({row["hub"] for row in bases().values()}) == len(bases())


@pytest.mark.parametrize("stage", STAGES)
def test_a_template_is_filled_in_with_its_comments(stage: str) -> None:
    for base, row in bases().items():
        text = recipe_text(stage, base)
        head = text.partition("kind:")[0]
        assert row["hub"] in head and all(line.startswith("# ") for line in head.splitlines())
        left = {"{run_dir}", "{model.base}", "{data.train}", "{corpus.input}"}
        for name in left:
            text = text.replace(name, "")
        assert "{" not in text and yaml.safe_load(text)["kind"] == STAGES[stage]
    assert "57 on MTEB" in recipe_text(stage, "qwen3_8b")
    assert "no figure of this recipe" in recipe_text(stage, "qwen3_4b")


@pytest.mark.parametrize("recipe", ["mntp_gemma3_1b", "simcse_gemma3_1b", "llm2vec_gemma3_1b"])
def test_what_a_base_needs_is_planned_before_it_is_fetched(
    recipe: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert plan.main([recipe, "--gpu", "a10g", "--gpus-per-node", "1"]) == 0
    assert "1.00 B parameters; 1 x 1 a10g" in capsys.readouterr().out


def test_other_models_are_not_in_the_table() -> None:
    assert config_of("Qwen/Qwen3-8B") == bases()["qwen3_8b"]["config"]
    assert config_of("runs/simcse_qwen3_8b") == bases()["qwen3_8b"]["config"]
    written = {"mistral_7b": 7.24, "llama2_7b": 6.74, "llama3_8b": 8.03, "sheared_llama_1b": 1.35}
    for name, billions in written.items():
        recipe = load_recipe(f"mntp_{name}")
        assert isinstance(recipe, TrainingRecipe)
        config = config_of(recipe.model.base)
        assert config and config == config_of(f"runs/simcse_{name}")
        assert read_shape(config).weights(head=True) / 1e9 == pytest.approx(billions, abs=0.01)
    assert config_of("qwen3_8b") is None and config_of("runs/mine") is None


def test_a_name_that_is_almost_one_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, train.main, "mntp_qwen3_8")
    assert "did you mean 'mntp_qwen3_8b'?" in line and "mntp_BASE" in line
    assert len(line) < 800
