"""Checkpoints: a run in two pieces equals a run in one, on any number of ranks."""

import dataclasses
import json
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.forking.start import environ_of_starts, forked_python
from tests.light import FEW_ADAPTERS, LIGHT
from toolkit.base.errors import BadInput
from toolkit.base.sealed import content_digest
from toolkit.settings.recipes import load_recipe
from toolkit.settings.schema import MntpRecipe, Train, TrainingRecipe
from toolkit.settings.training_checks import check_training
from toolkit.training.checkpoint import check_files, load_newest, prune

Door = Callable[..., str]
KINDS = {
    "mntp": ["tiny_mntp"],
    "mntp zero0": ["tiny_mntp", "deepspeed.config=zero0", FEW_ADAPTERS],
    "simcse bf16 zero2": [
        *("tiny_simcse", "model.dtype=bf16", "deepspeed.config=zero2", FEW_ADAPTERS)
    ],
}


def losses(run_dir: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run_dir / "metrics.jsonl").open()]


def last_weights(run_dir: Path) -> dict[str, torch.Tensor]:
    newest = load_newest(run_dir)
    assert newest
    return dict(newest.weights)


@pytest.mark.parametrize("case", KINDS)
def test_two_pieces_equal_one(
    case: str, door: Door, shards: Path, tiny_model: Path, tmp_path: Path
) -> None:
    recipe, *overrides = KINDS[case]
    common = [recipe, f"data.train={shards}", f"model.base={tiny_model}", *overrides]
    common += ["train.save_every_steps=2", "train.keep_checkpoints=9"]
    door("train", *common, f"run_dir={tmp_path / 'whole'}", "train.steps=4", ranks=2)
    pieces = [*common, f"run_dir={tmp_path / 'pieces'}"]
    door("train", *pieces, "train.steps=2", ranks=2)
    door("train", *pieces, "train.steps=4", ranks=2)
    assert losses(tmp_path / "pieces") == losses(tmp_path / "whole")
    whole, pieces_ = last_weights(tmp_path / "whole"), last_weights(tmp_path / "pieces")
    assert whole.keys() == pieces_.keys()
    assert all(torch.equal(whole[name], pieces_[name]) for name in whole)


def test_a_run_goes_on_with_other_ranks_and_another_stage(
    door: Door, shards: Path, tiny_model: Path, tmp_path: Path
) -> None:
    """ZeRO-1, ZeRO-3 and ZeRO-0, each from what the one before has saved. 3 ranks do not divide the
    parameters: the padding of partitions is part of what is restored and saved."""
    common = ["tiny_mntp", f"data.train={shards}", f"model.base={tiny_model}"]
    common += ["train.global_batch_rows=6", "model.lora.dropout=0.0", "train.save_every_steps=2"]
    door("train", *common, f"run_dir={tmp_path / 'whole'}", "train.steps=4")
    changing = [*common, f"run_dir={tmp_path / 'changing'}"]
    door("train", *changing, "train.steps=2", "deepspeed.config=zero1", ranks=2)
    door("train", *changing, "train.steps=3", ranks=3)
    door("train", *changing, "train.steps=4", "deepspeed.config=zero0", ranks=2)
    assert losses(tmp_path / "changing") == pytest.approx(losses(tmp_path / "whole"), rel=1e-6)
    whole, changed = last_weights(tmp_path / "whole"), last_weights(tmp_path / "changing")
    for name, value in whole.items():
        # By norm: AdamW divides by a root, so a gradient near zero turns rounding into a step.
        assert float((changed[name] - value).norm() / value.norm()) < 1e-3, name


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, shards: Path, tiny_model: Path) -> Path:
    from toolkit import train

    run_dir = tmp_path_factory.mktemp("run") / "mntp"
    arguments = [f"run_dir={run_dir}", f"data.train={shards}", f"model.base={tiny_model}"]
    assert train.main(["tiny_mntp", *arguments, "train.steps=3", "train.save_every_steps=1"]) == 0
    return run_dir


def test_the_run_directory_is_as_promised(finished: Path) -> None:
    assert (finished / "config.yaml").is_file()
    assert len(losses(finished)) == 3
    kept = sorted(path.name for path in (finished / "checkpoints").iterdir())
    assert kept == ["step-00000002", "step-00000003"]  # keep_checkpoints is 2
    inside = sorted(path.name for path in (finished / "checkpoints" / kept[1]).iterdir())
    assert inside == ["COMMITTED", "optimizer", "state.json", "weights"]
    assert (finished / "encoder" / "COMMITTED").is_file()


