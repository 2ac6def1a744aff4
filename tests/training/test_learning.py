"""MNTP teaches a real causal model to use both directions (make test-slow)."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.conftest import run
from toolkit.training.metrics import read_metrics

pytestmark = pytest.mark.slow
NUM_SAMPLED, NUM_HELD_OUT, TOKENS = 8 * 512, 128, 256


def sample_stories(model: Path, out: Path) -> None:
    """What the model itself tells, a story a line: its own training text is not at hand."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(model)
    teller = AutoModelForCausalLM.from_pretrained(model).eval()
    with out.open("w", encoding="utf-8") as handle:
        for _ in range(NUM_SAMPLED // 512):
            begin = torch.full((512, 1), tokenizer.bos_token_id)
            rows = teller.generate(
                begin,
                do_sample=True,
                top_k=0,
                max_new_tokens=TOKENS - 1,
                pad_token_id=tokenizer.eos_token_id,
            )
            for row in rows:
                text = tokenizer.decode(row, skip_special_tokens=True)
                handle.write(" ".join(text.split()) + "\n")


def test_mntp_mends_what_bidirectional_attention_breaks(
    door: Callable[..., str], stories_model: Path, tmp_path: Path
) -> None:
    """stories260K, all weights: the loss on stories that are held out falls from above 3.5 to below
    1.5."""
    sample_stories(stories_model, tmp_path / "stories.txt")
    shards = tmp_path / "shards"
    command = [sys.executable, "data_scripts/shard_wikipedia.py", "--input"]
    command += [str(tmp_path / "stories.txt")]
    run([*command, "--output", str(shards)])
    door(
        "train",
        "tiny_mntp",
        f"run_dir={tmp_path / 'run'}",
        f"model.base={stories_model}",
        "model.lora=null",
        f"data.train={shards}",
        f"data.max_tokens={TOKENS}",
        "mntp.mask_token=+",
        f"data.held_out_documents={NUM_HELD_OUT}",
        "mntp.evaluate_every_steps=500",
        "train.global_batch_rows=8",
        "train.micro_batch_rows=8",
        "train.lr=5e-3",
        "train.warmup_steps=20",
        "train.steps=1500",
        "train.horizon_steps=1750",
        "train.save_every_steps=1500",
    )
    rows = [row for row in read_metrics(tmp_path / "run") if "held_out_loss" in row]
    losses = [row["held_out_loss"] for row in rows]
    assert losses[0] > 3.5
    assert losses[-1] < 1.5, losses
