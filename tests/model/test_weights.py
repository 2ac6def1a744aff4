"""Merging and loading: PEFT's own merge is the oracle; damaged folders are named."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from toolkit.base.errors import BadInput
from toolkit.base.files import read_json, write_json
from toolkit.model.backbone import add_lora, load_backbone, load_config
from toolkit.model.tokenizer import load_tokenizer, special_ids
from toolkit.model.weights import Adapter, inner_name, merge_weights, saved_name
from toolkit.settings.model_schema import Lora
from toolkit.settings.model_source import resolve_model

LORA = Lora(rank=4, alpha=8, dropout=0.0, targets=("q_proj", "down_proj"))


def load(path: Path, *, head: bool = False) -> torch.nn.Module:
    config = load_config(resolve_model(str(path)))
    model: torch.nn.Module = load_backbone(
        resolve_model(str(path)), config=config, head=head, dtype="fp32", attention="sdpa"
    )
    return model


@pytest.mark.parametrize("head", [True, False])
def test_merge_equals_peft(head: bool, tiny_model: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = add_lora(load(tiny_model, head=head), lora=LORA)
    trained = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
            trained[saved_name(name)] = parameter.detach().clone()
    assert all(name.startswith("base_model.model.layers.") for name in trained)
    adapter = Adapter.of(trained, scale=LORA.alpha / LORA.rank, source="test")
    merge_weights(tiny_model, adapters=[adapter], dtype="fp32", out=tmp_path)
    found = load_file(tmp_path / "model.safetensors")
    adapted = model.model if head else model
    expected = adapted.merge_and_unload().state_dict()
    assert set(found) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-6, rtol=1e-6)


def test_merge_refuses_adapters_of_another_model(tiny_model: Path, tmp_path: Path) -> None:
    stem = "base_model.model.layers.99.self_attn.q_proj"
    trained = {f"{stem}.lora_A.weight": torch.zeros(1), f"{stem}.lora_B.weight": torch.zeros(1)}
    adapter = Adapter.of(trained, scale=1.0, source="test")
    with pytest.raises(BadInput, match="another base model"):
        merge_weights(tiny_model, adapters=[adapter], dtype="fp32", out=tmp_path)


def test_full_weights_replace_the_base_and_files_end_where_they_should(
    tiny_model: Path, tmp_path: Path
) -> None:
    whole = load_file(tiny_model / "model.safetensors")
    names = sorted(whole)
    base, out = tmp_path / "base", tmp_path / "out"
    base.mkdir()
    out.mkdir()
    for number, part in enumerate((names[:10], names[10:]), 1):
        save_file({n: whole[n] for n in part}, base / f"model-{number:05d}-of-00002.safetensors")
    shutil.copyfile(tiny_model / "config.json", base / "config.json")
    changed = {names[0]: whole[names[0]].float() + 1.0}
    merge_weights(base, replaced=changed, dtype="fp32", out=out, max_file_bytes=1_500_000)
    assert len(list(out.glob("*.safetensors"))) > 3
    merged = {k: v for f in out.glob("*.safetensors") for k, v in load_file(f).items()}
    inner = inner_name(names[0])
    assert inner
    torch.testing.assert_close(merged[inner], changed[names[0]])
    assert len(merged) == len(whole)
    shutil.copyfile(tiny_model / "config.json", out / "config.json")
    load(out)  # transformers finds both shards by our index


def test_lora_targets_are_checked(tiny_model: Path) -> None:
    bad = Lora(rank=4, alpha=8, dropout=0.0, targets=("q_porj",))
    with pytest.raises(BadInput, match=r"'q_porj' is no linear layer.*down_proj.*q_proj"):
        add_lora(load(tiny_model), lora=bad)


def test_lora_freezes_the_head(tiny_model: Path) -> None:
    model = add_lora(load(tiny_model, head=True), lora=LORA)
    assert all("lora_" in n for n, p in model.named_parameters() if p.requires_grad)


def copied(tiny_model: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "model"
    shutil.copytree(tiny_model, copy)
    return copy


def test_missing_weights_are_named(tiny_model: Path, tmp_path: Path) -> None:
    copy = copied(tiny_model, tmp_path)
    tensors = load_file(copy / "model.safetensors")
    tensors.pop("model.layers.1.mlp.up_proj.weight")
    save_file(tensors, copy / "model.safetensors")
    with pytest.raises(BadInput, match=r"1 weights are missing: .*layers\.1\.mlp\.up_proj"):
        load(copy)


def test_truncated_weights_are_named(tiny_model: Path, tmp_path: Path) -> None:
    copy = copied(tiny_model, tmp_path)
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(BadInput, match="is not a whole safetensors file"):
        load(copy)


def test_code_in_a_model_folder_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    copy = copied(tiny_model, tmp_path)
    text = (copy / "config.json").read_text()
    auto_map = '{"auto_map": {"AutoModel": "evil.Model"},'
    (copy / "config.json").write_text(text.replace("{", auto_map, 1))
    (copy / "evil.py").write_text("raise SystemExit('ran')")
    with pytest.raises(BadInput, match="auto_map"):
        load_config(resolve_model(str(copy)))


def test_the_dropout_of_a_base_gives_way_to_a_recipes(tiny_model: Path, tmp_path: Path) -> None:
    copy = copied(tiny_model, tmp_path)
    write_json(copy / "config.json", {**read_json(copy / "config.json"), "attention_dropout": 0.1})
    found = [
        load_config(resolve_model(str(copy)), attention_dropout=rate).attention_dropout
        for rate in (0.0, 0.3)
    ]
    assert found == [0.0, 0.3]
    assert load_config(resolve_model(str(copy))).attention_dropout == 0.1


def test_special_ids_leave_unknown_words_in(tiny_model: Path) -> None:
    assert special_ids(load_tokenizer(resolve_model(str(tiny_model)))) == [1, 2, 3]
