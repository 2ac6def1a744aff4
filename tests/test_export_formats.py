"""Exports for PEFT and for llm2vec, and the card of each. What llm2vec itself makes of its folder
is in test_export_llm2vec.py."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoTokenizer

from tests.conftest import QUICKSTART, refused
from toolkit import export, train, verify
from toolkit.base.errors import BadInput
from toolkit.base.files import read_json, write_json
from toolkit.base.shown import in_markdown
from toolkit.encoding.encoder import Encoder
from toolkit.model.llm2vec_format import (
    config_of_4_44,
    tokenizer_config_of_4_44,
    tokenizer_of_4_44,
)
from toolkit.training.card import CardFacts, model_card

Export = Callable[..., Path]
INSTRUCTION = "Find a sentence that says the same: "


@pytest.fixture(scope="module")
def sentences() -> list[str]:
    with (QUICKSTART / "sts_test.tsv").open(encoding="utf-8", newline="") as handle:
        rows = list(csv.reader(handle, delimiter="\t"))
    found = [text for row in rows for text in row[1:]]
    assert len(found) >= 100
    return found


@pytest.fixture(scope="module")
def runs(shards: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of MNTP, and one of SimCSE upon it."""
    folder = tmp_path_factory.mktemp("runs")
    common = [f"data.train={shards}", "train.lr=5e-3", "train.steps=2"]
    mntp, simcse = folder / "mntp", folder / "simcse"
    assert train.main(["tiny_mntp", *common, f"model.base={tiny_model}", f"run_dir={mntp}"]) == 0
    assert train.main(["tiny_simcse", *common, f"model.base={mntp}", f"run_dir={simcse}"]) == 0
    return folder


@pytest.fixture(scope="module")
def exported(runs: Path) -> Export:
    """Export a run with these arguments, once."""

    def call(run: str, *arguments: object) -> Path:
        words = [run, *(str(argument).rpartition("/")[2] for argument in arguments)]
        out = runs / "_".join(words)
        if not out.exists():
            assert export.main([str(runs / run), str(out), *map(str, arguments)]) == 0
        return out

    return call


def vectors(path: Path, texts: list[str], **options: Any) -> Any:
    return Encoder.from_pretrained(str(path), device="cpu", **options).encode(texts)


def pooled(model: Any, tokenizer: Any, texts: list[str]) -> Any:
    """The mean over a text's own tokens, by nothing of ours."""
    found = []
    for text in texts:
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        own = ~torch.isin(ids[0], torch.tensor(tokenizer.all_special_ids))
        with torch.inference_mode():
            hidden = model(input_ids=ids).last_hidden_state[0]
        found.append(hidden[own].mean(dim=0).numpy())
    return np.stack(found)


def test_an_adapter_alone_loads_in_peft(
    exported: Export, runs: Path, tiny_model: Path, sentences: list[str]
) -> None:
    out = exported("simcse", "--format", "peft")
    base = read_json(out / "adapter_config.json")["base_model_name_or_path"]
    assert Path(base) == (runs / "mntp" / "encoder").resolve()
    assert not list(out.glob("model*"))
    assert verify.main([str(out)]) == 0
    model = PeftModel.from_pretrained(AutoModel.from_pretrained(base), str(out)).eval()
    theirs = pooled(model, AutoTokenizer.from_pretrained(out), sentences)
    ours = vectors(runs / "simcse", sentences)
    assert float(np.abs(theirs - ours).max()) <= 1e-5
    # Ours loads it as well: its base is found by its own configuration.
    assert float(np.abs(vectors(out, sentences) - ours).max()) <= 1e-5
    # And it is an adapter of the merged MNTP encoder, not of the base model.
    with pytest.raises(BadInput, match=r"upon other weights than those of .*it is stage 2 of its"):
        vectors(tiny_model, sentences, adapters=[str(out)])