def test_peft_loads_a_checkpoint(finished: Path, tiny_model: Path) -> None:
    from peft import PeftModel
    from transformers import AutoConfig, AutoModel

    config = AutoConfig.from_pretrained(tiny_model)
    config.is_causal = False
    base = AutoModel.from_pretrained(tiny_model, config=config, dtype=torch.float32)
    weights = finished / "checkpoints" / "step-00000003" / "weights"
    merged = PeftModel.from_pretrained(base, weights).merge_and_unload().state_dict()
    exported = load_file(finished / "encoder" / "model.safetensors")
    assert merged.keys() == exported.keys()
    for name, value in merged.items():
        torch.testing.assert_close(exported[name], value, atol=1e-6, rtol=1e-6)


def test_one_flipped_byte_is_found_by_name(finished: Path, tmp_path: Path) -> None:

    copy = tmp_path / "step-00000003"
    files = ("state.json", "weights/adapter_model.safetensors", "optimizer/exp_avg_sq.safetensors")
    for name in files:
        shutil.copytree(finished / "checkpoints" / "step-00000003", copy, dirs_exist_ok=True)
        path = copy / name
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(bytes(data))
        with pytest.raises(BadInput, match=f"{name}: is (damaged|not valid JSON)"):
            check_files(copy)
        shutil.rmtree(copy)
    shutil.copytree(finished / "checkpoints" / "step-00000003", copy)
    (copy / name).unlink()
    with pytest.raises(BadInput, match="is missing from the checkpoint"):
        check_files(copy)


def some_train(**settings: object) -> Train:
    recipe = load_recipe("tiny_mntp")
    assert isinstance(recipe, MntpRecipe)
    return recipe.train.model_copy(update=settings)


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({"keep_checkpoints": 2}, "567"),
        ({"keep_checkpoints": 1, "keep_every_steps": 3}, "367"),
        ({"keep_checkpoints": 1, "keep_best": True}, "267"),
        ({"keep_checkpoints": 9}, "1234567"),
        ({"keep_checkpoints": 1, "keep_best": True, "probed": True}, "567"),
    ],
)
def test_prune_keeps_the_newest_and_what_it_is_told(
    settings: dict[str, object], kept: str, tmp_path: Path
) -> None:
    for number in range(1, 8):
        folder = tmp_path / "checkpoints" / f"step-{number:08d}"
        folder.mkdir(parents=True)
        state = {"held_out_loss": None if number == 1 else abs(number - 2.2)}
        if settings.get("probed"):
            state["probe"] = None if number % 2 == 0 else -abs(number - 5)
        text = json.dumps({**state, "digest": content_digest(state)})
        (folder / "state.json").write_text(text)
        if number != 7:
            (folder / "COMMITTED").touch()
    prune(tmp_path, train=some_train(**settings))
    left = sorted(path.name[-1] for path in (tmp_path / "checkpoints").iterdir())
    assert "".join(left) == kept  # 7 is not whole: not ours to count, nor to remove


def test_a_probe_may_be_added_to_a_run(finished: Path, shards: Path, tiny_model: Path) -> None:
    """With all that stands below it; so may a layout be another."""
    common = [f"run_dir={finished}", f"data.train={shards}", f"model.base={tiny_model}"]
    probe = "train.probe={retrieval: {corpus: c, queries: q, judgements: j}, every_steps: 2}"
    recipe = load_recipe("tiny_mntp", overrides=[*common, probe, "deepspeed.config=zero1"])
    assert isinstance(recipe, TrainingRecipe)
    check_training(recipe, world_size=1)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.lr=2e-3", r"belongs to another recipe: train\.lr was 0\.001, now 0\.002"),
        ("model.lora.rank=4", r"model\.lora\.rank was 8, now 4"),
        ("train.steps=1", r"has step \d+ already, and train\.steps=1; give at least"),
        ("train.steps=101", r"train\.steps=101 is beyond train\.horizon_steps=100"),
        (
            "train.keep_best=true",
            r"train\.keep_best=true: nothing says which checkpoint of mntp is best",
        ),
        ("train.probe={sts: no.tsv, every_steps: 2}", r"no\.tsv: cannot be read"),
    ],
)
def test_a_run_directory_of_another_recipe_is_refused(
    override: str,
    message: str,
    finished: Path,
    shards: Path,
    tiny_model: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from toolkit import train

    arguments = [f"run_dir={finished}", f"data.train={shards}", f"model.base={tiny_model}"]
    assert train.main(["tiny_mntp", *arguments, override]) == 2
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGTERM])
def test_a_signal_saves_at_the_step_boundary_and_the_run_goes_on(
    number: signal.Signals, door: Door, shards: Path, tiny_model: Path, tmp_path: Path
) -> None:
    arguments = ["tiny_mntp", f"data.train={shards}", f"model.base={tiny_model}", *LIGHT]
    arguments += [f"run_dir={tmp_path / 'run'}", "train.save_every_steps=1000"]
    arguments.append("train.horizon_steps=1000")
    command = [forked_python(), "-m", "toolkit.train", *arguments, "train.steps=1000"]
    with subprocess.Popen(
        command, env=environ_of_starts(), stdout=subprocess.PIPE, text=True
    ) as process:
        metrics = tmp_path / "run" / "metrics.jsonl"
        while process.poll() is None and not (metrics.exists() and metrics.read_text()):
            time.sleep(0.1)
        process.send_signal(number)
        printed = process.communicate(timeout=300)[0]
    assert process.returncode == 75, printed
    steps = [json.loads(line)["step"] for line in metrics.open()]
    newest = load_newest(tmp_path / "run")
    assert newest
    assert newest.step == steps[-1] < 1000
    assert not (tmp_path / "run" / "encoder").exists()
    door("train", *arguments, f"train.steps={newest.step + 2}")
    steps = [json.loads(line)["step"] for line in metrics.open()]
    assert steps == list(range(1, newest.step + 3)), "no step twice, none missing"


