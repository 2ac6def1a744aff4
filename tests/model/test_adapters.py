"""Adapters in the layout that McGill-NLP has published: a base, an MNTP adapter whose folder names
code of its own, and a second adapter upon both. PEFT's own merge is the oracle."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer

from tests.two_layers import LAYERS
from toolkit import encode, export
from toolkit.base.errors import BadInput
from toolkit.base.files import read_json, write_json
from toolkit.encoding.encoder import Encoder, encoder_of
from toolkit.encoding.store import VectorStore
from toolkit.model.adapters import chain_of, read_adapter
from toolkit.model.weights import merge_weights
from toolkit.settings.model_source import ModelSource, resolve_model
from toolkit.settings.schema import EncoderSettings

TEXTS = ["A short_text about canals.", "The bridge _ was closed.", "x", "Two words here."] * 3
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def bidirectional(base: Path) -> Any:
    config = AutoConfig.from_pretrained(base)
    config.is_causal = False
    return AutoModel.from_pretrained(base, config=config, dtype=torch.float32)


def make_adapter(out: Path, *, base: Path, seed: int, head: bool, **settings: Any) -> Path:
    """An adapter as PEFT saves it, onto a causal LM (`head`) or the decoder in it."""
    torch.manual_seed(seed)
    model = (
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        if head
        else bidirectional(base)
    )
    options = {"r": 4, "lora_alpha": 8, "target_modules": TARGETS, **settings}
    adapted = get_peft_model(model, LoraConfig(**options))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    adapted.save_pretrained(out)
    write_json(
        out / "adapter_config.json",
        {**read_json(out / "adapter_config.json"), "base_model_name_or_path": str(base)},
    )
    return out


@pytest.fixture(scope="module")
def published(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folders of an MNTP adapter and of a second one."""
    folder = tmp_path_factory.mktemp("published")
    mntp = make_adapter(folder / "x-mntp", base=tiny_model, seed=1, head=False)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.mask_token = "_"
    tokenizer.save_pretrained(mntp)
    config = read_json(tiny_model / "config.json")
    auto_map = {"AutoModel": "modeling_mistral_encoder.MistralEncoderModel"}
    config |= {"auto_map": auto_map, "_name_or_path": "mistralai/Mistral-7B-Instruct-v0.2"}
    write_json(mntp / "config.json", config)
    (mntp / "modeling_mistral_encoder.py").write_text("raise SystemExit('ran')")
    second = make_adapter(folder / "x-mntp-simcse", base=tiny_model, seed=2, head=True)
    return mntp, second


@pytest.fixture(scope="module")
def expected(published: tuple[Path, Path], tiny_model: Path) -> Any:
    """The vectors after PEFT has merged both; the mask is one of a text's own tokens."""
    mntp, second = published
    model: Any = PeftModel.from_pretrained(bidirectional(tiny_model), str(mntp)).merge_and_unload()
    # The second was saved from a causal LM: PEFT itself finds none of its keys in a decoder.
    inner = {
        key.replace("base_model.model.model.", "base_model.model."): value
        for key, value in load_file(second / "adapter_model.safetensors").items()
    }
    copy = second.parent / "inner"
    shutil.copytree(second, copy)
    save_file(inner, copy / "adapter_model.safetensors", metadata={"format": "pt"})
    model = PeftModel.from_pretrained(model, str(copy)).merge_and_unload().eval()
    tokenizer = AutoTokenizer.from_pretrained(mntp, trust_remote_code=False)
    vectors = []
    for text in TEXTS:
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            hidden = model(input_ids=ids).last_hidden_state[0, 1:]  # without the begin token
        vectors.append(hidden.mean(dim=0).numpy())
    return np.stack(vectors)


def test_both_ways_of_naming_weights_are_there(published: tuple[Path, Path]) -> None:
    for folder, prefix in zip(published, ("layers", "model.layers"), strict=True):
        keys = load_file(folder / "adapter_model.safetensors")
        assert all(key.startswith(f"base_model.model.{prefix}.") for key in keys)
        assert len(read_adapter(folder).pairs) == LAYERS * len(TARGETS)


