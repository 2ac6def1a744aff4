"""Layouts of published embedding models: the vectors are those of sentence-transformers.

Tiny models with random weights, saved by sentence-transformers itself, which is also what says what
their vectors are. Real texts of all lengths, longer ones than are read as well.
"""

import dataclasses
import functools
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from torch import nn
from transformers import AutoModel

from tests.conftest import QUICKSTART
from tests.encoding.conftest import embed
from toolkit import search
from toolkit.base.errors import BadInput
from toolkit.base.files import read_json, write_json
from toolkit.encoding.encoder import Encoder
from toolkit.encoding.store import VectorStore
from toolkit.model import pooling
from toolkit.model.adapters import chain_of
from toolkit.model.plain_path import OtherVectors
from toolkit.settings.schema import EncoderSettings
from toolkit.text.shards import open_shards
from toolkit.text.tokens import TextTokenizer

MAX_TOKENS = 96
WIDTH = 32
TOKENS = {"vocab_size": 8192, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}
SHAPE = {
    **TOKENS,
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 256,
}
GROUPED = {**SHAPE, "num_key_value_heads": 1}
WEB_PROMPT = "Instruct: Given a web search query, retrieve what answers it\nQuery:"
PROMPTS = {"query": WEB_PROMPT, "document": ""}

Vectors = NDArray[np.float32]
Layouts = Callable[[str], Path]


@dataclasses.dataclass(frozen=True)
class Layout:
    """A published layout. `around`: which tokens its tokenizer puts around a text."""

    config: Any
    modules: Callable[[], list[Any]]
    around: str = ""
    side: str = "right"
    options: dict[str, Any] = dataclasses.field(default_factory=dict)


def pooled(mode: Any, *steps: Any, include_prompt: bool = True) -> Callable[[], list[Any]]:
    return lambda: [Pooling(WIDTH, mode, include_prompt=include_prompt), *steps]


def gemma_modules() -> list[Any]:
    torch.manual_seed(1)
    first = Dense(WIDTH, 64, bias=False, activation_function=nn.Identity())
    second = Dense(64, WIDTH, bias=False, activation_function=nn.Identity())
    return [Pooling(WIDTH, "mean"), first, second, Normalize()]


def joined_modules() -> list[Any]:
    torch.manual_seed(2)
    modes = ("lasttoken", "max", "mean_sqrt_len_tokens")
    return [Pooling(WIDTH, modes), Dense(3 * WIDTH, 40), Normalize()]


LAYOUTS = {
    "qwen3_embedding": Layout(
        transformers.Qwen3Config(**GROUPED, head_dim=16),
        pooled("lasttoken", Normalize()),
        around="e",
        side="left",
        options={"prompts": PROMPTS},
    ),
    "e5_mistral": Layout(
        transformers.MistralConfig(**GROUPED, sliding_window=20),
        pooled("lasttoken", Normalize()),
        around="be",
        options={"prompts": {"web_search_query": WEB_PROMPT}},
    ),
    "embedding_gemma": Layout(
        transformers.Gemma3TextConfig(
            **GROUPED,
            head_dim=16,
            sliding_window=16,
            layer_types=["sliding_attention", "full_attention"],
            use_bidirectional_attention=True,
        ),
        gemma_modules,
        around="be",
        options={"prompts": {"query": "task: search result | query: "}},
    ),
    "llama_embed": Layout(
        transformers.LlamaConfig(**GROUPED, is_causal=False), pooled("mean"), around="b"
    ),
    "causal_mean": Layout(transformers.LlamaConfig(**GROUPED), pooled("mean"), around="b"),
    "sgpt": Layout(
        transformers.GPTNeoConfig(
            **TOKENS,
            hidden_size=WIDTH,
            intermediate_size=48,
            num_layers=2,
            num_heads=2,
            attention_types=[[["global", "local"], 1]],
            window_size=16,
            max_position_embeddings=256,
        ),
        pooled("weightedmean"),
    ),
    "sgpt_of_neox": Layout(transformers.GPTNeoXConfig(**SHAPE), pooled("weightedmean")),
    "instructor": Layout(
        transformers.MistralConfig(**GROUPED, sliding_window=None),
        pooled(("mean", "weightedmean", "cls"), include_prompt=False),
        around="be",
        options={"prompts": {"query": WEB_PROMPT}, "default_prompt_name": "query"},
    ),
    "joined": Layout(
        transformers.MistralConfig(**GROUPED, sliding_window=None), joined_modules, around="b"
    ),
    "bert_cls": Layout(
        transformers.BertConfig(**SHAPE), pooled("cls", Normalize()), around="be"
    ),
    "xlm_roberta_mean": Layout(
        transformers.XLMRobertaConfig(**SHAPE),
        pooled("mean", Normalize()),
        around="be",
        options={"prompts": {"query": "query: ", "passage": "passage: "}},
    ),
    "modernbert_cls": Layout(
        transformers.ModernBertConfig(
            **SHAPE, local_attention=16, global_attn_every_n_layers=2, cls_token_id=1,
            sep_token_id=2,
        ),
        pooled("cls"),
        around="be",
    ),
    "mpnet_mean": Layout(transformers.MPNetConfig(**SHAPE), pooled("mean"), around="be"),
}  # fmt: skip


