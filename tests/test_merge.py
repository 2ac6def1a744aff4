"""Encoders merged by the door and as a stage: what loads them, where they say they are from, and
what is refused before anything is written."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import contents, refused
from tests.model.test_adapters import make_adapter
from toolkit import export, launch, merge, verify
from toolkit.base.files import is_committed, read_json, write_json
from toolkit.encoding.encoder import Encoder
from toolkit.launching.jobs import run_stage
from toolkit.model.weights import merge_weights
from toolkit.runs.standing import standings
from toolkit.settings.recipes import load_recipe, parse_recipe
from toolkit.training import merges
from toolkit.training.export import check_encoder

HALVES = ("--weights", "0.5,0.5")
TEXTS = ["A bridge over a canal.", "Beavers build dams.", "x"]
Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def models(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The base, two adapters on it, their exports, and one of these as a finished run."""
    folder = tmp_path_factory.mktemp("models")
    found = {"base": shutil.copytree(tiny_model, folder / "base")}
    for seed, name in enumerate(("a", "b"), 1):
        adapter = make_adapter(folder / f"lora_{name}", base=tiny_model, seed=seed, head=False)
        assert export.main([str(adapter), str(folder / name), "--dtype", "fp32"]) == 0
        found |= {f"lora_{name}": adapter, name: folder / name}
    shutil.copytree(folder / "a", folder / "run" / "encoder")
    (folder / "run" / "checkpoints").mkdir()
    return {**found, "run": folder / "run"}


def weights_of(folder: Path) -> Weights:
    return load_file(folder / "model.safetensors")


def mean(models: dict[str, Path], share: float) -> Weights:
    """What the linear merge of `a` and `b` should be, in double precision."""
    one, other = weights_of(models["a"]), weights_of(models["b"])
    return {k: ((1 - share) * one[k].double() + share * other[k].double()).float() for k in one}


def assert_near(found: Weights, expected: Weights) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-6, atol=1e-7)


def run(*arguments: object) -> int:
    return merge.main([str(argument) for argument in arguments])


# --- what is made ---