def test_the_chain_gives_pefts_vectors(
    published: tuple[Path, Path], expected: Any, tiny_model: Path
) -> None:
    mntp, second = map(str, published)
    ours = Encoder.from_pretrained(mntp, adapters=[second], device="cpu")
    assert float(np.abs(ours.encode(TEXTS) - expected).max()) <= 1e-5
    # The base may be named too. Its tokenizer knows no mask, to which "_" is a text as well.
    same = Encoder.from_pretrained(str(tiny_model), adapters=[mntp, second], device="cpu")
    plain = [text for text in TEXTS if "_" not in text]
    wanted = expected[[number for number, text in enumerate(TEXTS) if "_" not in text]]
    assert float(np.abs(same.encode(plain) - wanted).max()) <= 1e-5
    for other in ((mntp,), (second,), (str(tiny_model),)):
        found = Encoder.from_pretrained(*other, device="cpu").encode(TEXTS)
        assert float(np.abs(found - expected).max()) > 1e-2


def test_a_digest_names_the_whole_chain(published: tuple[Path, Path], tiny_model: Path) -> None:
    mntp, second = map(str, published)
    chains = [((mntp,), ()), ((mntp,), (second,)), ((str(tiny_model),), (second, mntp))]
    chains += [((str(tiny_model),), ())]
    digests = {chain_of(*model, adapters=adapters).digest() for model, adapters in chains}
    assert len(digests) == 4
    assert Encoder(EncoderSettings(model=str(tiny_model))).digest() in digests


def test_the_chain_is_exported_as_a_plain_folder(
    published: tuple[Path, Path], expected: Any, tmp_path: Path
) -> None:
    mntp, second = map(str, published)
    out = tmp_path / "out"
    assert export.main([mntp, str(out), "--adapters", second, "--dtype", "fp32"]) == 0
    assert not {"auto_map", "_name_or_path"} & set(read_json(out / "config.json"))
    assert not list(out.glob("*.py"))
    assert resolve_model(str(out)).folder == out  # a model that can be trained on
    ours = Encoder.from_pretrained(str(out), device="cpu").encode(TEXTS)
    assert float(np.abs(ours - expected).max()) <= 1e-5
    card = (out / "README.md").read_text()
    assert "| adapter x-mntp | tiny-mistral |" in card
    assert "| adapter x-mntp-simcse | x-mntp |" in card


