"""Families whose weights are named or stored otherwise than Llama's: what is said, and what is
written. Tiny models with random weights, saved by transformers."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM

from toolkit.base.errors import BadInput
from toolkit.base.files import read_json, write_json
from toolkit.model.adapters import merge_into, read_adapter
from toolkit.model.backbone import add_lora, load_backbone, load_config
from toolkit.model.tokenizer import load_tokenizer
from toolkit.model.weights import (
    Adapter,
    check_mergeable,
    merge_weights,
    saved_name,
    write_encoder_files,
)
from toolkit.settings.model_schema import Lora
from toolkit.settings.model_source import resolve_model

SHAPE = {"vocab_size": 8192, "bos_token_id": 1, "eos_token_id": 2}
LLAMAS = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
FAMILIES = {
    "gpt_neox": transformers.GPTNeoXConfig(**SHAPE, **LLAMAS, tie_word_embeddings=False),
    "gpt2": transformers.GPT2Config(**SHAPE, n_embd=32, n_layer=2, n_head=2),
    "mixtral": transformers.MixtralConfig(
        **SHAPE, **LLAMAS, num_key_value_heads=1, num_local_experts=2
    ),
}
TARGETS = {"gpt_neox": ("query_key_value", "dense"), "mixtral": ("q_proj", "o_proj")}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of each family."""
    folders = {}
    for name, config in FAMILIES.items():
        torch.manual_seed(0)
        folders[name] = tmp_path_factory.mktemp("families") / name
        AutoModelForCausalLM.from_config(config).save_pretrained(folders[name])
    return folders


def load(folder: Path, *, head: bool) -> Any:
    config = load_config(resolve_model(str(folder)))
    return load_backbone(
        resolve_model(str(folder)), config=config, head=head, dtype="fp32", attention="sdpa"
    )


def trained_of(model: Any) -> dict[str, torch.Tensor]:
    """What is trained, with other values."""
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
            found[saved_name(name)] = parameter.detach().clone()
    return found