def test_a_chain_of_rounded_adapters_stands_upon_the_first_base(
    exported: Export, runs: Path, tiny_model: Path, tmp_path: Path, sentences: list[str]
) -> None:
    form = ("--format", "peft", "--dtype", "bf16", "--base-name", tiny_model)
    chain = [exported(run, *form) for run in ("mntp", "simcse")]
    for adapter in chain:
        assert read_json(adapter / "adapter_config.json")["base_model_name_or_path"] == str(
            tiny_model
        )
        tensors = load_file(adapter / "adapter_model.safetensors")
        assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
        assert verify.main([str(adapter)]) == 0
        assert not (adapter / "tokenizer.json").exists()
    text = (chain[1] / "README.md").read_text()
    assert "with the adapters of the stages before it" in text and "will not do" not in text
    config = AutoConfig.from_pretrained(tiny_model)
    config.is_causal = False
    model = AutoModel.from_pretrained(tiny_model, config=config, dtype=torch.float32)
    for adapter in chain:
        model = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    theirs = pooled(model.eval(), AutoTokenizer.from_pretrained(tiny_model), sentences)
    both = [str(adapter) for adapter in chain]
    ours = vectors(tiny_model, sentences, adapters=both)
    assert float(np.abs(theirs - ours).max()) <= 1e-5
    difference = float(np.abs(ours - vectors(runs / "simcse", sentences)).max())
    assert 0 < difference < 0.05, "rounded once, to eight bits"
    # An export of the chain knows both stages.
    whole = tmp_path / "whole"
    assert export.main([str(tiny_model), str(whole), "--adapters", *both, "--dtype", "fp32"]) == 0
    assert float(np.abs(vectors(whole, sentences) - ours).max()) <= 1e-5
    stages = read_json(whole / "origin.json")["stages"]
    assert [stage["kind"] for stage in stages] == ["mntp", "simcse"]


def test_an_adapter_upon_other_weights_is_refused(
    exported: Export, runs: Path, tiny_model: Path, tmp_path: Path
) -> None:
    form = ("--format", "peft", "--dtype", "bf16", "--base-name", tiny_model)
    mntp, simcse = (str(exported(run, *form)) for run in ("mntp", "simcse"))
    other = tmp_path / "other"
    shutil.copytree(tiny_model, other)
    tensors = load_file(other / "model.safetensors")
    tensors["model.norm.weight"][0] *= 1.01
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    for base, chain in (
        (other, [mntp]),
        (other, [mntp, simcse]),
        (tiny_model, [simcse]),
        (tiny_model, [simcse, mntp]),
        (tiny_model, [mntp, mntp]),
        (runs / "mntp" / "encoder", [mntp]),
    ):
        with pytest.raises(BadInput, match="was trained upon other weights than those of"):
            Encoder.from_pretrained(str(base), adapters=chain, device="cpu")
    with pytest.raises(BadInput, match="give the base of the first stage as the model, and the"):
        Encoder.from_pretrained(simcse, device="cpu")
    # The same weights in two files are the same base.
    names = sorted(tensors)
    (other / "model.safetensors").unlink()
    tensors["model.norm.weight"] = load_file(tiny_model / "model.safetensors")["model.norm.weight"]
    parts = {
        "model-00001-of-00002.safetensors": names[:9],
        "model-00002-of-00002.safetensors": names[9:],
    }
    for file, some in parts.items():
        save_file({name: tensors[name] for name in some}, other / file, metadata={"format": "pt"})
    places = {name: file for file, some in parts.items() for name in some}
    write_json(other / "model.safetensors.index.json", {"metadata": {}, "weight_map": places})
    Encoder.from_pretrained(str(other), adapters=[mntp, simcse], device="cpu")