def test_a_merge_is_an_encoder_everywhere(models: dict[str, Path], tmp_path: Path) -> None:
    """Here, in sentence-transformers and in plain transformers; its weights are the mean."""
    from sentence_transformers import SentenceTransformer
    from transformers import AutoModel

    out = tmp_path / "my merge"
    assert run(models["run"], models["b"], out, "--weights", "0.3,0.7") == 0
    assert_near(weights_of(out), mean(models, 0.7))
    ours = Encoder.from_pretrained(out, device="cpu").encode(TEXTS)
    theirs = SentenceTransformer(str(out), device="cpu").encode(TEXTS)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert float(np.abs(ours - Encoder.from_pretrained(models["a"]).encode(TEXTS)).max()) > 1e-3
    _, report = AutoModel.from_pretrained(out, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert read_json(out / "config.json")["is_causal"] is False
    check_encoder(out)
    assert [path.name for path in tmp_path.iterdir()] == ["my merge"]


def test_ratios_become_a_folder_each(models: dict[str, Path], tmp_path: Path) -> None:
    """The ends are the models themselves, to the bit."""
    out = tmp_path / "merges"
    assert run(models["a"], models["b"], out, "--ratios", "0,0.25,1.0") == 0
    assert {path.name for path in out.iterdir()} == {"0", "0.25", "1", "merged.json"}
    for name, end in (("0", "a"), ("1", "b")):
        found, expected = weights_of(out / name), weights_of(models[end])
        assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert_near(weights_of(out / "0.25"), mean(models, 0.25))
    assert verify.main([str(out)]) == 0
    assert [(one.kind, one.state) for one in standings(out, now=0.0)] == [("merge", "done")]


def test_adapters_are_merged_as_whole_models(models: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(models["lora_a"], models["lora_b"], out, *HALVES, "--dtype", "fp32") == 0
    assert_near(weights_of(out), mean(models, 0.5))
    expected = Encoder.from_pretrained(models["a"]).encode(TEXTS[:1]).shape
    assert Encoder.from_pretrained(out).encode(TEXTS[:1]).shape == expected


@pytest.mark.parametrize(
    "options",
    [
        ("--method", "slerp", "--weights", "0.4,0.6"),
        ("--method", "ties", "--density", "0.3", "--weights", "0.4,0.6"),
    ],
)
def test_other_methods_make_other_weights(
    options: tuple[str, ...], models: dict[str, Path], tmp_path: Path
) -> None:
    """The methods themselves: tests/model/test_merging.py. The adapters' differences are of rank 4,
    and nearly all of a matrix is the base's, so that of the mean they differ little."""
    out = tmp_path / "out"
    base = ("--base", models["base"]) if "ties" in options else ()
    assert run(models["a"], models["b"], *options, *base, out) == 0
    found, plain = weights_of(out), mean(models, 0.6)
    far = max(float((found[key] - plain[key]).abs().max()) for key in plain)
    assert 1e-6 < far < 0.5
    assert Encoder.from_pretrained(out).encode(TEXTS).all()


def test_bf16_is_written_where_it_is_asked_for_or_the_first_is(
    models: dict[str, Path], tmp_path: Path
) -> None:
    half, again = tmp_path / "half", tmp_path / "again"
    assert run(models["a"], models["b"], half, *HALVES, "--dtype", "bf16") == 0
    assert run(half, models["b"], again, *HALVES) == 0
    for out in (half, again):
        assert {tensor.dtype for tensor in weights_of(out).values()} == {torch.bfloat16}
        assert read_json(out / "config.json")["dtype"] == "bfloat16"
    expected = mean(models, 0.5)
    assert all(torch.equal(weights_of(half)[k], expected[k].bfloat16()) for k in expected)


def test_origin_and_card_say_what_was_merged(models: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(models["run"], models["b"], out, "--weights", "0.25,0.75") == 0
    origin = read_json(out / "origin.json")
    assert [part["name"] for part in origin["merge"]["models"]] == ["run", "b"]
    assert [part["weight"] for part in origin["merge"]["models"]] == [0.25, 0.75]
    assert origin["merge"]["models"][0]["digest"] == digest_of(models["a"])
    assert origin["stages"][-1]["kind"] == "merge"
    card = (out / "README.md").read_text()
    assert "linear merge of 0.25 run + 0.75 b" in card
    assert f"| run | 0.25 | {digest_of(models['a'])[:12]} |" in card
    assert str(tmp_path) not in card


def digest_of(folder: Path) -> str:
    from toolkit.model.weights import model_digest

    return model_digest(folder)


def test_the_pooling_of_the_first_is_kept(models: dict[str, Path], tmp_path: Path) -> None:
    """Of folders that pool all tokens; and two that pool in different ways are refused."""
    both = []
    for name in ("a", "b"):
        folder = shutil.copytree(models[name], tmp_path / f"last_{name}")
        pool_last(folder)
        both.append(folder)
    out = tmp_path / "out"
    assert run(*both, out, *HALVES) == 0
    assert contents(out / "1_Pooling") == contents(both[0] / "1_Pooling")
    assert "pooled by `lasttoken`" in (out / "README.md").read_text()
    ours = Encoder.from_pretrained(out, device="cpu").encode(TEXTS)
    from sentence_transformers import SentenceTransformer

    theirs = SentenceTransformer(str(out), device="cpu").encode(TEXTS)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def pool_last(folder: Path) -> None:
    """Make an export one of another pooling, by its files alone."""
    for name in ("origin.json", "1_WordWeights", "2_Pooling"):
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    kinds = {"": "Transformer", "1_Pooling": "Pooling"}
    rows = [
        {"idx": n, "name": str(n), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for n, (path, kind) in enumerate(kinds.items())
    ]
    write_json(folder / "modules.json", rows)
    (folder / "1_Pooling").mkdir()
    write_json(
        folder / "1_Pooling" / "config.json",
        {"word_embedding_dimension": 256, "pooling_mode_lasttoken": True},
    )


# --- as a stage ---


def recipe_of(found: dict[str, Path], out: Path, **changes: object) -> Any:
    content = {
        "kind": "merge",
        "output_dir": str(out),
        "models": {"general": str(found["a"]), "domain": str(found["b"])},
        "ratios": [0, 0.5, 1],
        **changes,
    }
    return parse_recipe(content, source="here")


def test_a_stage_keeps_what_is_whole_and_makes_the_rest(
    models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Killed in the second ratio, then run again: the same bytes as without the kill."""
    whole, killed = tmp_path / "whole" / "m", tmp_path / "killed" / "m"
    run_stage(recipe_of(models, whole), environ={})
    made = merges.merge_all(recipe_of(models, killed))
    next(made)
    # A writer that was killed: its temporary folder is left, and its process is gone.
    shutil.copytree(killed / "0", killed / f".0.5.{host()}.999999999-1.tmp")
    made.close()
    before = (killed / "0" / "model.safetensors").stat()
    capsys.readouterr()
    run_stage(recipe_of(models, killed), environ={})
    assert f"{killed / '0'} is there" in capsys.readouterr().out
    assert (killed / "0" / "model.safetensors").stat() == before
    assert contents(killed).keys() == contents(whole).keys()
    assert [k for k, v in contents(whole).items() if contents(killed)[k] != v] == []


def host() -> str:
    import socket

    return socket.gethostname()


def test_several_weights_of_three_models_are_a_folder_each(
    models: dict[str, Path], tmp_path: Path
) -> None:
    three = {"a": str(models["a"]), "b": str(models["b"]), "base": str(models["base"])}
    weights = {"even": [1 / 3, 1 / 3, 1 / 3], "mine": [0.5, 0.3, 0.2]}
    recipe = recipe_of(models, tmp_path / "m", models=three, ratios=[], weights=weights)
    run_stage(recipe, environ={})
    found, base = weights_of(tmp_path / "m" / "mine"), weights_of(models["base"])
    one, other = weights_of(models["a"]), weights_of(models["b"])
    name = "layers.0.mlp.up_proj.weight"
    expected = 0.5 * one[name] + 0.3 * other[name] + 0.2 * base[f"model.{name}"].float()
    torch.testing.assert_close(found[name], expected, rtol=1e-6, atol=1e-7)
    assert is_committed(tmp_path / "m" / "even")


def test_the_launcher_checks_a_merge_and_gives_it_one_process(
    models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = [f"models.mntp={models['a']}", f"models.simcse={models['b']}"]
    out = tmp_path / "m"
    asked = [
        "tiny_merge",
        *places,
        f"output_dir={out}",
        "--cluster",
        "local",
        "--gpus-per-node",
        "0",
    ]
    line = refused(capsys, launch.main, *asked, "method=ties")
    assert "method ties: needs base, the model that all were trained from" in line
    line = refused(capsys, launch.main, *asked, f"models.mntp={tmp_path / 'absent'}")
    assert "absent': no such folder" in line
    assert not out.exists()
    capsys.readouterr()
    assert launch.main([*asked, "--dry-run"]) == 0
    assert "# merge: 1 process(es) on this machine" in capsys.readouterr().out
    assert not out.exists()


def test_a_merge_can_be_trained_further(models: dict[str, Path], tmp_path: Path) -> None:
    """Nothing in its files stands in the way of a stage upon it."""
    from toolkit.model.declared import digest_of_base
    from toolkit.settings.model_source import resolve_model
    from toolkit.settings.schema import TrainingRecipe

    out = tmp_path / "out"
    assert run(models["a"], models["b"], out, *HALVES) == 0
    recipe = load_recipe("tiny_simcse", overrides=[f"model.base={out}"])
    assert isinstance(recipe, TrainingRecipe)
    assert digest_of_base(resolve_model(str(out)), model=recipe.model) == digest_of(out)


# --- what is refused ---


@pytest.fixture
def refuses(
    models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """The line with which the door refuses; nothing is written."""

    def call(*arguments: object, out: Path = tmp_path / "deep" / "out") -> str:
        before = contents(tmp_path)
        line = refused(capsys, merge.main, *(models.get(str(a), a) for a in arguments), out)
        assert contents(tmp_path) == before
        assert not (tmp_path / "deep").exists()
        return line

    return call


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a", "--weights", "1"], "give two models or more, and after them the folder to write"),
        (["a", "b"], "weights and ratios: give one of them"),
        (["a", "b", "--weights", "0.5,0.5", "--ratios", "0.5"], "give one of them"),
        (["a", "b", "--weights", "0.5,0.6"], "weights 0.5, 0.6: their sum is 1.1, and must be 1"),
        (["a", "b", "--weights", "1"], "weights 1: are 1 for 2 models; one per model"),
        (["a", "b", "--weights", "1.5,-0.5"], "less than or equal to 1, not 1.5"),
        (["a", "b", "--ratios", "-0.5"], "greater than or equal to 0, not -0.5"),
        (["a", "b", "--ratios", "0.5,nan"], "'ratios.1': input should be a finite number"),
        (["a", "b", "--weights", "half,half"], "--weights half,half: write numbers with commas"),
        (["a", "b", "--ratios", "0.5,0.50"], "ratios: 0.5 is there twice"),
        (["a", "b", "base", "--ratios", "0.5"], "ratios: are of two models, and there are 3"),
        (
            ["a", "b", "base", "--weights", "0.5,0.25,0.25", "--method", "slerp"],
            "method slerp: takes two models, not 3; valid: linear, ties",
        ),
        (["a", "b", "--ratios", "0.5", "--method", "ties"], "method ties: needs base, the model"),
        (
            ["a", "b", "--ratios", "0.5", "--method", "ties", "--base", "base"],
            "method ties: needs density, such as 0.2",
        ),
        (
            ["a", "b", "--ratios", "0.5", "--density", "0.2"],
            "density 0.2: goes with the method ties, not with linear",
        ),
        (
            ["a", "b", "--ratios", "0.5", "--method", "ties", "--base", "base", "--density", "1.5"],
            "less than or equal to 1, not 1.5",
        ),
        (["a", "absent/model", "--ratios", "0.5"], "model"),
    ],
)
def test_bad_settings(arguments: list[str], message: str, refuses: Callable[..., str]) -> None:
    assert message in refuses(*arguments)


def test_an_unknown_method_is_refused_with_the_valid_ones(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(SystemExit) as stop:
        run("a", "b", tmp_path / "out", "--method", "slrp")
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert "'linear', 'slerp', 'ties'" in said
    assert "did you mean 'slerp'?" in said


def changed(source: Path, out: Path, change: Callable[[Weights], Weights]) -> Path:
    """A plain copy of a model with other weights."""
    shutil.copytree(source, out)
    stored = change(load_file(out / "model.safetensors"))
    save_file(stored, out / "model.safetensors", metadata={"format": "pt"})
    return out


def test_weights_that_do_not_fit_are_named(
    models: dict[str, Path], tmp_path: Path, refuses: Callable[..., str]
) -> None:
    key = "model.layers.1.mlp.up_proj.weight"
    less = changed(
        models["base"],
        tmp_path / "less",
        lambda stored: {name: tensor for name, tensor in stored.items() if name != key},
    )
    cut = changed(
        models["base"],
        tmp_path / "cut",
        lambda stored: {**stored, key: stored[key][:-1].clone()},
    )
    shape = tuple(load_file(models["base"] / "model.safetensors")[key].shape)
    name, asked = key.removeprefix("model."), ("--ratios", "0.5")
    told = f"'{name}', and base has it, of shape {shape}: models of different bases"
    assert f"less: has no weight {told}" in refuses("base", less, *asked)
    assert f"less: has no weight {told}" in refuses(less, "base", *asked)
    line = refuses("base", cut, *asked)
    smaller = (shape[0] - 1, shape[1])
    assert f"base and cut: the shapes of {name!r} are {shape} and {smaller}: models of" in line
    ties = ("--method", "ties", "--density", "0.5", "--base", cut)
    assert f"a and base: the shapes of {name!r}" in refuses("a", "b", *asked, *ties)


def test_other_ways_from_a_text_to_its_vector_are_refused(
    models: dict[str, Path], tmp_path: Path, refuses: Callable[..., str]
) -> None:
    def copy(name: str) -> Path:
        return shutil.copytree(models["base"], tmp_path / name)

    rope, tokens, special = copy("rope"), copy("tokens"), copy("special")
    config = read_json(rope / "config.json")
    write_json(rope / "config.json", {**config, "rms_norm_eps": 1e-3})
    content = read_json(tokens / "tokenizer.json")
    vocabulary = content["model"]["vocab"]
    one, other = list(vocabulary)[500:502]
    vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]
    write_json(tokens / "tokenizer.json", content)
    content = read_json(special / "tokenizer.json")
    content["post_processor"] = None
    write_json(special / "tokenizer.json", content)
    asked = ("--ratios", "0.5")
    assert "base and rope: rms_norm_eps is" in refuses("base", rope, *asked)
    line = refuses("base", tokens, *asked)
    numbers = sorted([vocabulary[one], vocabulary[other]])
    assert f"base and tokens: their tokenizers differ: {min(one, other)!r} has the ids " in line
    assert all(str(number) in line for number in numbers)
    assert "in post_processor of tokenizer.json" in refuses("base", special, *asked)
    last = shutil.copytree(models["b"], tmp_path / "last")
    pool_last(last)
    line = refuses("a", last, *asked)
    assert "a and last: their vectors are pooled in different ways: modes is ('mean',) and" in line


def test_records_of_other_bases_and_instructions_are_compared(
    models: dict[str, Path], tmp_path: Path, refuses: Callable[..., str]
) -> None:
    """Weights of one shape may be of two bases, which only what was recorded can tell."""
    folders = {}
    for name, stages, form in (
        ("one", [{"kind": "mntp", "base": "x/one", "base_digest": "1"}], "{instruction}; "),
        ("two", [{"kind": "mntp", "base": "x/two", "base_digest": "2"}], "{instruction}; "),
        ("form", [], "Instruct: {instruction} "),
    ):
        folders[name] = shutil.copytree(models["a"], tmp_path / name)
        content = {"kind": "mntp", "stages": stages, "instruction_format": form}
        write_json(folders[name] / "origin.json", content)
    asked = ("--ratios", "0.5")
    line = refuses(folders["one"], folders["two"], *asked)
    assert "one and two: were trained from x/one and x/two, whose weights differ" in line
    line = refuses("a", folders["form"], *asked)
    assert "different formats of an instruction, '{instruction}; ' and 'Instruct:" in line


def test_an_output_that_is_there_stays_as_it_is(
    models: dict[str, Path], tmp_path: Path, refuses: Callable[..., str]
) -> None:
    out = tmp_path / "merges"
    assert run(models["a"], models["b"], out, "--ratios", "0.25,0.5") == 0
    asked = ("--ratios", "0.75,0.25")
    line = refuses("a", "b", *asked, "--method", "slerp", out=out)
    there = "0.25: is there already, merged with other settings:"
    assert f"{there} method is 'linear' there and 'slerp' here" in line
    assert f"{there} dtype is 'fp32'" in refuses("a", "b", *asked, "--dtype", "bf16", out=out)
    assert f"{there} models is [" in refuses("b", "a", *asked, out=out)
    line = refuses("a", "b", *HALVES, out=out / "0.25")
    assert "weights is [0.75, 0.25] there and [0.5, 0.5] here" in line
    assert "is an encoder itself" in refuses("a", "b", *asked, out=out / "0.25")
    origin = (out / "0.25" / "origin.json").read_text()
    (out / "0.25" / "origin.json").write_text(origin.replace('"linear"', '"slerp"'))
    line = refuses("a", "b", *asked, "--method", "slerp", out=out)
    assert "origin.json: is damaged (its digest differs)" in line
    (out / "0.25" / "origin.json").write_text(origin)
    (tmp_path / "file").write_text("mine")
    assert "is a file" in refuses("a", "b", *asked, out=tmp_path / "file")
    shutil.copytree(models["base"], tmp_path / "mine" / "0.25")
    line = refuses("a", "b", *asked, out=tmp_path / "mine")
    assert "mine/0.25: exists already, and is no whole encoder" in line
    shutil.copytree(models["a"], tmp_path / "other" / "0.25")
    assert "is there already, and was not merged" in refuses(
        "a", "b", *asked, out=tmp_path / "other"
    )


def test_a_damaged_model_is_refused(
    models: dict[str, Path], tmp_path: Path, refuses: Callable[..., str]
) -> None:
    damaged = shutil.copytree(models["a"], tmp_path / "damaged")
    data = bytearray((damaged / "model.safetensors").read_bytes())
    data[-5] ^= 1
    (damaged / "model.safetensors").write_bytes(bytes(data))
    line = refuses(damaged, "b", "--ratios", "0.5")
    assert "damaged/model.safetensors: is damaged (its SHA-256 differs)" in line


def test_merged_json_that_is_not_ours_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for content in ({}, [], {"merges": {"../x": [1.0]}}, {"merges": 3}):
        (tmp_path / "merged.json").write_text(json.dumps(content))
        line = refused(capsys, verify.main, tmp_path)
        assert "merged.json: is damaged or not ours" in line


def test_the_weights_of_an_export_are_those_of_its_adapter(
    models: dict[str, Path], tmp_path: Path
) -> None:
    """What `mean` above takes for granted."""
    from toolkit.model.adapters import read_adapter

    adapter = read_adapter(models["lora_a"])
    merge_weights(models["base"], adapters=[adapter], dtype="fp32", out=tmp_path)
    found, expected = weights_of(tmp_path), weights_of(models["a"])
    assert all(torch.equal(found[key], expected[key]) for key in expected)
