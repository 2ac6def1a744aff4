"""The loss on held-out blocks: that of a naive computation, on any number of ranks."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from tests.training.gradients import case_recipe
from toolkit.config import load_recipe
from toolkit.files import BadInput
from toolkit.model.backbone import load_backbone, load_config
from toolkit.schema import MntpRecipe
from toolkit.text.stream import Stream
from toolkit.text.token_shards import finish_token_files, make_token_files
from toolkit.training import data
from toolkit.training.mntp import MntpObjective
from toolkit.training.objectives import build_objective

Door = Callable[..., str]
NUM_HELD_OUT = 17  # five micro-batches of four, the last one short: a turn in which a rank has none


def held_out_rows(run_dir: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").open()]
    return [row for row in rows if "held_out_loss" in row]


def naive(model: Path, *, shards: Path, trained: Path | None = None) -> tuple[float, float]:
    """Loss and accuracy with all logits, block by block, each document alone."""
    overrides = [f"data.train={shards}", f"model.base={model}"]
    overrides += [f"mntp.held_out_blocks={NUM_HELD_OUT}"]
    recipe = load_recipe("tiny_mntp", overrides=overrides)
    assert isinstance(recipe, MntpRecipe)
    tokenizer = data.open_tokenizer(recipe)
    objective = build_objective(recipe, tokenizer=tokenizer)
    assert isinstance(objective, MntpObjective)
    stream = data.open_stream(recipe, tokenizer=tokenizer)
    assert isinstance(stream, Stream)
    decoder = load_backbone(
        str(model), config=load_config(str(model)), head=True, dtype="fp32", attention="eager"
    ).eval()
    if trained:
        decoder.model.load_state_dict(load_file(trained / "model.safetensors"))
    loss, correct, units = 0.0, 0, 0
    for block in objective.encode(stream.held_out(0, NUM_HELD_OUT), tokenizer=tokenizer):
        for ids_T, predict_T, target_M in zip(
            block.rows, block.predict, block.targets, strict=True
        ):
            with torch.no_grad():
                logits_TV = decoder(input_ids=torch.from_numpy(ids_T)[None]).logits[0]
            found_MV, target = logits_TV[torch.from_numpy(predict_T)], torch.from_numpy(target_M)
            loss += float(F.cross_entropy(found_MV, target, reduction="sum"))
            correct += int((found_MV.argmax(dim=1) == target).sum())
            units += len(target)
    return loss / units, correct / units


def test_held_out_figures_are_the_naive_ones_on_any_number_of_ranks(
    door: Door, shards: Path, tiny_model: Path, tmp_path: Path
) -> None:
    common = ["tiny_mntp", f"data.train={shards}", f"model.base={tiny_model}", "train.steps=3"]
    common += [f"mntp.held_out_blocks={NUM_HELD_OUT}", "mntp.evaluate_every_steps=2"]
    common += ["model.lora.dropout=0.5", "train.log_every_steps=100"]
    for ranks in (1, 2):
        run_dir = tmp_path / str(ranks)
        door("train", *common, f"run_dir={run_dir}", ranks=ranks)
        rows = held_out_rows(run_dir)
        assert [row["step"] for row in rows] == [0, 2, 3]
        before = naive(tiny_model, shards=shards)
        assert rows[0]["held_out_loss"] == pytest.approx(before[0], rel=1e-5)
        assert rows[0]["held_out_accuracy"] == pytest.approx(before[1], abs=1e-9)
    # After the last step: of the weights that the run has written, on two ranks.
    after = naive(tiny_model, shards=shards, trained=tmp_path / "2" / "encoder")
    assert rows[2]["held_out_loss"] == pytest.approx(after[0], rel=1e-5)
    assert after[0] < before[0]


def test_a_restart_before_the_first_checkpoint_does_not_repeat_itself(
    shards: Path, tiny_model: Path, tmp_path: Path
) -> None:
    from toolkit.training.metrics import MetricsLog, read_metrics

    for _ in range(2):
        MetricsLog(tmp_path, step=0).write({"step": 0, "held_out_loss": 1.0})
    assert read_metrics(tmp_path) == [{"step": 0, "held_out_loss": 1.0}]
    MetricsLog(tmp_path, step=3)
    assert len(read_metrics(tmp_path)) == 1


def test_held_out_blocks_are_never_trained_on(shards: Path, tiny_model: Path) -> None:
    recipe = case_recipe("mntp", shards=str(shards), base=str(tiny_model))
    assert isinstance(recipe, MntpRecipe)
    held_out = recipe.mntp.model_copy(update={"held_out_blocks": 9})
    recipe = recipe.model_copy(update={"mntp": held_out})
    tokenizer = data.open_tokenizer(recipe)
    files = data.token_files(recipe, tokenizer=tokenizer)
    make_token_files(files, part=0, parts=1)
    assert finish_token_files(files)
    stream = data.open_stream(recipe, tokenizer=tokenizer)
    assert isinstance(stream, Stream)
    held = {sample.index for sample in stream.held_out(0, 9)}
    rows = stream.num_samples
    seen = [s.index for s in stream.batch(0, global_rows=2 * rows, start=0, stop=2 * rows)]
    assert len(held) == 9 and held.isdisjoint(seen)
    assert held | set(seen) == set(range(rows + 9))
    assert sorted(seen) == sorted(2 * list(range(rows)))
    with pytest.raises(BadInput, match=r"9999999 samples held out of .* leave none to train on"):
        data.open_stream(
            recipe.model_copy(
                update={"mntp": held_out.model_copy(update={"held_out_blocks": 9999999})}
            ),
            tokenizer=tokenizer,
        )
