"""A GGUF file, written here as llama.cpp's converter does, becomes the model it was made of."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter, TokenType, quantize
from numpy.typing import NDArray
from tokenizers import ByteLevelBPETokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from data_scripts import convert_gguf

HEADS, KEY_HEADS, WIDTH, LAYERS, VOCABULARY = 4, 2, 64, 2, 400
TEXTS = [f"The river number {n} flows to the sea, past {n * 7} hills." for n in range(50)]
TYPES = {"F32": GGMLQuantizationType.F32, "Q8_0": GGMLQuantizationType.Q8_0}


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=128,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KEY_HEADS,
        max_position_embeddings=256,
        rope_parameters={"rope_type": "default", "rope_theta": 50000.0},
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def bpe(tmp_path_factory: pytest.TempPathFactory) -> ByteLevelBPETokenizer:
    made = ByteLevelBPETokenizer()
    made.train_from_iterator(TEXTS, vocab_size=300, special_tokens=["<s>", "</s>"])
    return made


def interleaved(weight: NDArray[Any], *, heads: int) -> NDArray[Any]:
    """The rows of a projection in llama.cpp's order, which rotates neighbours, not halves."""
    halves = weight.reshape(heads, 2, -1, weight.shape[1])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def write(
    path: Path,
    model: LlamaForCausalLM,
    bpe: ByteLevelBPETokenizer,
    *,
    kind: str = "F32",
    architecture: str = "llama",
    left_out: str = "",
    num_tokens: int = 300,
) -> Path:
    """A file of the model's weights, matrices of type `kind`."""
    config = model.config
    writer = GGUFWriter(path, architecture)
    writer.add_name("a river model")
    writer.add_license("apache-2.0")
    writer.add_block_count(LAYERS)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_HEADS)
    writer.add_rope_freq_base(50000.0)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(VOCABULARY)
    told = json.loads(bpe._tokenizer.to_str())["model"]
    tokens = sorted(told["vocab"], key=told["vocab"].get)
    tokens += [f"<unused{n}>" for n in range(num_tokens - len(tokens))]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.CONTROL] * 2 + [TokenType.NORMAL] * (len(tokens) - 2))
    writer.add_token_merges([" ".join(pair) for pair in told["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_chat_template("{{ messages }}")
    names = {"embed_tokens": "token_embd", "lm_head": "output", "norm": "output_norm"}
    parts = {
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    for layer in range(LAYERS):
        names |= {f"layers.{layer}.{ours}": f"blk.{layer}.{its}" for ours, its in parts.items()}
    for key, tensor in model.state_dict().items():
        name = names[key.removeprefix("model.").removesuffix(".weight")] + ".weight"
        weight = tensor.numpy()
        if "attn_q" in name or "attn_k" in name:
            weight = interleaved(weight, heads=HEADS if "attn_q" in name else KEY_HEADS)
        if name == left_out:
            continue
        if weight.ndim == 2 and kind == "Q8_K":  # a type of intermediate results
            raw = np.zeros((len(weight), 292), dtype=np.uint8)
            writer.add_tensor(name, raw, raw_dtype=GGMLQuantizationType.Q8_K)
        elif weight.ndim == 2:
            writer.add_tensor(name, quantize(weight, TYPES[kind]), raw_dtype=TYPES[kind])
        else:
            writer.add_tensor(name, weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(("kind", "dtype"), [("F32", "fp32"), ("Q8_0", "fp32"), ("F32", "bf16")])
def test_the_folder_is_the_model_that_the_file_was_made_of(
    kind: str, dtype: str, model: LlamaForCausalLM, bpe: ByteLevelBPETokenizer, tmp_path: Path
) -> None:
    file, out = write(tmp_path / "a.gguf", model, bpe, kind=kind), tmp_path / "out"
    assert convert_gguf.main([str(file), "--output", str(out), "--dtype", dtype]) == 0
    loaded = AutoModelForCausalLM.from_pretrained(out)
    assert loaded.dtype == {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
    assert not hasattr(loaded.config, "quantization_config")
    assert loaded.config.rope_parameters["rope_theta"] == 50000.0
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.chat_template is None
    for text in TEXTS[:5]:
        assert tokenizer(text)["input_ids"] == bpe.encode(text).ids
        ids_BT = torch.tensor([bpe.encode(text).ids])
        with torch.no_grad():
            wanted, found = model(ids_BT).logits, loaded.float()(ids_BT).logits
        cosine = torch.nn.functional.cosine_similarity(wanted, found, dim=-1)
        assert float(cosine.min()) > {"F32fp32": 1 - 1e-6}.get(kind + dtype, 0.999)
    record = json.loads((out / "gguf.json").read_text())
    assert (record["file"], record["name"], record["license"]) == (
        "a.gguf",
        "a river model",
        "apache-2.0",
    )
    modes = {path.stat().st_mode for path in out.iterdir()}
    assert len(modes) == 1, "all files can be read by whoever can read one"


def test_weights_that_are_shared_are_written_once(
    model: LlamaForCausalLM, bpe: ByteLevelBPETokenizer, tmp_path: Path
) -> None:
    """A file without a head has the embedding for one."""
    file = write(tmp_path / "a.gguf", model, bpe, left_out="output.weight")
    assert convert_gguf.main([str(file), "--output", str(tmp_path / "out")]) == 0
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert loaded.config.tie_word_embeddings
    assert torch.equal(loaded.lm_head.weight, model.model.embed_tokens.weight)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"architecture": "clip"}, "architecture 'clip' cannot be read; valid: "),
        ({"kind": "Q8_K"}, "Q8_K is a quantisation that the package gguf cannot undo"),
        ({"left_out": "blk.1.ffn_up.weight"}, "1 weights are missing (model.layers.1.mlp.up_proj"),
        ({"num_tokens": 500}, "the tokenizer has 500 tokens, and the model vectors of 400 only"),
    ],
)
def test_a_file_that_cannot_be_converted_is_refused(
    fault: dict[str, Any],
    message: str,
    model: LlamaForCausalLM,
    bpe: ByteLevelBPETokenizer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = write(tmp_path / "a.gguf", model, bpe, **fault)
    assert convert_gguf.main([str(file), "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert f"error: {file}: " in error and message in error
    assert [path.name for path in tmp_path.iterdir()] == ["a.gguf"]


@pytest.mark.parametrize("share", [0.001, 0.01, 0.05, 0.3, 0.6, 0.999])
def test_a_file_that_is_cut_off_is_refused(
    share: float,
    model: LlamaForCausalLM,
    bpe: ByteLevelBPETokenizer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = write(tmp_path / "a.gguf", model, bpe)
    data = file.read_bytes()
    file.write_bytes(data[: int(share * len(data))])
    assert convert_gguf.main([str(file), "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert f"error: {file}: is cut off" in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [b"", b"GGML", b"PK\x03\x04 a wheel"])
def test_what_is_no_gguf_file_is_refused(
    content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "a.gguf"
    file.write_bytes(content)
    assert convert_gguf.main([str(file), "--output", str(tmp_path / "out")]) == 2
    assert f"error: {file}: is no GGUF file" in capsys.readouterr().err
    file.unlink()
    assert convert_gguf.main([str(file), "--output", str(tmp_path / "out")]) == 2
    assert f"error: {file}: cannot be read (No such file" in capsys.readouterr().err