def put_around(folder: Path, *, around: str, side: str) -> None:
    """Have the tokenizer put begin and end tokens around a text."""
    path = folder / "tokenizer.json"
    template = [{"Sequence": {"id": "A", "type_id": 0}}]
    pair = [*template, {"Sequence": {"id": "B", "type_id": 0}}]
    if "b" in around:
        template.insert(0, {"SpecialToken": {"id": "<s>", "type_id": 0}})
    if "e" in around:
        template.append({"SpecialToken": {"id": "</s>", "type_id": 0}})
    ids = {"<s>": 1, "</s>": 2}
    special = {text: {"id": text, "ids": [ids[text]], "tokens": [text]} for text in ids}
    processor = {
        "type": "TemplateProcessing", "single": template, "pair": pair, "special_tokens": special
    }  # fmt: skip
    write_json(path, {**read_json(path), "post_processor": processor if around else None})
    path = folder / "tokenizer_config.json"
    changes = {"padding_side": side, "model_max_length": MAX_TOKENS}
    write_json(path, {**read_json(path), **changes})


@pytest.fixture(scope="module")
def layouts(tmp_path_factory: pytest.TempPathFactory) -> Layouts:
    """The folder of a layout; each is made once, when it is first asked for."""
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = make(tmp_path_factory.mktemp(name), layout=LAYOUTS[name])
        return made[name]

    return folder


def make(place: Path, *, layout: Layout) -> Path:
    torch.manual_seed(0)
    model = AutoModel.from_config(layout.config)
    with torch.no_grad():  # random states of one size would all be alike after a norm
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.25 + (parameter.ndim == 1))
    model.save_pretrained(place / "base")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(QUICKSTART / "tiny-mistral" / name, place / "base" / name)
    put_around(place / "base", around=layout.around, side=layout.side)
    modules = [Transformer(str(place / "base")), *layout.modules()]
    whole = SentenceTransformer(modules=modules, device="cpu", **layout.options)
    whole.save(str(place / "model"), create_model_card=False)
    return place / "model"


@pytest.fixture(scope="module")
def texts(shards: Path) -> list[str]:
    """200 pieces of the shipped encyclopedia, from a word to more than is read."""
    opened = open_shards(shards, verify=False)
    lengths = [3, 12, 40, 90, 150, 300, 600, 1200]
    return [
        opened.text(number % opened.num_rows)[: lengths[number % 8] + number].strip()
        for number in range(200)
    ]


@functools.cache
def their_model(folder: Path) -> SentenceTransformer:
    return SentenceTransformer(str(folder), device="cpu", model_kwargs={"dtype": "float32"})


def theirs(folder: Path, texts: Sequence[str], **options: Any) -> Vectors:
    vectors: Vectors = their_model(folder).encode(list(texts), batch_size=50, **options)
    return vectors


def ours(folder: Path, **options: Any) -> Encoder:
    values = {"model": str(folder), "max_tokens": MAX_TOKENS, **options}
    return Encoder(EncoderSettings.model_validate(values), device=torch.device("cpu"))


