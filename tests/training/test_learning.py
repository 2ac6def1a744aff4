"""MNTP teaches a real causal model to use both directions (make test-slow)."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.conftest import run
from tests.training.test_held_out import naive

pytestmark = pytest.mark.slow
WRITTEN = Path(__file__).with_name("stories.txt")  # by us: neither model nor sampling has seen them
NUM_SAMPLED, TOKENS = 8 * 512, 256


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
    """stories260K, all weights: the loss on our own stories falls from above 3.5 to below 1.5."""
    sample_stories(stories_model, tmp_path / "stories.txt")
    shards = tmp_path / "shards"
    command = [sys.executable, "data_scripts/shard_wikipedia.py", "--input"]
    command += [str(tmp_path / "stories.txt")]
    run([*command, "--output", str(shards)])
    settings = [f"data.max_tokens={TOKENS}", "mntp.mask_token=+"]
    door(
        "train",
        "tiny_mntp",
        f"run_dir={tmp_path / 'run'}",
        f"model.base={stories_model}",
        "model.lora=null",
        f"data.train={shards}",
        *settings,
        "train.global_batch_rows=8",
        "train.micro_batch_rows=8",
        "train.lr=5e-3",
        "train.warmup_steps=20",
        "train.steps=1500",
        "train.horizon_steps=1750",
        "train.save_every_steps=1500",
    )
    ours = tmp_path / "ours"
    run([*command[:-1], str(WRITTEN), "--output", str(ours)])

    def loss(trained: Path | None) -> float:
        number = len(WRITTEN.read_text().splitlines()) - 1  # one must be left to train on
        found = naive(
            stories_model, shards=ours, trained=trained, documents=number, overrides=settings
        )
        return found[0]

    assert loss(None) > 3.5
    assert loss(tmp_path / "run" / "encoder") < 1.5
