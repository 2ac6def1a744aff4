"""An exported folder is the same encoder in sentence-transformers, in transformers and here."""

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import refused
from toolkit import export, train
from toolkit.base.files import is_committed, read_json, write_json
from toolkit.encoding.encoder import Encoder
from toolkit.model.bidirectional import prove_bidirectional
from toolkit.model.weights import inner_name
from toolkit.settings.schema import EncoderSettings

CPU = torch.device("cpu")


def trained(run_dir: Path, *overrides: str) -> Path:
    assert train.main(["tiny_mntp", f"run_dir={run_dir}", *overrides]) == 0
    return run_dir


@pytest.fixture(scope="module")
def inputs(shards: Path, tiny_model: Path) -> tuple[str, str]:
    return f"data.train={shards}", f"model.base={tiny_model}"


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory, inputs: tuple[str, str]) -> Path:
    """A run of three steps with adapters."""
    return trained(tmp_path_factory.mktemp("runs") / "mntp", *inputs, "train.steps=3")


@pytest.fixture(scope="module")
def exported(run_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exported") / "encoder"
    assert export.main([str(run_dir), str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def sentences(real_data: Path) -> list[str]:
    """200 real sentences."""
    path = real_data / "stsbenchmark_en" / "stsb-en-test.csv"
    with path.open(encoding="utf-8", newline="") as handle:
        rows = list(csv.reader(handle))[:100]
    found = [text for row in rows for text in row[:2]]
    assert len(found) == 200
    return found


def test_sentence_transformers_gives_our_vectors(exported: Path, sentences: list[str]) -> None:
    from sentence_transformers import SentenceTransformer

    theirs_model = SentenceTransformer(str(exported), device="cpu")
    assert theirs_model.max_seq_length == 512
    theirs = theirs_model.encode(sentences, batch_size=32, show_progress_bar=False)
    ours = Encoder(EncoderSettings(model=str(exported)), device=CPU).encode(sentences)
    assert float(np.abs(theirs - ours).max()) <= 1e-5
    norms = np.linalg.norm(theirs, axis=1) * np.linalg.norm(ours, axis=1)
    assert ((theirs * ours).sum(axis=1) / norms >= 0.9999).all()
    # Neither of them gives everything the same vector.
    assert float(ours.std(axis=0).mean()) > 0.1


def test_sentence_transformers_leaves_out_what_we_leave_out(exported: Path) -> None:
    """Special tokens, and text beyond the limit; a text without tokens is zero here and there."""
    from sentence_transformers import SentenceTransformer

    texts = ["", "one </s> two", "An essay on canals. " * 300, "x"]
    theirs = SentenceTransformer(str(exported), device="cpu").encode(texts)
    ours = Encoder(EncoderSettings(model=str(exported)), device=CPU).encode(texts)
    assert float(np.abs(theirs - ours).max()) <= 1e-5
    assert not ours[0].any()


def test_plain_transformers_is_bidirectional_by_configuration_alone(exported: Path) -> None:
    from transformers import AutoModel, MistralModel

    assert read_json(exported / "config.json")["is_causal"] is False
    assert read_json(exported / "config.json")["architectures"] == ["MistralModel"]
    model, report = AutoModel.from_pretrained(exported, output_loading_info=True)
    assert isinstance(model, MistralModel)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert model.dtype == torch.float32
    model.eval()
    prove_bidirectional(
        lambda ids, mask: model(input_ids=ids, attention_mask=mask).last_hidden_state,
        vocab_size=model.config.vocab_size,
        device=CPU,
    )


def test_the_folder_is_whole_and_has_no_head(exported: Path, run_dir: Path) -> None:
    assert is_committed(exported)
    weights = load_file(exported / "model.safetensors")
    assert not [name for name in weights if "lm_head" in name or "lora" in name]
    assert not list(exported.rglob("*.bin"))
    at_the_end = load_file(run_dir / "encoder" / "model.safetensors")  # the run's own export
    assert weights.keys() == at_the_end.keys()
    assert all(torch.equal(weights[name], at_the_end[name]) for name in weights)


def test_training_is_in_the_export(exported: Path, tiny_model: Path) -> None:
    """Adapted layers differ from the base, all others do not."""
    base = load_file(tiny_model / "model.safetensors")
    found = load_file(exported / "model.safetensors")
    for key, value in base.items():
        name = inner_name(key)
        assert name
        assert torch.equal(found[name], value.float()) != name.endswith("_proj.weight"), name


def test_a_full_run_exports_its_full_weights(
    inputs: tuple[str, str],
    tiny_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """On a base model whose head is a matrix of its own: it is trained, and left out."""
    base_dir = tmp_path / "base"
    shutil.copytree(tiny_model, base_dir)
    config = read_json(base_dir / "config.json")
    write_json(base_dir / "config.json", {**config, "tie_word_embeddings": False})
    base = load_file(base_dir / "model.safetensors")
    head = {"lm_head.weight": base["model.embed_tokens.weight"].clone()}
    save_file({**base, **head}, base_dir / "model.safetensors", metadata={"format": "pt"})
    overrides = ("model.lora=null", "train.steps=2", "model.dtype=bf16", f"model.base={base_dir}")
    run_dir = trained(tmp_path / "full", *inputs, *overrides)
    out = tmp_path / "encoder"
    assert export.main([str(run_dir), str(out)]) == 0
    found = load_file(out / "model.safetensors")
    masters = load_file(run_dir / "checkpoints" / "step-00000002" / "weights" / "model.safetensors")
    assert "lm_head.weight" in masters
    assert {inner_name(key) for key in base} == set(found)
    for key, value in base.items():
        name = inner_name(key)
        assert name
        assert found[name].dtype == torch.bfloat16
        torch.testing.assert_close(found[name], masters[key].bfloat16(), atol=0, rtol=0)
        # Two AdamW steps of 1e-3 move every matrix by more than bf16 rounds away.
        assert value.ndim == 1 or not torch.equal(found[name], value.bfloat16()), name
    assert Encoder(EncoderSettings(model=str(out)), device=CPU).encode(["a bridge"]).any()
    capsys.readouterr()
    said = refused(capsys, export.main, run_dir, tmp_path / "peft", "--format", "peft")
    assert "trained all weights (model.lora is null): it has no adapter" in said
    assert not (tmp_path / "peft").exists()


def test_an_export_never_overwrites(
    exported: Path, run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    times = {path: path.stat().st_mtime_ns for path in exported.rglob("*")}
    assert "already there; export to another folder" in refused(
        capsys, export.main, run_dir, exported
    )
    assert {path: path.stat().st_mtime_ns for path in exported.rglob("*")} == times
    (tmp_path / "thesis.tex").write_text("mine")
    for out in (tmp_path, tmp_path / "thesis.tex"):
        refused(capsys, export.main, run_dir, out)
        assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    assert (tmp_path / "thesis.tex").read_text() == "mine"


def test_what_cannot_be_exported_is_named(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, empty = tmp_path / "out", tmp_path / "empty"
    empty.mkdir()
    for folder in (empty, tmp_path / "nowhere"):
        assert "is not a run directory (no config.yaml)" in refused(
            capsys, export.main, folder, out
        )
    shutil.copytree(run_dir, tmp_path / "young", ignore=shutil.ignore_patterns("COMMITTED"))
    young = tmp_path / "young"
    assert "has no whole checkpoint to export; train it first" in refused(
        capsys, export.main, young, out
    )
    shutil.copytree(run_dir, tmp_path / "harmed")
    weights = tmp_path / "harmed/checkpoints/step-00000003/weights/adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert "adapter_model.safetensors: is damaged" in refused(
        capsys, export.main, weights.parents[3], out
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "harmed", "young"]


def test_a_base_model_that_is_gone_is_named(
    inputs: tuple[str, str],
    tiny_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_model, base)
    steps = ("train.steps=1", f"model.base={base}")
    run_dir = trained(tmp_path / "run", *inputs, *steps)
    capsys.readouterr()
    shutil.rmtree(base)
    assert f"model '{base}': no such folder" in refused(
        capsys, export.main, run_dir, tmp_path / "out"
    )
    assert not (tmp_path / "out").exists()