def assert_same(found: Vectors, expected: Vectors, *, tolerance: float = 1e-4) -> None:
    assert found.shape == expected.shape
    lengths = np.linalg.norm(found, axis=1), np.linalg.norm(expected, axis=1)
    assert np.abs(lengths[0] / lengths[1] - 1).max() <= tolerance
    assert (np.vecdot(found, expected) / (lengths[0] * lengths[1])).min() >= 0.9999


@pytest.mark.parametrize("name", LAYOUTS)
def test_vectors_are_those_of_sentence_transformers(
    name: str, layouts: Layouts, texts: list[str]
) -> None:
    folder = layouts(name)
    encoder, expected = ours(folder), theirs(folder, texts)
    assert_same(encoder.encode(texts), expected)
    # With a prompt, too: declared ones by their names, and any other.
    prompts = LAYOUTS[name].options.get("prompts", {})
    for prompt in [*prompts, "Say it again: "]:
        options = {"prompt_name": prompt} if prompt in prompts else {"prompt": prompt}
        prompted = theirs(folder, texts[:24], **options)
        assert_same(ours(folder, prompt=prompt).encode(texts[:24]), prompted)
    if prompts and prompts[prompt := next(iter(prompts))]:
        prompted = theirs(folder, texts[:24], prompt_name=prompt)
        found = encoder.vectors_of(texts[:24], prompt=encoder.prompt_of(prompt, asked_by=""))
        assert_same(found, prompted)
        # An instruction takes the place of a prompt.
        assert_same(encoder.encode(texts[:24], prompt=prompts[prompt]), prompted)


PADDED = ("embedding_gemma", "sgpt", "bert_cls", "xlm_roberta_mean", "modernbert_cls", "mpnet_mean")