def test_an_adapter_upon_a_base_model_is_bidirectional_by_what_its_card_says(
    exported: Export, runs: Path, tiny_model: Path, sentences: list[str]
) -> None:
    out = exported("mntp", "--format", "peft")
    base = read_json(out / "adapter_config.json")["base_model_name_or_path"]
    assert Path(base) == tiny_model.resolve()
    config = AutoConfig.from_pretrained(base)
    config.is_causal = False
    plain = AutoModel.from_pretrained(base, config=config, dtype=torch.float32)
    model = PeftModel.from_pretrained(plain, str(out)).eval()
    theirs = pooled(model, AutoTokenizer.from_pretrained(out), sentences[:20])
    assert float(np.abs(theirs - vectors(runs / "mntp", sentences[:20])).max()) <= 1e-5


def test_what_llm2vec_reads_is_still_the_same_encoder(
    exported: Export, runs: Path, sentences: list[str]
) -> None:
    from sentence_transformers import SentenceTransformer

    out = exported("simcse", "--format", "llm2vec")
    config = read_json(out / "config.json")
    assert config["torch_dtype"] == "float32" and config["rope_theta"] == 10000.0
    assert config["is_causal"] is False and config["rope_scaling"] is None
    assert not {"dtype", "rope_parameters", "_name_or_path"} & set(config)
    told = read_json(out / "tokenizer_config.json")
    assert told["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert told["model_input_names"] == ["input_ids", "attention_mask"]
    assert isinstance(read_json(out / "tokenizer.json")["model"]["merges"][0], str)
    assert read_json(out / "llm2vec_config.json") == {
        "pooling_mode": "mean",
        "max_length": 512,
        "doc_max_length": 511,
        "skip_instruction": True,
    }
    ours = vectors(runs / "simcse", sentences)
    assert float(np.abs(vectors(out, sentences) - ours).max()) <= 1e-6
    theirs = SentenceTransformer(str(out), device="cpu").encode(sentences)
    assert float(np.abs(theirs - ours).max()) <= 1e-5
    assert verify.main([str(out)]) == 0


LLAMA = {"model_type": "llama", "num_attention_heads": 4, "hidden_size": 64, "dtype": "bfloat16"}


def test_a_scaled_rope_keeps_its_scale() -> None:
    rope = {"rope_type": "llama3", "factor": 8.0, "rope_theta": 500000.0}
    found = config_of_4_44({**LLAMA, "rope_parameters": rope})
    assert found["rope_theta"] == 500000.0
    assert found["rope_scaling"] == {"rope_type": "llama3", "factor": 8.0}
    assert found["torch_dtype"] == "bfloat16"
    # What is written that way already stays.
    assert config_of_4_44(found) == found
    told = {"backend": "tokenizers", "extra_special_tokens": ["<a>", "<b>"], "bos_token": "<s>"}
    assert tokenizer_config_of_4_44(told)["additional_special_tokens"] == ["<a>", "<b>"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "qwen2"}, "'qwen2' no bidirectional attention; valid: gemma, llama"),
        (
            {"model_type": "mistral", "rope_parameters": {"rope_type": "yarn"}},
            "a mistral with 'yarn' rope is too new",
        ),
        ({"head_dim": 32}, "a llama whose head_dim is 32 is too new"),
    ],
)
def test_what_llm2vec_cannot_load_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        config_of_4_44({**LLAMA, **changes})


def test_merges_with_blanks_are_refused() -> None:
    with pytest.raises(BadInput, match="a space in it"):
        tokenizer_of_4_44({"model": {"merges": [["a", "b"], [" ", "c"]]}})


def front_and_text(card: str) -> tuple[dict[str, Any], str]:
    _, front, text = card.split("---\n", 2)
    return yaml.safe_load(front), text