@pytest.mark.parametrize("layout", ["zero1", "zero3_hpz", "zero3_offload"])
def test_every_layout_trains_saves_and_goes_on(
    layout: str, shards: Path, tiny_model: Path, tmp_path: Path
) -> None:
    """zero2 and zero3 are in the tests above. bf16, since layouts differ in it most."""
    from toolkit import train

    arguments = [
        "tiny_mntp",
        f"data.train={shards}",
        f"model.base={tiny_model}",
        "model.dtype=bf16",
        *LIGHT,
    ]
    arguments += [f"deepspeed.config={layout}", "train.save_every_steps=1"]
    for name, pieces in (("whole", [2]), ("pieces", [1, 2])):
        for steps in pieces:
            run_dir = tmp_path / name
            assert train.main([*arguments, f"run_dir={run_dir}", f"train.steps={steps}"]) == 0
    assert losses(tmp_path / "pieces") == losses(tmp_path / "whole")
    whole, pieces_ = last_weights(tmp_path / "whole"), last_weights(tmp_path / "pieces")
    assert all(torch.equal(whole[name], pieces_[name]) for name in whole)


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        (0, "stage 0 keeps no fp32 masters"),
        (
            1,
            "stage 1 with data_types.grad_accum_dtype=fp32 is an optimizer that cannot be restored",
        ),
        (4, "stage is 4; valid: 0, 1, 2, 3"),
        (None, "is None"),
    ],
)
def test_a_stage_that_cannot_be_is_refused(
    stage: int | None,
    message: str,
    shards: Path,
    tiny_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from toolkit import train

    layout = tmp_path / "layout.json"
    types = {"grad_accum_dtype": "fp32"}
    layout.write_text(json.dumps({"zero_optimization": {"stage": stage}, "data_types": types}))
    arguments = ["tiny_mntp", f"data.train={shards}", f"model.base={tiny_model}"]
    arguments += [f"deepspeed.config={layout}", "model.dtype=bf16", f"run_dir={tmp_path / 'run'}"]
    assert train.main(arguments) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_other_base_or_shards_under_the_same_name_are_refused(
    finished: Path, shards: Path, tiny_model: Path, tmp_path: Path
) -> None:
    from toolkit.training.checkpoint import Origin, check_origin

    state = json.loads((finished / "checkpoints" / "step-00000003" / "state.json").read_text())
    same = Origin("x", state["base_digest"], state["data_digest"], samples=state["samples"])
    check_origin(finished, origin=same)
    for changed, what in (("base_digest", "base model"), ("data_digest", "training data")):
        with pytest.raises(BadInput, match=f"its {what} changed after it was trained"):
            check_origin(finished, origin=dataclasses.replace(same, **{changed: "0"}))


def test_a_longer_run_replaces_its_encoder(shards: Path, tiny_model: Path, tmp_path: Path) -> None:
    from toolkit import train
    from toolkit.training.export import encoder_step

    arguments = ["tiny_mntp", f"data.train={shards}", f"model.base={tiny_model}", *LIGHT]
    for steps in (1, 2, 2):
        assert train.main([*arguments, f"run_dir={tmp_path / 'run'}", f"train.steps={steps}"]) == 0
        assert encoder_step(tmp_path / "run" / "encoder") == steps