@pytest.mark.parametrize("name", [name for name in LAYOUTS if name not in PADDED])
def test_packed_rows_and_padded_ones_are_equal(
    name: str, layouts: Layouts, texts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    packed, padded = (ours(layouts(name), attention=how) for how in ("packed", "eager"))
    assert "are padded" not in capsys.readouterr().err
    found = packed.encode(texts[:80])
    assert np.abs(found - padded.encode(texts[:80])).max() <= 1e-5 * np.abs(found).max()


@pytest.mark.parametrize("name", PADDED)
def test_a_model_that_cannot_be_packed_is_padded_and_that_is_said(
    name: str, layouts: Layouts, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = layouts(name)
    ours(folder)
    said = f"{folder}: a model of this kind cannot be packed; texts are padded"
    assert said in capsys.readouterr().err


@pytest.fixture(scope="module")
def encoders(layouts: Layouts) -> list[Encoder]:
    return [ours(layouts(name)) for name in ("qwen3_embedding", "instructor", "embedding_gemma")]


@settings(max_examples=20)
@given(data=st.data())
def test_a_vector_depends_on_its_text_alone(
    data: st.DataObject, encoders: list[Encoder], texts: list[str]
) -> None:
    """Whatever batch, order, padding and neighbours."""
    encoder = data.draw(st.sampled_from(encoders))
    chosen = data.draw(st.lists(st.sampled_from([*texts[:40], ""]), min_size=1, max_size=12))
    rows = data.draw(st.integers(1, 12))
    found = encoder.encode(chosen, batch_size=rows)
    alone = np.stack([encoder.encode(text) for text in chosen])
    assert np.abs(found - alone).max() <= 1e-5 * max(1.0, np.abs(alone).max())


@pytest.mark.parametrize("name", ["e5_mistral", "embedding_gemma", "bert_cls"])
def test_bf16_is_proven_too(name: str, layouts: Layouts, texts: list[str]) -> None:
    found = ours(layouts(name), dtype="bf16").encode(texts[:40])
    assert np.vecdot(found, ours(layouts(name)).encode(texts[:40])).min() >= 0.95
    assert np.abs(np.linalg.norm(found, axis=1) - 1).max() <= 1e-5


def test_a_text_without_tokens_gets_the_zero_vector(layouts: Layouts) -> None:
    """Even if a Dense would give it its bias; special tokens around it are tokens."""
    folder = shutil.copytree(layouts("joined"), layouts("joined").parent / "bare")
    put_around(folder, around="", side="right")
    for attention in ("packed", "eager"):
        found = ours(folder, attention=attention).encode(["", "x", ""])
        assert not found[[0, 2]].any()
        assert found[1].any()
    assert_same(ours(layouts("joined")).encode(["", "x"]), theirs(layouts("joined"), ["", "x"]))


def test_another_pooling_can_be_asked_for(layouts: Layouts, texts: list[str]) -> None:
    folder = layouts("xlm_roberta_mean")
    for asked, mode in (("cls", "cls"), ("last", "lasttoken"), ("weighted_mean", "weightedmean"),
                        ("max", "max"), ("mean", "mean")):  # fmt: skip
        modules = [Transformer(str(folder)), Pooling(WIDTH, mode), Normalize()]
        expected = SentenceTransformer(modules=modules, device="cpu").encode(texts[:40])
        assert_same(ours(folder, pooling=asked).encode(texts[:40]), expected)
    # Of a plain decoder, too: as this layout, but for its last step.
    qwen = layouts("qwen3_embedding")
    plain = shutil.copytree(qwen, qwen.parent / "plain")
    (plain / "modules.json").unlink()
    found = ours(plain, pooling="last", causal=True).encode(texts[:40], normalize_embeddings=True)
    assert_same(found, theirs(qwen, texts[:40]))
    # A prompt of a plain decoder is an instruction, which is not pooled.
    prompted = ours(plain, prompt="Say: ").encode(texts[:10])
    assert np.array_equal(prompted, ours(plain).encode(texts[:10], prompt="Say: "))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "sgpt_of_neox",
            {"pooling": "last"},
            "none after a text; valid: auto, mean, cls, weighted",
        ),
        ("sgpt_of_neox", {"pooling": "cls"}, "none before a text; valid: auto, mean, last, weight"),
        ("causal_mean", {"pooling": "last"}, "encoder.pooling=last: takes the state of a special"),
        ("joined", {"pooling": "mean"}, "Dense takes vectors of 96 numbers, and gets 32"),
        ("qwen3_embedding", {"prompt": "passage"}, "valid: 'document', 'query', or a text that"),
        (
            "sgpt",
            {"prompt": "ask"},
            "encoder.prompt='ask': the model declares no prompt of that name",
        ),
        ("qwen3_embedding", {"max_tokens": 97}, "cut at 96 tokens .*; give at most 96"),
        ("qwen3_embedding", {"max_tokens": 8, "prompt": "query"}, "an instruction of .* fills"),
    ],
)
def test_what_a_folder_cannot_do_is_refused(
    name: str, options: dict[str, Any], message: str, layouts: Layouts
) -> None:
    with pytest.raises(BadInput, match=message):
        ours(layouts(name), **options)


def test_a_last_token_that_is_the_texts_own_is_said(
    layouts: Layouts, capsys: pytest.CaptureFixture[str]
) -> None:
    ours(layouts("joined"))
    assert "pools the last token, and its tokenizer puts no end" in capsys.readouterr().err
    ours(layouts("e5_mistral"))
    said = capsys.readouterr().err
    assert "no end token" not in said
    assert "declares prompts (web_search_query), none of them as the default" in said


