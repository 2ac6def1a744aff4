"""The plan of an embedding, beside what a real one has: tokens, rows, bytes, FLOPs, indexes."""

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoModel,
    AutoTokenizer,
    BertConfig,
    GPTNeoXConfig,
    MistralConfig,
    Qwen3Config,
)

from tests.encoding.conftest import embed
from tests.encoding.making import output_of, write_all
from toolkit import plan
from toolkit.encoding.forecast import SAMPLE_ROWS, forecast, strata_of, total_of
from toolkit.encoding.index import KINDS, build_index
from toolkit.encoding.store import VectorStore
from toolkit.runs.estimate import forward_flops
from toolkit.runs.shapes import read_shape
from toolkit.settings.recipes import load_recipe
from toolkit.settings.schema import EmbedRecipe
from toolkit.text.shards import open_shards


def recipe_of(*overrides: str) -> EmbedRecipe:
    recipe = load_recipe("tiny_embed", overrides=list(overrides))
    assert isinstance(recipe, EmbedRecipe)
    return recipe


@pytest.fixture(scope="module")
def lengths(tiny_model: Path, shards: Path) -> list[int]:
    """The tokens of every text of the encyclopedia, by transformers."""
    tokenizer, opened = AutoTokenizer.from_pretrained(tiny_model), open_shards(shards)
    return [len(tokenizer(opened.text(row))["input_ids"]) for row in range(len(opened))]


def test_a_corpus_that_is_read_whole_is_counted_exactly(
    inputs: tuple[str, str], lengths: list[int]
) -> None:
    found = forecast(recipe_of(*inputs, "encoder.max_tokens=40"))
    cut = [min(length, 40) for length in lengths]
    assert (found.texts, found.sampled) == (len(cut), len(cut))
    assert len(cut) < SAMPLE_ROWS
    assert found.tokens.value == pytest.approx(sum(cut))
    assert found.squares.value == pytest.approx(sum(length**2 for length in cut))
    assert found.cut.value == pytest.approx(sum(length >= 40 for length in lengths))
    assert found.tokens.error == found.rows.error == 0
    assert found.rows.value == pytest.approx(len(cut))


