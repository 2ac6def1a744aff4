"""The adapters that the project ships, and (slow) the demo that embeds with them."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, AutoTokenizer

from tests.conftest import QUICKSTART, ROOT, run
from toolkit import export, verify
from toolkit.encoding.encoder import Encoder
from toolkit.model.adapters import read_adapter
from toolkit.quickstart.demo import RECIPE
from toolkit.settings.model_source import SMOLLM2
from toolkit.settings.recipes import load_recipe

FOLDER = QUICKSTART / "adapters"
STAGES = ("mntp", "simcse", "supervised")
LAYERS, LINEARS = 30, 7
MOST_BYTES = 30e6
TEXTS = ["Beavers build dams in rivers.", "A game with a ball.", "x", "Long ago, " * 80]


@pytest.mark.parametrize("stage", STAGES)
def test_an_adapter_is_whole_and_its_card_says_where_it_comes_from(
    stage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = FOLDER / stage
    assert verify.main([str(folder)]) == 0
    assert "whole" in capsys.readouterr().out
    assert len(read_adapter(folder).pairs) == LAYERS * LINEARS
    tensors = load_file(folder / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert all(bool(tensor.isfinite().all()) for tensor in tensors.values())
    origin = json.loads((folder / "origin.json").read_text())
    stages = origin["stages"]
    assert [one["kind"] for one in stages] == list(STAGES[: STAGES.index(stage) + 1])
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(SMOLLM2)
    card = (folder / "README.md").read_text()
    for word in ("Apache-2.0", "SNLI", "bench_real --seeds", "WordLlama", "| seed |"):
        assert word in card
    assert not re.search(r"(^|[\s\"'`])/(work|root|home|tmp)/", card)


def test_they_stand_upon_each_other_and_are_small() -> None:
    last = json.loads((FOLDER / STAGES[-1] / "origin.json").read_text())["stages"]
    digests = [one["adapter_digest"] for one in last]
    for stage, digest in zip(STAGES, digests, strict=True):
        origin = json.loads((FOLDER / stage / "origin.json").read_text())
        assert origin["stages"][-1]["adapter_digest"] == digest
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= MOST_BYTES
    encoder: Any = load_recipe(RECIPE)
    assert [Path(one) for one in encoder.encoder.adapters] == [FOLDER / stage for stage in STAGES]


# --- with the real model (make test-smollm2, after make smollm2) ---


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model that `make smollm2` has made, or makes now."""
    folder = ROOT / SMOLLM2
    if not folder.exists():
        folder = tmp_path_factory.mktemp("model") / "smollm2"
        run([sys.executable, "-m", "toolkit.quickstart.smollm2", "--output", str(folder)])
    return folder


@pytest.mark.slow
def test_the_demo_finds_the_articles(base: Path, tmp_path: Path) -> None:
    (tmp_path / SMOLLM2).parent.mkdir()
    (tmp_path / SMOLLM2).symlink_to(base)
    printed = run([sys.executable, "-m", "toolkit.quickstart.demo"], cwd=tmp_path, real=True)
    (recall,) = re.findall(r"^recall@3 over 40 test queries: ([0-9.]+)", printed, re.MULTILINE)
    assert float(recall) >= 0.975, printed
    assert printed.count("  3. ") == 3
    code = printed.partition("The same from Python:\n\n")[2]
    assert -1 <= float(run([sys.executable, "-c", code], cwd=tmp_path, real=True)) <= 1


@pytest.mark.slow
def test_peft_and_sentence_transformers_give_the_same_vectors(base: Path, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    chain = [str(FOLDER / stage) for stage in STAGES]
    ours = Encoder.from_pretrained(str(base), adapters=chain, device="cpu").encode(TEXTS)
    config = AutoConfig.from_pretrained(base)
    config.is_causal = False
    model: Any = AutoModel.from_pretrained(base, config=config, dtype=torch.float32)
    for adapter in chain:
        model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    tokenizer = AutoTokenizer.from_pretrained(base)
    with torch.inference_mode():
        states = [model(**tokenizer(t, return_tensors="pt")).last_hidden_state[0] for t in TEXTS]
    theirs = np.stack([one.mean(dim=0).numpy() for one in states])
    assert float(np.abs(ours - theirs).max()) <= 1e-3 * float(np.abs(theirs).max())
    merged = tmp_path / "merged"
    given = [str(base), str(merged), "--adapters", *chain, "--dtype", "fp32"]
    assert export.main(given) == 0
    theirs = SentenceTransformer(str(merged), device="cpu").encode(TEXTS)
    assert float(np.abs(ours - theirs).max()) <= 1e-3 * float(np.abs(theirs).max())
