"""Recipes: strictness, overrides, pipelines, DeepSpeed layouts."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import ROOT
from toolkit.base.errors import BadInput
from toolkit.base.shown import as_yaml
from toolkit.settings.catalogue import recipe_names, recipe_path
from toolkit.settings.domain_schema import DocumentsRecipe
from toolkit.settings.layouts import read_layout
from toolkit.settings.model_source import resolve_model
from toolkit.settings.pipeline_schema import PipelineRecipe
from toolkit.settings.pipelines import resolve, resolve_stages, split_overrides
from toolkit.settings.questions_schema import QuestionsRecipe
from toolkit.settings.recipes import load_recipe, parse_override, to_yaml
from toolkit.settings.schema import (
    EmbedRecipe,
    EvaluateRecipe,
    MntpRecipe,
    SimcseRecipe,
    SupervisedRecipe,
    Train,
    TrainingRecipe,
)
from toolkit.settings.training_checks import batch_split, fit_to_ranks


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_loads_and_survives_a_round_trip(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    (tmp_path / "again.yaml").write_text(to_yaml(recipe))
    assert load_recipe(str(tmp_path / "again.yaml")) == recipe
    if isinstance(recipe, PipelineRecipe):
        left = [name for name in recipe.stages if name not in recipe.skip]
        assert list(resolve_stages(recipe)) == left


def test_the_recipes_of_the_evaluation_readme_load(tmp_path: Path) -> None:
    page = (ROOT / "toolkit" / "evaluation" / "README.md").read_text()
    blocks = re.findall(r"```yaml\n(.*?)```", page, flags=re.DOTALL)
    whole = [block for block in blocks if block.startswith("kind: ")]
    assert len(whole) == 2
    for block in blocks:
        head = "" if block in whole else f"{whole[0]}\n"  # the others are a part of a recipe
        (tmp_path / "recipe.yaml").write_text(head + block)
        assert load_recipe(str(tmp_path / "recipe.yaml"))


@pytest.mark.parametrize("family", ["mistral_7b", "llama2_7b", "llama3_8b", "sheared_llama_1b"])
def test_recipes_have_the_published_figures(family: str) -> None:
    mntp, simcse = load_recipe(f"mntp_{family}"), load_recipe(f"simcse_{family}")
    assert isinstance(mntp, MntpRecipe)
    assert isinstance(simcse, SimcseRecipe)
    assert (mntp.mntp.mask_probability, mntp.mntp.mask_policy) == (
        (0.8, "all") if family == "mistral_7b" else (0.2, "bert")
    )
    assert (mntp.train.global_batch_rows, mntp.data.max_tokens, mntp.train.lr) == (32, 512, 5e-5)
    rows = 32 if family == "sheared_llama_1b" else 128
    assert (simcse.train.global_batch_rows, simcse.data.max_tokens) == (rows, 128)
    assert (simcse.simcse.scale, simcse.model.attention_dropout, simcse.train.lr) == (20, 0.3, 3e-5)
    for recipe in (mntp, simcse):
        assert recipe.model.lora
        assert (recipe.model.lora.rank, recipe.model.lora.alpha) == (16, 32)
        assert recipe.train.horizon_steps > recipe.train.steps == 1000


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.stpes=3", r"unknown key 'train\.stpes'; valid keys here: steps, horizon_steps"),
        ("stpes=3", r"unknown key 'stpes'; valid keys here: kind, run_dir"),
        ("model.lora.rnk=3", r"'model\.lora\.rnk'; valid keys here: rank, alpha"),
        ("train.steps=abc", r"'train\.steps': input should be a valid integer, not \"abc\""),
        ("train.steps=1.5", r"'train\.steps'"),
        ("train.steps='3'", r"'train\.steps'"),
        ("train.steps=0", r"greater than or equal to 1, not 0"),
        ("train.seed=-1", r"'train\.seed': .*greater than or equal to 0, not -1"),
        (f"train.seed={2**63}", r"'train\.seed': .*less than 9223372036854775808, not 92233720"),
        ("train.lr=-1", r"'train\.lr'"),
        ("train.lr=.nan", r"'train\.lr'"),
        ("model.dtype=fp8", r"'model\.dtype': input should be 'fp32' or 'bf16', not \"fp8\""),
        ("run_dir.a=3", r"'run_dir' is a value, not a group"),
        ("model.base=", r"'model\.base'"),
        ("nonsense", r"write key\.path=value"),
        ("train.steps=[", r"the value is not YAML"),
        ("kind=poem", r"kind is 'poem'; valid kinds: mntp"),
    ],
)
def test_bad_overrides_are_named(override: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        load_recipe("tiny_mntp", overrides=[override])


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(to_yaml(load_recipe("tiny_embed")).replace("output_dir: ", "# "))
    with pytest.raises(BadInput, match="key 'output_dir' is missing"):
        load_recipe(str(path))


def test_unknown_recipe_lists_the_valid_ones() -> None:
    with pytest.raises(BadInput, match=r"unknown recipe 'mntp_gpt9'.*mntp_mistral_7b"):
        load_recipe("mntp_gpt9")


@pytest.mark.parametrize("content", ["", "- 1\n", "a: [\n", "!!python/object:os.system {}\n"])
def test_a_file_that_is_no_recipe(content: str, tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(content)
    with pytest.raises(BadInput, match=r"recipe"):
        load_recipe(str(path))


def test_recipes_are_frozen() -> None:
    recipe = load_recipe("tiny_mntp")
    with pytest.raises(ValueError, match="frozen"):
        recipe.kind = "simcse"  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("text", "value"),
    [("a=1e-3", 1e-3), ("a=3", 3), ("a=true", True), ("a=x=y", "x=y"), ("a=[q, k]", ["q", "k"])],
)
def test_an_override_is_read_as_yaml(text: str, value: object) -> None:
    assert parse_override(text) == ("a", value)


@given(st.floats(min_value=1e-12, max_value=1e12))
def test_any_learning_rate_survives_the_command_line(rate: float) -> None:
    recipe = load_recipe("tiny_mntp", overrides=[f"train.lr={rate!r}"])
    assert isinstance(recipe, TrainingRecipe)
    assert recipe.train.lr == rate


def test_pipeline_values_and_overrides_reach_the_stages() -> None:
    given_overrides = ["run_dir=out/x", "model.base=my/base", "train.seed=7", "mntp.train.steps=9"]
    own, rest = split_overrides(given_overrides)
    assert own == ["run_dir=out/x", "model.base=my/base"]
    pipeline = load_recipe("tiny_pipeline", overrides=own)
    assert isinstance(pipeline, PipelineRecipe)
    stages = resolve_stages(pipeline, overrides=rest)
    mntp, simcse, embed = stages["mntp"], stages["simcse"], stages["embed"]
    assert isinstance(mntp, MntpRecipe)
    assert isinstance(simcse, SimcseRecipe)
    assert isinstance(embed, EmbedRecipe)
    assert (mntp.run_dir, mntp.model.base, mntp.train.steps) == ("out/x/mntp", "my/base", 9)
    assert (simcse.model.base, simcse.train.steps) == ("out/x/mntp/encoder", 6)
    assert (mntp.train.seed, simcse.train.seed) == (7, 7)
    assert embed.encoder.model == "out/x/simcse/encoder"
    with pytest.raises(BadInput, match=r"no stage has the key 'train\.sede'"):
        resolve_stages(pipeline, overrides=["train.sede=7"])


def test_a_pipeline_says_all_that_was_given_and_gives_the_same_run_again(tmp_path: Path) -> None:
    judged = "{corpus: c, queries: q, judgements: j}"
    overrides = [
        *("run_dir=out/x", "data.source=papers", "supervised.train.steps=3", "train.seed=7"),
        *("supervised.train.steps=9", f"evaluate.retrieval.human={judged}"),
        *("questions.per_document=2", "documents.passage_chars=null", "documents.language='📚'"),
    ]
    whole, _, stages = resolve("adapt_domain", overrides=overrides)
    assert isinstance(whole, PipelineRecipe)
    assert whole.stages["supervised"].set["train.steps"] == 9
    assert {s: one.set["train.seed"] for s, one in whole.stages.items() if "train.seed" in one.set}
    supervised, evaluate = stages["supervised"], stages["evaluate"]
    assert isinstance(supervised, TrainingRecipe) and supervised.train.seed == 7
    assert isinstance(evaluate, EvaluateRecipe)
    assert evaluate.retrieval["human"].judgements == "j"
    assert isinstance(documents := stages["documents"], DocumentsRecipe)
    assert (documents.passage_chars, documents.language) == (None, "📚")
    (tmp_path / "config.yaml").write_text(to_yaml(whole))
    again, _, same = resolve(str(tmp_path / "config.yaml"), overrides=[])
    assert again == whole and same == stages
    _, _, other = resolve(str(tmp_path / "config.yaml"), overrides=["train.seed=8"])
    assert isinstance(supervised := other["supervised"], TrainingRecipe)
    assert (supervised.train.seed, supervised.train.steps) == (8, 9)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("source=x", "documents.source=... or encyclopedia.source=... or data.source=..."),
        ("per_document=2", "questions.per_document=... or questions_dev.per_document=... or que"),
        ("encoders.after.model=x", "choose.encoders.after.model=... or evaluate.encoders.after."),
        ("output_dir=x", "different values in the stages documents, encyclopedia, questions, "),
    ],
)
def test_an_override_never_levels_what_a_pipeline_tells_apart(override: str, says: str) -> None:
    with pytest.raises(BadInput, match=re.escape(says)):
        resolve("adapt_domain", overrides=[override])
    if override == "source=x":  # one of the two is left out
        _, _, stages = resolve("adapt_domain", overrides=[override, "skip=[encyclopedia]"])
        assert isinstance(documents := stages["documents"], DocumentsRecipe)
        assert documents.source == "x"


def test_a_key_of_several_stages_without_values_of_the_pipeline_is_one_for_all() -> None:
    _, _, stages = resolve("adapt_domain", overrides=["generator.model=x"])
    written = [one for one in stages.values() if isinstance(one, QuestionsRecipe)]
    assert [one.generator.model for one in written] == ["x"] * 3


def test_what_follows_a_stage_that_is_left_out_goes_on_from_its_base() -> None:
    pipeline = load_recipe("tiny_pipeline", overrides=["run_dir=out/x", "skip=[mntp, simcse]"])
    assert isinstance(pipeline, PipelineRecipe)
    stages = resolve_stages(pipeline, overrides=["mntp.model.base=my/base"])
    assert list(stages) == ["embed"]
    assert isinstance(embed := stages["embed"], EmbedRecipe)
    assert embed.encoder.model == "my/base"
    one_left = resolve_stages(pipeline.model_copy(update={"skip": ("mntp",)}))
    assert list(one_left) == ["simcse", "embed"]
    assert isinstance(simcse := one_left["simcse"], SimcseRecipe)
    assert simcse.model.base == pipeline.model.base
    for place in ("out/x/", "./out/x"):  # the same folder
        moved = pipeline.model_copy(update={"run_dir": place})
        assert isinstance(embed := resolve_stages(moved)["embed"], EmbedRecipe)
        assert embed.encoder.model == pipeline.model.base
    with pytest.raises(BadInput, match=r"no stage 'simcs'; stages: mntp, simcse, embed"):
        resolve_stages(pipeline.model_copy(update={"skip": ("simcs",)}))


def test_braces_in_an_override_of_a_pipeline_mean_themselves(tmp_path: Path) -> None:
    written = "Task: {instruction} {{x}} "
    override = f"supervised.instruction_format={written!r}"
    pipeline, _, stages = resolve("adapt_domain", overrides=[override])
    again = tmp_path / "again.yaml"
    again.write_text(as_yaml(pipeline.model_dump(mode="json")))
    for found in (stages, resolve(str(again), overrides=["run_dir=r"])[2]):
        assert isinstance(supervised := found["supervised"], SupervisedRecipe)
        assert supervised.supervised.instruction_format == written
        assert supervised.run_dir.endswith("/supervised")


def test_without_hard_negatives_training_reads_the_pairs_themselves() -> None:
    for skip, pairs in (("", "r/questions/pairs"), ("skip=[mntp, simcse]", "r/mined")):
        _, _, stages = resolve("adapt_domain", overrides=["run_dir=r", *([skip] if skip else [])])
        assert ("mine" in stages) == (pairs == "r/mined")
        assert isinstance(supervised := stages["supervised"], SupervisedRecipe)
        assert supervised.data.train == pairs


def test_a_value_that_a_stage_needs_and_nobody_gave_is_named(tmp_path: Path) -> None:
    text = recipe_path("tiny_pipeline").read_text().replace("  train: runs/tiny/shards", "  {}")
    (tmp_path / "mine.yaml").write_text(text)
    pipeline = load_recipe(str(tmp_path / "mine.yaml"))
    assert isinstance(pipeline, PipelineRecipe)
    with pytest.raises(BadInput, match=r"this pipeline needs data\.train: give data\.train="):
        resolve_stages(pipeline)


@pytest.mark.parametrize("name", ["zero1", "zero2", "zero3", "zero3_hpz", "zero3_offload"])
def test_layouts_own_no_hyper_parameter(name: str) -> None:
    assert read_layout(name).stage == int(name[4])


@pytest.mark.parametrize(
    ("name", "meaning"),
    [
        ("zero0", (False, False, False, False)),
        ("zero2", (False, False, False, False)),
        ("zero3", (True, False, False, False)),
        ("zero3_hpz", (True, True, False, False)),
        ("zero3_offload", (True, False, True, True)),
    ],
)
def test_what_a_layout_means(name: str, meaning: tuple[bool, ...]) -> None:
    found = read_layout(name)
    shares = (found.shares_weights, found.has_node_copy)
    assert (*shares, found.weights_on_cpu, found.optimizer_on_cpu) == meaning
    assert found.gradients == found.keys.get("data_types", {}).get("grad_accum_dtype")


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ({"train_batch_size": 4}, r"belongs to the recipe \(train\.global_batch_rows\)"),
        ({"gradient_clipping": 1.0}, r"belongs to the recipe \(train\.clip_norm\)"),
        *(({key: {}}, f"{key} belongs to the recipe") for key in ("bf16", "fp16")),
        *(({key: {}}, f"{key} belongs to the recipe") for key in ("optimizer", "scheduler")),
        ({"zero_optimization": {"stage": "auto"}}, r'zero_optimization\.stage is "auto"'),
        ({"zero_optimization": {"stage": 4}}, r"stage is 4; valid: 0, 1, 2, 3"),
        ({}, r"stage is None; valid: 0, 1, 2, 3"),
    ],
)
def test_a_layout_that_says_too_much_is_refused(
    layout: dict[str, object], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "ds.json"
    path.write_text(json.dumps(layout))
    with pytest.raises(BadInput, match=message):
        read_layout(str(path))
    with pytest.raises(BadInput, match="neither a file nor one of zero0, zero1"):
        read_layout("zero9")


@pytest.mark.parametrize("name", ["tiny_mntp", "tiny_simcse", "tiny_supervised", "mntp_mistral_7b"])
def test_a_recipe_for_trying_a_cluster_fits_any_ranks(name: str) -> None:
    recipe = load_recipe(name)
    assert isinstance(recipe, TrainingRecipe)
    own, grows = recipe.train.global_batch_rows, name.startswith("tiny_")
    for ranks in (*range(1, 130), 1000, 4096):
        lines: list[str] = []
        fitted = fit_to_ranks(recipe, world_size=ranks, tell=lines.append)
        rows = fitted.train.global_batch_rows
        assert (not lines) == (fitted == recipe) == (not grows or own % ranks == 0)
        if grows:
            assert rows % ranks == 0 and own <= rows < own + ranks
            # Whoever continues the run on these ranks gets the same recipe, without a line.
            assert fit_to_ranks(fitted, world_size=ranks, tell=lines.append) is fitted
            assert len(lines) < 2


@given(st.integers(1, 64), st.integers(1, 64), st.integers(1, 16))
def test_batch_split_deals_every_row_once(rows: int, micro: int, world: int) -> None:
    recipe = load_recipe("tiny_mntp")
    assert isinstance(recipe, TrainingRecipe)
    data = {**recipe.train.model_dump(), "global_batch_rows": rows, "micro_batch_rows": micro}
    train = Train.model_validate(data)
    if rows % world:
        with pytest.raises(BadInput, match=f"use a multiple of {world}"):
            batch_split(train, world_size=world)
        return
    size, steps = batch_split(train, world_size=world)
    assert size * steps * world == rows
    assert size <= micro
    larger = range(size + 1, min(micro, rows // world) + 1)
    assert all(rows // world % other for other in larger)


def test_a_reference_is_a_hub_name_a_folder_or_a_run(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert resolve_model("mistralai/Mistral-7B-Instruct-v0.2").folder is None
    assert resolve_model(str(tiny_model)).folder == Path(tiny_model)
    with pytest.raises(BadInput, match="no such folder"):
        resolve_model("./nowhere")
    (tmp_path / "below" / "runs").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "below")
    with pytest.raises(BadInput, match="no such folder"):
        resolve_model("runs/mtnp")  # a slip, and no owner on the hub
    with pytest.raises(BadInput, match="is not there yet; `make smollm2` makes it"):
        resolve_model(load_recipe("mntp_smollm2_135m").model.base)
    with pytest.raises(BadInput, match=r"has no config\.json"):
        resolve_model(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(BadInput, match="has no weights"):
        resolve_model(str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(BadInput, match=r"run directory without an encoder.*toolkit\.export"):
        resolve_model(str(tmp_path))