def same_states(out: Path, model: Any) -> None:
    """What is in a folder computes what the model does, with nothing to spare."""
    loaded, report = AutoModel.from_pretrained(
        out, output_loading_info=True, dtype=torch.float32, attn_implementation="sdpa"
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert not report["mismatched_keys"]
    ids = torch.arange(5, 14)[None]
    with torch.inference_mode():
        expected = model.eval()(input_ids=ids).last_hidden_state
        assert torch.allclose(loaded.eval()(input_ids=ids).last_hidden_state, expected, atol=1e-5)


@pytest.mark.parametrize("head", [True, False])
@pytest.mark.parametrize("family", ["gpt_neox", "gpt2"])
def test_all_weights_are_merged_without_the_head(
    family: str, head: bool, saved: dict[str, Path], tiny_model: Path, tmp_path: Path
) -> None:
    """By whatever name the head goes: GPT-NeoX stores it as embed_out."""
    model = load(saved[family], head=head)
    trained = trained_of(model)
    check_mergeable(saved[family], trained=trained)
    merge_weights(saved[family], replaced=trained, dtype="fp32", out=tmp_path)
    config, tokenizer = (
        load_config(resolve_model(str(saved[family]))),
        load_tokenizer(resolve_model(str(tiny_model))),
    )
    write_encoder_files(tmp_path, config=config, tokenizer=tokenizer, max_tokens=64, dtype="fp32")
    inner = getattr(model, model.base_model_prefix) if head else model
    assert set(load_file(tmp_path / "model.safetensors")) == set(dict(inner.named_parameters()))
    assert read_json(tmp_path / "config.json")["architectures"] == [type(inner).__name__]
    same_states(tmp_path, inner)


@pytest.mark.parametrize("head", [True, False])
@pytest.mark.parametrize("family", ["gpt_neox", "mixtral"])
def test_adapters_are_merged(
    family: str, head: bool, saved: dict[str, Path], tiny_model: Path, tmp_path: Path
) -> None:
    lora = Lora(rank=2, alpha=4, dropout=0.0, targets=TARGETS[family])
    model = add_lora(load(saved[family], head=head), lora=lora)
    trained = trained_of(model)
    check_mergeable(saved[family], trained=trained)
    adapter = Adapter.of(trained, scale=2.0, source="test")
    merge_weights(saved[family], adapters=[adapter], dtype="fp32", out=tmp_path)
    config, tokenizer = (
        load_config(resolve_model(str(saved[family]))),
        load_tokenizer(resolve_model(str(tiny_model))),
    )
    write_encoder_files(tmp_path, config=config, tokenizer=tokenizer, max_tokens=64, dtype="fp32")
    merged = (getattr(model, model.base_model_prefix) if head else model).merge_and_unload()
    same_states(tmp_path, merged)


def test_an_adapter_of_a_causal_model_fits_its_decoder(
    saved: dict[str, Path], tmp_path: Path
) -> None:
    """PEFT names its keys by the causal model, whose decoder is not called `model` everywhere."""
    causal = AutoModelForCausalLM.from_pretrained(saved["gpt_neox"], dtype=torch.float32)
    adapted = get_peft_model(causal, LoraConfig(r=2, target_modules=["query_key_value"]))
    trained_of(adapted)
    adapted.save_pretrained(tmp_path)
    model = load(saved["gpt_neox"], head=False)
    merge_into(model, adapters=[read_adapter(tmp_path)])
    merged = adapted.merge_and_unload().gpt_neox
    for name, parameter in model.named_parameters():
        assert torch.allclose(parameter, merged.get_parameter(name), atol=1e-6), name


def test_a_model_without_linear_layers_says_what_would_do(saved: dict[str, Path]) -> None:
    lora = Lora(rank=2, alpha=4, dropout=0.0, targets=("q_proj",))
    message = (
        "'q_proj' is no linear layer of this model, and it has none that an adapter could be put "
        r"on \(its layers are Conv1D\); model\.lora=null trains all weights"
    )
    for head in (True, False):
        with pytest.raises(BadInput, match=message):
            add_lora(load(saved["gpt2"], head=head), lora=lora)


def test_weights_that_are_stored_in_another_form_are_named(saved: dict[str, Path]) -> None:
    """transformers fuses Mixtral's experts when it loads them, and parts them when it saves."""
    trained = trained_of(load(saved["mixtral"], head=True))
    message = (
        r"'layers\.0\.mlp\.experts\.down_proj' is trained, .*in another form.*"
        r"adapters \(model\.lora\) on what is stored as it is: k_proj, o_proj, q_proj, v_proj"
    )
    with pytest.raises(BadInput, match=message) as refused:
        check_mergeable(saved["mixtral"], trained=trained)
    assert "save_pretrained" not in str(refused.value)


@pytest.mark.parametrize("family", ["gpt_neox", "mixtral"])
def test_a_missing_head_is_called_one(family: str, saved: dict[str, Path], tmp_path: Path) -> None:
    AutoModel.from_pretrained(saved[family]).save_pretrained(tmp_path)
    with pytest.raises(BadInput, match=r"no language-model head .*; use the causal model") as found:
        load(tmp_path, head=True)
    assert "again" not in str(found.value)
    load(tmp_path, head=False)
    # A damaged one is still called that.
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    tensors.pop(next(name for name in tensors if "layers.1." in name))
    save_file(tensors, path, metadata={"format": "pt"})
    for head in (True, False):
        with pytest.raises(BadInput, match=r"weights are missing.* download the model again"):
            load(tmp_path, head=head)


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_beyond_the_configured_ones_are_refused(
    family: str, saved: dict[str, Path], tmp_path: Path
) -> None:
    """transformers would leave them out and go on."""
    (tmp_path / "model.safetensors").write_bytes((saved[family] / "model.safetensors").read_bytes())
    config = read_json(saved[family] / "config.json")
    key = "n_layer" if family == "gpt2" else "num_hidden_layers"
    write_json(tmp_path / "config.json", {**config, key: 1})
    with pytest.raises(BadInput, match="has weights of 2 layers, and num_hidden_layers of its"):
        load(tmp_path, head=False)