def test_a_corpus_is_embedded_and_searched_with_adapters(
    published: tuple[Path, Path], expected: Any, shards: Path, tmp_path: Path
) -> None:
    mntp, second = map(str, published)
    out = tmp_path / "encoding"
    recipe = ["tiny_embed", f"corpus.input={shards}", f"output_dir={out}", f"encoder.model={mntp}"]
    assert encode.main([*recipe, f"encoder.adapters=[{second}]", "encoder.max_tokens=16"]) == 0
    # Again, as a second worker comes: by content it is the same, whatever the folders are called.
    moved = shutil.copytree(second, tmp_path / "moved")
    assert encode.main([*recipe, f"encoder.adapters=[{moved}]", "encoder.max_tokens=16"]) == 0
    encoder = encoder_of(VectorStore(out))  # which is refused unless it has the same digest
    assert float(np.abs(encoder.encode(TEXTS) - expected).max()) <= 1e-5
    assert encode.main([*recipe, "encoder.max_tokens=16"]) == 2  # another model


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3'; only LORA can be merged"),
        ({"use_dora": True}, "use_dora is True, which is not merged here"),
        ({"alpha_pattern": {"q_proj": 4}}, "alpha_pattern is {'q_proj': 4}, which is not"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save is \['lm_head'\], which is not"),
        ({"init_lora_weights": "pissa"}, "'pissa', which changes the base's weights"),
        ({"bias": "all"}, "bias is 'all'; only 'none'"),
        ({"r": 8}, "lora_A.weight has rank 4, and .*adapter_config.json says 8"),
    ],
)
def test_what_cannot_be_merged_is_refused(
    settings: dict[str, Any], message: str, published: tuple[Path, Path], tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(published[0], copy)
    path = copy / "adapter_config.json"
    write_json(path, {**read_json(path), **settings})
    with pytest.raises(BadInput, match=message):
        Encoder.from_pretrained(str(copy), device="cpu")


STEM = "base_model.model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"base_model.model.embed_tokens.lora_embedding_A": (4, 8192)}, "'base_model.model.embed"),
        ({f"{STEM}.lora_B.weight": None}, "'layers.0.self_attn.q_proj.weight' has only one of"),
        ({f"{STEM}.lora_A.weight": (4, 64)}, "does not fit 'layers.0.self_attn.q_proj.weight' of"),
        (
            {f"{STEM.replace('0', '9')}.lora_{half}.weight": (4, 4) for half in "AB"},
            "adapts 'layers.9.self_attn.q_proj.weight', and .* has no such weight",
        ),
    ],
)
def test_leftover_keys_are_refused_by_name(
    keys: dict[str, tuple[int, ...] | None],
    message: str,
    published: tuple[Path, Path],
    tiny_model: Path,
    tmp_path: Path,
) -> None:
    """By the encoder, and by a merge to files."""
    copy = tmp_path / "copy"
    shutil.copytree(published[0], copy)
    path = copy / "adapter_model.safetensors"
    tensors = load_file(path)
    for key, shape in keys.items():
        tensors.pop(key, None)
        if shape:
            tensors[key] = torch.zeros(shape)
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(BadInput, match=message):
        Encoder.from_pretrained(str(copy), device="cpu")
    with pytest.raises(BadInput, match=message):
        merge_weights(tiny_model, adapters=[read_adapter(copy)], dtype="fp32", out=tmp_path)


def test_a_base_that_is_not_there_is_named(
    published: tuple[Path, Path], tiny_model: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(published[0], copy)
    path = copy / "adapter_config.json"
    told = read_json(path)

    def upon(base: str) -> str:
        path.write_text(json.dumps({**told, "base_model_name_or_path": base}))
        return str(copy)

    with pytest.raises(BadInput, match="names its base '/gone', and model '/gone': no such folder"):
        chain_of(upon("/gone"))
    # As the error says: the base as the model, the folder as its adapter.
    chain = chain_of(str(tiny_model), adapters=[str(copy)])
    assert (chain.base.reference, chain.folders) == (str(tiny_model), (copy,))
    with pytest.raises(BadInput, match="more than 8 adapters upon each other"):
        chain_of(upon(str(copy)))
    with pytest.raises(BadInput, match=r"adapter .*tiny-mistral.*: no folder or hub name with an"):
        chain_of(upon(str(tiny_model)), adapters=[str(tiny_model)])
    with pytest.raises(BadInput, match=r"is an adapter; merge it .*python -m toolkit\.export"):
        resolve_model(str(copy))


def test_an_adapter_upon_an_adapter(published: tuple[Path, Path], tmp_path: Path) -> None:
    """A second adapter that names the first one's folder needs nobody to name both."""
    mntp, second = published
    copy = tmp_path / "copy"
    shutil.copytree(second, copy)
    told = read_json(copy / "adapter_config.json")
    write_json(copy / "adapter_config.json", {**told, "base_model_name_or_path": str(mntp)})
    found, named = chain_of(str(copy)), chain_of(str(mntp), adapters=[str(second)])
    assert (found.base, found.folders) == (named.base, (mntp, copy))
    assert found.tokenizer == named.tokenizer == ModelSource.of_folder(mntp)
    write_json(copy / "adapter_config.json", {**told, "use_rslora": True})
    assert read_adapter(copy).scale == 8 / 4**0.5 and read_adapter(second).scale == 8 / 4