@pytest.mark.parametrize(
    ("form", "context"), [("fp32", "chunk"), ("int8", "document"), ("binary", "chunk")]
)
def test_chunks_and_disk_are_those_of_a_real_encoding(
    form: str,
    context: str,
    inputs: tuple[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = (*inputs, "encoder.max_tokens=48", "corpus.chunk_tokens=24", f"vectors={form}")
    settings = (*settings, "corpus.chunk_overlap=4", "corpus.unit_rows=4096")
    settings = (*settings, f"corpus.chunk_context={context}")
    embed(tmp_path / "encoding", *settings)
    store = VectorStore(tmp_path / "encoding")
    tokens = re.search(r"rows, ([\d,]+) tokens in", capsys.readouterr().out)
    assert tokens
    recipe = recipe_of(*settings)
    found = forecast(recipe)
    assert found.rows.value == pytest.approx(store.num_rows)
    assert found.tokens.value == pytest.approx(int(tokens[1].replace(",", "")))
    assert found.width == store.width
    files = [p for p in (tmp_path / "encoding" / "units").iterdir() if p.suffix != ".json"]
    assert found.disk()[recipe.vectors] == pytest.approx(
        sum(file.stat().st_size for file in files), rel=0.1
    )
    assert len(found.disk()) == 5


def test_a_sample_says_how_far_it_may_be_off(inputs: tuple[str, str], lengths: list[int]) -> None:
    found = forecast(recipe_of(*inputs, "encoder.max_tokens=512"), sample_rows=50)
    assert found.sampled < len(lengths) / 2
    assert found.tokens.error > 0
    assert abs(found.tokens.value - sum(lengths)) < 3 * found.tokens.error
    again = forecast(recipe_of(*inputs, "encoder.max_tokens=512"), sample_rows=50)
    assert again == found


def test_its_error_holds_for_texts_of_very_different_lengths() -> None:
    """Log-normal lengths: a tenth of the texts has most of the characters."""
    within = 0
    for seed in range(60):
        draw = np.random.default_rng(seed)
        chars_N = draw.lognormal(6, 1.8, size=4000).astype(np.int64) + 1
        tokens_N = chars_N * draw.uniform(0.15, 0.4, size=4000)
        strata = strata_of(chars_N, sample_rows=500)
        assert sum(stratum.size for stratum in strata) == 4000
        drawn = [row for stratum in strata for row in stratum.drawn]
        assert len(set(drawn)) == len(drawn) <= 500
        found = total_of(strata, {row: float(tokens_N[row]) for row in drawn})
        assert found.error < 0.02 * tokens_N.sum()
        within += abs(found.value - tokens_N.sum()) <= 2 * found.error
    assert within >= 50  # of 60; 57 are expected


def test_the_memory_of_an_index_is_that_of_faiss(inputs: tuple[str, str], tmp_path: Path) -> None:
    found = dataclasses.replace(forecast(recipe_of(*inputs)), width=64)
    vectors = np.random.default_rng(0).standard_normal((found.texts, 64), dtype=np.float32)
    write_all(output_of(tmp_path / "enc", rows=found.texts, unit_rows=50), vectors)
    store = VectorStore(tmp_path / "enc")
    for kind in KINDS:
        record = build_index(store, kind=kind)
        assert found.indexes()[kind] == pytest.approx(record.bytes, rel=0.1), kind


SMALL = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 300,
}


@pytest.mark.parametrize(
    "config",
    [
        MistralConfig(**SMALL, num_key_value_heads=2),
        Qwen3Config(**SMALL, num_key_value_heads=2, head_dim=64),  # heads wider than the states
        BertConfig(**SMALL),  # two maps after the attention, not three
        GPTNeoXConfig(**SMALL),
    ],
    ids=lambda config: config.model_type,
)
def test_flops_are_those_that_torch_counts(config: Any) -> None:
    model = AutoModel.from_config(config, attn_implementation="eager")
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model(input_ids=torch.arange(200).unsqueeze(0))
    shape = read_shape(json.loads(config.to_json_string(use_diff=False)))
    assert 200 * forward_flops(shape, attended=200) == pytest.approx(
        counter.get_total_flops(), rel=0.02
    )


def test_the_door(
    tiny_model: Path, shards: Path, lengths: list[int], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Without weights; time and cost by hand."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    asked = ["tiny_embed", f"encoder.model={folder}", f"corpus.input={shards}"]
    asked += ["encoder.max_tokens=512", "--tokens-per-s", "10", "--gpus-per-node", "4"]
    assert plan.main([*asked, "--nodes", "2", "--price", "3"]) == 0
    said = capsys.readouterr().out
    tokens = sum(min(length, 512) for length in lengths)
    hours = tokens / 10 / 8 / 3600
    assert hours < 1
    assert f"time: {60 * hours:.2g} min on 8 x process, each 10 tokens/s (as given;" in said
    assert f"cost: {3 * 8 * hours:,.2f} in all, {3 / 10 / 3600 * 1e9:,.2f} per billion" in said
    assert re.search(r"disk, with ids: fp32 [\d.]+ kB, fp16 [\d.]+ kB, bf16", said)
    assert re.search(r"memory of an index: flat [\d.]+ kB, ivf", said)
    assert plan.main(asked[:3]) == 0
    assert "(45% of its peak; " in capsys.readouterr().out
    rates = []
    for given in (["encoder.dtype=bf16"], ["encoder.fp8=true"]):
        assert plan.main([*asked[:3], *given, "--gpu", "h100"]) == 0
        found = re.search(r"each ([\d,]+) tokens/s", capsys.readouterr().out)
        assert found
        rates.append(int(found[1].replace(",", "")))
    assert rates[1] == pytest.approx(2 * rates[0], abs=2)


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        (["--price", "-1"], "--price -1.0: more than 0"),
        (["--tokens-per-s", "nan"], "--tokens-per-s nan: more than 0"),
        (["--sample", "0"], "--sample 0: more than 0"),
        (["encoder.fp8=true", "--gpu", "a100"], "--gpu a100 has no products of 8 bits; b200, h100"),
        (["corpus.chunk_overlap=3"], "needs corpus.chunk_tokens"),
        (["dims=100000"], "tiny-mistral have 256 numbers"),
        (["corpus.input=/no/such"], "/no/such"),
        (["encoder.model=/no/such"], "/no/such"),
        (["reuse=/no/such"], "/no/such: is not an encoding"),
        (["output_dir=/no/such", "reuse=/no/such"], "is the output_dir itself"),
    ],
)
def test_what_it_cannot_plan(
    asked: list[str], why: str, inputs: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert plan.main(["tiny_embed", *inputs, *asked]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert why in line
