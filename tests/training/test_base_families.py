"""The recipes of the table's bases, each on a tiny random model of its family: MNTP, SimCSE, the
export, and its vectors beside sentence-transformers. And the text model of one that also sees."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoConfig, AutoModelForCausalLM, Gemma3Config
from transformers import Gemma3ForConditionalGeneration as Seeing

from tests.conftest import QUICKSTART, ROOT
from toolkit import train
from toolkit.encoding.encoder import Encoder
from toolkit.runs.records import read_metrics
from toolkit.settings.bases import bases

TINY = QUICKSTART / "tiny-mistral"
SIZES = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128,
}  # fmt: skip
# Of each family one; qwen3 and llama go through tests/training/test_pooling.py in a whole run, too.
OF_FAMILY = {row["config"]["model_type"]: name for name, row in bases().items()}
TEXTS = ["A bridge carries the railway.", "The acid was poured slowly into a tall beaker.", "Yes"]


def make_base(folder: Path, *, family: str) -> Path:
    """A model of the family with the shape's own flags, small, and the tiny tokenizer."""
    config = {**bases()[OF_FAMILY[family]]["config"], **SIZES}
    small = {"head_dim": 8, "moe_intermediate_size": 32, "num_experts": 4, "num_local_experts": 4}
    small["num_experts_per_tok"] = 2
    config |= {key: value for key, value in small.items() if key in config}
    tokens = AutoConfig.from_pretrained(TINY)
    config |= {"vocab_size": tokens.vocab_size, "bos_token_id": 1, "eos_token_id": 2}
    torch.manual_seed(0)
    made = AutoConfig.for_model(config.pop("model_type"), **config, pad_token_id=0)
    model = AutoModelForCausalLM.from_config(made)
    with torch.no_grad():  # random states of one size would all be alike after a norm
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.25 + (parameter.ndim == 1))
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(TINY / name, folder / name)
    return folder


LIGHT = (
    "model.dtype=fp32", "deepspeed.config=zero2", "data.max_tokens=32", "train.steps=2",
    "train.global_batch_rows=4", "train.micro_batch_rows=4", "train.log_every_steps=1",
    "train.lr=1e-3",
)  # fmt: skip


def stages(folder: Path, *, family: str, shards: Path) -> list[list[str]]:
    """The commands of MNTP and SimCSE."""
    base, name = make_base(folder / "base", family=family), OF_FAMILY[family]
    data = f"data.train={shards}"
    mntp = [f"mntp_{name}", *LIGHT, data, f"model.base={base}", f"run_dir={folder / 'mntp'}"]
    simcse = [f"simcse_{name}", *LIGHT, data, f"model.base={folder / 'mntp' / 'encoder'}"]
    return [[*mntp, "data.held_out_documents=2"], [*simcse, f"run_dir={folder / 'simcse'}"]]


def assert_exported_alike(folder: Path) -> None:
    """What was trained is an encoder, whose vectors are those of sentence-transformers."""
    for name in ("mntp", "simcse"):
        losses = [row["loss"] for row in read_metrics(folder / name) if "loss" in row]
        assert len(losses) == 2 and np.isfinite(losses).all()
    merged = folder / "simcse" / "encoder"
    ours = Encoder.from_pretrained(merged, max_tokens=32).encode(TEXTS)
    theirs = SentenceTransformer(str(merged)).encode(TEXTS)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-5 * np.abs(theirs).max())
    before = Encoder.from_pretrained(folder / "base", max_tokens=32).encode(TEXTS)
    assert np.abs(ours - before).max() > 1e-4 * np.abs(before).max()


@pytest.mark.parametrize("family", sorted(OF_FAMILY))
def test_a_family_goes_through_its_recipes(family: str, shards: Path, tmp_path: Path) -> None:
    for command in stages(tmp_path, family=family, shards=shards):
        assert train.main(command) == 0
    assert_exported_alike(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted(OF_FAMILY))
def test_a_family_on_two_ranks_and_on_from_a_checkpoint(
    family: str, door: Callable[..., str], shards: Path, tmp_path: Path
) -> None:
    for command in stages(tmp_path, family=family, shards=shards):
        given = [*command, "train.save_every_steps=1", "train.horizon_steps=2"]
        door("train", *given, "train.steps=1", ranks=2)
        door("train", *given, ranks=2)
    assert_exported_alike(tmp_path)


def test_the_text_model_of_one_that_also_sees(tmp_path: Path) -> None:
    """The lines of the README, on a tiny random model."""
    page = (ROOT / "toolkit" / "README.md").read_text(encoding="utf-8")
    (lines,) = re.findall(r"```python\n(.*?Gemma3ForCausalLM.*?)```", page, flags=re.DOTALL)
    text = {**SIZES, "vocab_size": 100, "head_dim": 8}
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    vision |= {"num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    torch.manual_seed(0)
    seeing: Any = Seeing(Gemma3Config(text_config=text, vision_config=vision)).eval()
    seeing.save_pretrained(tmp_path / "seeing")
    lines = lines.replace("google/gemma-3-4b-it", str(tmp_path / "seeing"))
    lines = lines.replace("models/gemma3_4b", str(tmp_path / "text"))
    lines = re.sub(r"^AutoTokenizer.*$", "", lines, flags=re.MULTILINE)  # it has none
    exec(lines, {})
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "text").eval()
    assert type(found).__name__ == "Gemma3ForCausalLM"
    ids = torch.tensor([[5, 9, 2, 7]])
    with torch.no_grad():
        torch.testing.assert_close(found(ids).logits, seeing(ids).logits)