def test_the_card_says_what_was_trained(exported: Export, runs: Path, tmp_path: Path) -> None:
    scores = tmp_path / "scores.json"
    write_json(scores, {"base": {"STS": 0.25}, "after SimCSE": {"STS": 0.40349, "other": 1}})
    out = exported("simcse", "--scores", scores)
    front, text = front_and_text((out / "README.md").read_text())
    assert front["library_name"] == "sentence-transformers"
    assert front["pipeline_tag"] == "sentence-similarity"
    assert "llm2vec" in front["tags"] and "base_model" not in front  # the base is a local folder
    assert text.startswith(f"\n# {in_markdown(out.name)}\n") and "made from `tiny-mistral`" in text
    lines = text.splitlines()
    (mntp,) = [line for line in lines if line.startswith("| mntp |")]
    (simcse,) = [line for line in lines if line.startswith("| simcse |")]
    assert mntp.startswith("| mntp | tiny-mistral | 2 | 8 | 32 | 0.005 | 42 | LoRA, rank 8, ")
    assert simcse.startswith("| simcse | mntp | 2 | 16 | 32 | 0.005 | 42 | LoRA, rank 8, ")
    assert "| base | 0.25 |  |" in lines and "| after SimCSE | 0.4035 | 1 |" in lines
    recipe = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])
    assert recipe["kind"] == "simcse" and recipe["simcse"]["scale"] == 5.0
    for word in ("sentence-transformers >= 6", "vLLM", "not run", f'"{out.name}"'):
        assert word in text
    assert str(runs) not in text and str(tmp_path) not in text
    # People edit cards; nothing else may change.
    (out / "README.md").write_text("mine")
    assert verify.main([str(out)]) == 0
    (out / "modules.json").write_text("[]")
    assert verify.main([str(out)]) == 2


def test_the_card_of_an_adapter_says_what_it_stands_upon(exported: Export) -> None:
    front, text = front_and_text((exported("simcse", "--format", "peft") / "README.md").read_text())
    assert front["library_name"] == "peft"
    assert "stands upon `mntp` and nothing else" in text
    assert "the model it was made from will not do" in text
    for form, relation in (("peft", "adapter"), ("merged", "finetune")):
        facts = CardFacts(form, "owner/model", [], 8, 512, "{instruction}; ")
        front, text = front_and_text(model_card(facts, name="x"))
        assert front["base_model"] == ["owner/model"]
        assert front["base_model_relation"] == relation
        assert "None were given" in text


@pytest.mark.parametrize("content", ["[]", "{}", '{"a": {"b": "c"}}', '{"a": 1, "b": {"c": 1}}'])
def test_scores_that_are_none_are_refused(
    content: str, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "s.json").write_text(content)
    said = refused(
        capsys, export.main, runs / "mntp", tmp_path / "out", "--scores", tmp_path / "s.json"
    )
    assert "s.json: holds no scores; give the scores.json of toolkit.evaluate" in said
    assert not (tmp_path / "out").exists()


def test_a_type_can_be_chosen(exported: Export, runs: Path, sentences: list[str]) -> None:
    out = exported("mntp", "--dtype", "bf16")
    assert read_json(out / "config.json")["dtype"] == "bfloat16"
    size = (out / "model.safetensors").stat().st_size
    assert size < 0.51 * (runs / "mntp" / "encoder" / "model.safetensors").stat().st_size
    difference = np.abs(vectors(out, sentences) - vectors(runs / "mntp", sentences)).max()
    assert 1e-5 < difference < 0.2


def test_an_encoder_is_exported_again_in_another_format(
    exported: Export, runs: Path, tmp_path: Path, sentences: list[str]
) -> None:
    """What was merged before: no run is needed, and the card keeps its stages."""
    out = tmp_path / "again"
    encoder = runs / "simcse" / "encoder"
    assert export.main([str(encoder), str(out), "--format", "llm2vec"]) == 0
    theirs = exported("simcse", "--format", "llm2vec")
    assert (out / "model.safetensors").read_bytes() == (theirs / "model.safetensors").read_bytes()
    assert json.loads((out / "origin.json").read_text())["stages"][1]["kind"] == "simcse"


def test_what_a_format_cannot_hold_is_refused(
    runs: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, form = tmp_path / "out", ("--format", "peft")
    said = refused(capsys, export.main, runs / "mntp", out, "--base-name", "x/y")
    assert "--base-name x/y: goes with --format peft only" in said
    assert "needs a run that trained an adapter" in refused(
        capsys, export.main, tiny_model, out, *form
    )
    assert not out.exists()
