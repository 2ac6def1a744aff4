"""A tokenizer that puts nothing around a text (SmolLM2's) in every step of the recipe."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from toolkit import encode, evaluate, export, train
from toolkit.base.files import read_json, write_json
from toolkit.encoding.encoder import Encoder
from toolkit.encoding.store import VectorStore
from toolkit.runs.records import read_metrics
from toolkit.text.pairs import Pair, PairTask, write_pairs

TEXTS = ["beaver", "The old bridge crosses the river.", "", "Friction slows a box. " * 30]


@pytest.fixture(scope="module")
def chain(shards: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MNTP, SimCSE and supervised training, one after another."""
    folder = tmp_path_factory.mktemp("chain")
    base = shutil.copytree(tiny_model, folder / "base")
    path = base / "tokenizer.json"
    write_json(path, {**read_json(path), "post_processor": None})
    pairs = [Pair(f"the river {n}", f"{n} rivers", (f"a cat {n}",)) for n in range(16)]
    write_pairs([(PairTask("one"), pairs)], output=folder / "pairs", sources=[], quarantine=[])
    for kind, before, data in (
        ("mntp", "base", shards),
        ("simcse", "mntp", shards),
        ("supervised", "simcse", folder / "pairs"),
    ):
        given = [f"model.base={folder / before}", f"data.train={data}", "train.steps=2"]
        assert train.main([f"tiny_{kind}", *given, f"run_dir={folder / kind}"]) == 0
        assert all(np.isfinite(row["loss"]) for row in read_metrics(folder / kind))
    return folder


def by_hand(folder: Path) -> Any:
    """The mean over all tokens of a text, since all are its own; 0 for a text without tokens."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    means = []
    for text in TEXTS:
        ids = tokenizer(text, return_tensors="pt", truncation=True, max_length=32)["input_ids"]
        if ids.numel() == 0:
            means.append(np.zeros(model.config.hidden_size, dtype=np.float32))
            continue
        with torch.inference_mode():
            means.append(model(ids.long()).last_hidden_state[0].mean(dim=0).numpy())
    return np.stack(means)


@pytest.mark.parametrize("kind", ["mntp", "simcse", "supervised"])
def test_every_stage_gives_the_mean_of_all_tokens(kind: str, chain: Path) -> None:
    ours = Encoder.from_pretrained(str(chain / kind), max_tokens=32, device="cpu").encode(TEXTS)
    assert float(np.abs(ours - by_hand(chain / kind / "encoder")).max()) <= 1e-5


def test_an_export_an_encoding_and_an_evaluation_follow(
    chain: Path, shards: Path, tmp_path: Path
) -> None:
    from sentence_transformers import SentenceTransformer

    out = tmp_path / "export"
    assert export.main([str(chain / "supervised"), str(out)]) == 0
    theirs = SentenceTransformer(str(out), device="cpu").encode([t for t in TEXTS if t])
    ours = Encoder.from_pretrained(str(out), device="cpu").encode([t for t in TEXTS if t])
    assert float(np.abs(theirs - ours).max()) <= 1e-5
    given = [f"encoder.model={out}", f"corpus.input={shards}", f"output_dir={tmp_path / 'enc'}"]
    assert encode.main(["tiny_embed", *given]) == 0
    assert VectorStore(tmp_path / "enc").num_rows == 170
    (tmp_path / "w.conll").write_text("The X\nbeaver Y\n\nA X\nbox Y\n")
    words = str(tmp_path / "w.conll")
    recipe = {
        "kind": "evaluate",
        "output_dir": str(tmp_path / "scores"),
        "encoders": {"one": {"model": str(out), "max_tokens": 16}},
        "words": {"c": {"train": words, "test": words, "column": 2, "steps": 3}},
    }
    (tmp_path / "evaluate.yaml").write_text(json.dumps(recipe))
    assert evaluate.main([str(tmp_path / "evaluate.yaml")]) == 0
    # No token is before the first word of a sentence: its shifted vector must exist all the same.
    scores = read_json(tmp_path / "scores" / "scores.json")["one"]
    assert all(np.isfinite(value) for value in scores.values())