@pytest.mark.parametrize("fault", ["pooling", "tokens"])
def test_the_proof_finds_other_vectors(
    fault: str, layouts: Layouts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the pooling is another one, or a token is missing."""
    if fault == "pooling":
        monkeypatch.setitem(pooling._POOLINGS, "lasttoken", pooling._first)
    else:
        whole = TextTokenizer.encode
        monkeypatch.setattr(
            TextTokenizer, "encode", lambda self, texts: [row[:-1] for row in whole(self, texts)]
        )
    with pytest.raises(OtherVectors, match="differ from those that its folder declares"):
        ours(layouts("qwen3_embedding"))


def test_encodings_of_before_keep_their_identity_and_no_two_mix(layouts: Layouts) -> None:
    qwen, plain = layouts("qwen3_embedding"), layouts("sgpt_of_neox")

    def identity(folder: Path, **options: Any) -> tuple[str, str]:
        asked = EncoderSettings.model_validate({"model": str(folder), "max_tokens": 96, **options})
        digest = chain_of(str(folder)).rules(asked).digest("d" * 64)
        return digest, json.dumps(asked.facts(), sort_keys=True)

    bare = shutil.copytree(qwen, qwen.parent / "bare")
    (bare / "modules.json").unlink()
    asked = EncoderSettings(model=str(bare), max_tokens=96)
    assert identity(bare)[0] == identity(bare, causal=True)[0] == "d" * 64
    assert set(asked.facts()) == {"max_tokens", "dtype", "attention", "causal"}
    made = [
        *(identity(folder) for folder in (qwen, bare, plain)),
        *(identity(folder, causal=True) for folder in (bare, plain)),
        *(identity(qwen, prompt=prompt) for prompt in ("query", "Say: ")),
        *(identity(qwen, pooling=pooling) for pooling in ("last", "max")),
        identity(bare, prompt="Say: "),
        identity(bare, pooling="weighted_mean"),
    ]
    # The causality of `plain` is declared: to ask for it is another setting, with equal vectors.
    assert len(set(made)) == len(made)
    # The folder says other things: a prompt of the same name, another Dense.
    gemma = layouts("embedding_gemma")
    before = identity(gemma), identity(gemma, prompt="query")
    path = gemma / "config_sentence_transformers.json"
    whole = read_json(path)
    write_json(path, {**whole, "prompts": {"query": "ask: "}})
    assert identity(gemma) == before[0]
    assert identity(gemma, prompt="query") != before[1]
    write_json(path, whole)
    file = gemma / "3_Dense" / "model.safetensors"
    weights = file.read_bytes()
    file.write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    assert identity(gemma) != before[0]
    file.write_bytes(weights)


def test_a_corpus_is_embedded_and_searched_by_the_same_rules(
    layouts: Layouts, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, output = layouts("qwen3_embedding"), tmp_path / "out"
    inputs = f"encoder.model={folder}", f"corpus.input={shards}", "encoder.max_tokens=48"
    embed(output, *inputs)
    opened, store = open_shards(shards, verify=False), VectorStore(output)
    model = SentenceTransformer(str(folder), device="cpu", model_kwargs={"dtype": "float32"})
    model.max_seq_length = 48
    some = list(range(0, opened.num_rows, max(1, opened.num_rows // 40)))
    assert_same(store.read(some), model.encode([opened.text(row) for row in some]))
    with pytest.raises(BadInput, match="holds an encoding of another model and encoder"):
        embed(output, *inputs, "encoder.prompt=query")
    query = "who built the canal?"
    capsys.readouterr()
    for options, prompt in ((["--prompt", "query"], "query"), ([], None)):
        assert search.main([str(output), query, "--top", "1", "--json", *options]) == 0
        (hit,) = json.loads(capsys.readouterr().out)["hits"]
        (vector,) = model.encode([query], prompt_name=prompt)
        best = max(float(vector @ row) for row in store.read(slice(0, store.num_rows)))
        assert hit["score"] == pytest.approx(best, abs=1e-4)
    assert search.main([str(output), query, "--prompt", "passage"]) == 2
    assert "--prompt 'passage': the model declares no prompt of that" in capsys.readouterr().err
    both = ["--prompt", "query", "--instruction", "x"]
    assert search.main([str(output), query, *both]) == 2
    assert "--prompt and --instruction: both stand before" in capsys.readouterr().err


def test_chunks_have_no_prompt(layouts: Layouts, shards: Path, tmp_path: Path) -> None:
    inputs = "corpus.chunk_tokens=12", f"corpus.input={shards}", "encoder.max_tokens=48"
    with pytest.raises(BadInput, match="chunks have no prompt, and this encoder puts 'query' bef"):
        embed(tmp_path, *inputs, f"encoder.model={layouts('e5_mistral')}", "encoder.prompt=query")
    with pytest.raises(BadInput, match=r'this encoder puts .Instruct.* give encoder\.prompt=""'):
        embed(tmp_path, *inputs, f"encoder.model={layouts('instructor')}")
