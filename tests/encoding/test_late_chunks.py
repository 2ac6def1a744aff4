"""Late chunks: a chunk's vector is pooled of its tokens' states in its whole document.

What they are compared with reads one window of one document at a time with plain transformers, and
takes the states of a chunk by the tokenizer's offsets.
"""

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoTokenizer

from tests.conftest import QUICKSTART, contents
from tests.encoding.company import company_changes_bits
from tests.encoding.conftest import embed
from tests.encoding.test_encode import array_task
from tests.text.making import shard_articles
from toolkit import encode, search
from toolkit.base.errors import BadInput
from toolkit.base.files import read_json, write_json
from toolkit.encoding.chunks import chunks_of
from toolkit.encoding.encoder import Encoder
from toolkit.encoding.forecast import forecast
from toolkit.encoding.late_chunks import windows_of
from toolkit.encoding.parquet import write_parquet
from toolkit.encoding.store import VectorStore
from toolkit.encoding.units import ChunkRules
from toolkit.settings.recipes import load_recipe
from toolkit.settings.schema import EmbedRecipe, EncoderSettings
from toolkit.text.records import Article

MAX_TOKENS, SIZE, OVERLAP = 48, 12, 3
CHUNKS = (f"corpus.chunk_tokens={SIZE}", f"corpus.chunk_overlap={OVERLAP}")
LATE = (*CHUNKS, "corpus.chunk_context=document", f"encoder.max_tokens={MAX_TOKENS}")
WIDTH = 32
SHAPE = {
    "vocab_size": 8192,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 3,
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 256,
}
# No two tokens share a character, so that offsets alone say which tokens a chunk has.
RIVER = "The canal joins two rivers, and boats go from the north to the south."
GARDEN = "In spring the garden behind the mill is full of red roses and of bees."
TEXTS = (
    "A short text.",
    f"{RIVER} {GARDEN}",
    f"{RIVER} " * 9,
    f"{RIVER} {GARDEN} A train crosses the cold valley at night. " * 2,
    "\u2800",
    f"{GARDEN} " * 4 + RIVER,
)

Vectors = NDArray[np.float32]


@dataclasses.dataclass(frozen=True)
class Family:
    """A model with random weights; one with a `pooling` declares its modules, as a folder of
    sentence-transformers. `around`: the ids that its tokenizer puts before and after a text."""

    config: Any = None
    around: tuple[tuple[int, ...], tuple[int, ...]] = ((1,), ())
    pooling: str = ""
    dense: bool = False
    unit_length: bool = False
    asked: tuple[str, ...] = ()
    causal: bool = False
    prompt: str = ""
    pools: str = "mean"


BOTH = ((1,), (2,))
FAMILIES = {
    "mistral, bidirectional": Family(),
    "mistral, causal": Family(asked=("encoder.causal=true",), causal=True),
    "mistral, padded": Family(asked=("encoder.attention=sdpa",)),
    "mistral, prompt": Family(
        asked=("encoder.prompt='Represent the passage: '",), prompt="Represent the passage: "
    ),
    "llama, causal": Family(
        transformers.LlamaConfig(**SHAPE, num_key_value_heads=1), pooling="mean", causal=True
    ),
    "gpt-neox, weighted": Family(
        transformers.GPTNeoXConfig(**SHAPE),
        around=((), ()),
        pooling="weightedmean",
        causal=True,
        pools="weightedmean",
    ),
    "gemma 3 with Dense": Family(
        transformers.Gemma3TextConfig(
            **SHAPE,
            head_dim=16,
            num_key_value_heads=1,
            sliding_window=16,
            layer_types=["sliding_attention", "full_attention"],
            use_bidirectional_attention=True,
        ),
        around=BOTH,
        pooling="mean",
        dense=True,
        unit_length=True,
    ),
    "xlm-roberta, prompt": Family(
        transformers.XLMRobertaConfig(**SHAPE),
        around=BOTH,
        pooling="mean",
        unit_length=True,
        asked=("encoder.prompt=passage",),
        prompt="passage: ",
    ),
    "bert, max": Family(
        transformers.BertConfig(**SHAPE),
        around=BOTH,
        pooling="cls",
        asked=("encoder.pooling=max",),
        pools="max",
    ),
    "modernbert": Family(
        transformers.ModernBertConfig(
            **SHAPE,
            local_attention=16,
            global_attn_every_n_layers=2,
            cls_token_id=1,
            sep_token_id=2,
        ),
        around=BOTH,
        pooling="mean",
    ),
}


def article(number: int, text: str) -> Article:
    return Article(id=f"d{number}", title=f"T{number}", url="", text=text)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    articles = [article(number, text.strip()) for number, text in enumerate(TEXTS)]
    return shard_articles(articles, output=tmp_path_factory.mktemp("late") / "shards")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Callable[[str], Path]:
    """The folder of a family's model; each is made once."""
    place = tmp_path_factory.mktemp("models")

    def folder(name: str) -> Path:
        family, out = FAMILIES[name], place / name
        if family.config is None:
            return tiny_model
        return out if out.is_dir() else make(out, family=family)

    return folder


def make(out: Path, *, family: Family) -> Path:
    torch.manual_seed(0)
    model = AutoModel.from_config(family.config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.25 + (parameter.ndim == 1))
    model.save_pretrained(out)
    shutil.copyfile(
        QUICKSTART / "tiny-mistral" / "tokenizer_config.json", out / "tokenizer_config.json"
    )
    tokens = {1: "<s>", 2: "</s>"}
    before, after = (
        [{"SpecialToken": {"id": tokens[one], "type_id": 0}} for one in some]
        for some in family.around
    )
    single = [*before, {"Sequence": {"id": "A", "type_id": 0}}, *after]
    special = {text: {"id": text, "ids": [n], "tokens": [text]} for n, text in tokens.items()}
    processor = {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [*single, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": special,
    }
    whole = read_json(QUICKSTART / "tiny-mistral" / "tokenizer.json")
    write_json(out / "tokenizer.json", {**whole, "post_processor": processor})
    modules = [("Transformer", "", {}), ("Pooling", "1", {"pooling_mode": family.pooling})]
    if family.dense:
        modules.append(("Dense", "2", {"in_features": WIDTH, "out_features": 40}))
    if family.unit_length:
        modules.append(("Normalize", "3", {}))
    for _, path, settings in modules[1:]:
        (out / path).mkdir()
        write_json(out / path / "config.json", settings)
    if family.dense:
        tensors = {"linear.weight": torch.randn(40, WIDTH) * 0.1, "linear.bias": torch.randn(40)}
        save_file(tensors, out / "2" / "model.safetensors")
    listed = [{"type": f"sentence_transformers.models.{k}", "path": p} for k, p, _ in modules]
    write_json(out / "modules.json", listed)
    prompts = {"prompts": {"passage": "passage: "}}
    write_json(out / "config_sentence_transformers.json", prompts)
    return out


class Oracle:
    """The vectors of chunks by plain transformers, one window at a time."""

    def __init__(self, folder: Path, *, family: Family) -> None:
        config = AutoConfig.from_pretrained(folder)
        if family.config is None:
            config.is_causal = family.causal
        self._model = AutoModel.from_pretrained(folder, config=config, dtype=torch.float32).eval()
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self._folder, self._family = folder, family

    @torch.inference_mode()
    def vectors(self, text: str, facts: list[dict[str, Any]]) -> Iterator[Vectors]:
        """The vector of each chunk of a text, given its rows."""
        family, num_chars = self._family, len(self._family.prompt)
        found = self._tokenizer(
            family.prompt + text, add_special_tokens=False, return_offsets_mapping=True
        )
        tokens = list(zip(found["input_ids"], found["offset_mapping"], strict=True))
        prompt = [one for one, (_, end) in tokens if end <= num_chars]
        # The text's first token may begin with the blank that ends the prompt.
        own = [
            (one, max(0, b - num_chars), e - num_chars) for one, (b, e) in tokens if e > num_chars
        ]
        before, after = family.around
        room = MAX_TOKENS - len(before) - len(prompt) - len(after)
        size = SIZE - len(before) - len(after)
        margin = min(room // 4, (room - size) // 2)
        first_of: dict[int, int] = {}  # the first token of each window
        for fact in facts:
            places = [
                place
                for place, (_, b, e) in enumerate(own)
                if fact["begin"] <= b and e <= fact["end"]
            ]
            begin = max(0, min(places[0] - margin, len(own) - room))
            begin = first_of.setdefault(fact["window"], begin)
            ids = [*before, *prompt, *(one for one, _, _ in own[begin : begin + room]), *after]
            states = self._model(torch.tensor([ids])).last_hidden_state[0].double().numpy()
            yield self._pooled(states, [len(before) + len(prompt) + p - begin for p in places])

    def _pooled(self, states: NDArray[np.float64], places: list[int]) -> Vectors:
        some = states[places]
        if self._family.pools == "max":
            vector = some.max(axis=0)
        else:
            weighted = self._family.pools == "weightedmean"
            weights = [place + 1.0 if weighted else 1.0 for place in places]
            vector = np.average(some, axis=0, weights=weights)
        if self._family.dense:
            stored = load_file(self._folder / "2" / "model.safetensors")
            weight, bias = (stored[f"linear.{one}"].double().numpy() for one in ("weight", "bias"))
            vector = np.tanh(weight @ vector + bias)
        if self._family.unit_length:
            vector = vector / np.linalg.norm(vector)
        return np.asarray(vector, dtype=np.float32)


def rows_of(store: VectorStore) -> list[dict[str, Any]]:
    facts: list[dict[str, Any]] = store.facts(slice(None)).to_pylist()
    return facts


def inputs_of(folder: Path, corpus: Path) -> tuple[str, ...]:
    return f"encoder.model={folder}", f"corpus.input={corpus}", "corpus.unit_rows=9", *LATE


@pytest.mark.parametrize("name", FAMILIES)
def test_late_chunks_are_those_of_plain_transformers(
    name: str, models: Callable[[str], Path], corpus: Path, tmp_path: Path
) -> None:
    family, folder = FAMILIES[name], models(name)
    embed(tmp_path / "out", *inputs_of(folder, corpus), *family.asked)
    store = VectorStore(tmp_path / "out", verify=True)
    facts, oracle = rows_of(store), Oracle(folder, family=family)
    most = 0
    for row in range(len(TEXTS)):
        mine = [n for n, fact in enumerate(facts) if fact["row"] == row]
        some = [facts[n] for n in mine]
        most = max(most, some[-1]["window"])
        expected = np.stack(list(oracle.vectors(TEXTS[row].strip(), some)))
        scale = max(1.0, float(np.abs(expected).max()))
        assert np.abs(store.read(mine) - expected).max() <= 1e-5 * scale
    assert most >= 4
    fits = [fact["window"] for fact in facts if fact["row"] == 1]
    assert len(fits) >= 4
    assert {*fits} == {0}


@given(
    num_tokens=st.integers(0, 400),
    room=st.integers(4, 90),
    data=st.data(),
)
def test_every_chunk_has_a_margin_in_its_window(
    num_tokens: int, room: int, data: st.DataObject
) -> None:
    size = data.draw(st.integers(3, room))
    step = data.draw(st.integers(size // 2, size))
    starts = range(0, max(1, num_tokens - size + step), step)
    spans = [(start, min(start + size, num_tokens)) for start in starts]
    begins, window_of = windows_of(spans, num_tokens=num_tokens, room=room)
    assert sorted({*begins}) == begins
    assert window_of == sorted(window_of)
    assert {*window_of} == {*range(len(begins))}
    if num_tokens <= room:
        assert begins == [0]
    margin = min(room // 4, (room - size) // 2)
    for (start, stop), window in zip(spans, window_of, strict=True):
        begin, end = begins[window], min(begins[window] + room, num_tokens)
        assert begin == 0 or end - begin == room, "no window is shorter than it must be"
        assert begin <= max(0, start - margin)
        assert end >= min(num_tokens, stop + margin)
    least = room - 2 * margin - size + 1  # by which each window is behind the one before
    assert len(begins) <= 1 + -(-max(0, num_tokens - room) // least)


def test_windows_by_hand() -> None:
    """Of 100 tokens in chunks of 10, read 40 at a time: a margin of 10 on both sides."""
    spans = [(start, start + 10) for start in range(0, 100, 10)]
    begins, window_of = windows_of(spans, num_tokens=100, room=40)
    assert begins == [0, 20, 40, 60]
    assert window_of == [0, 0, 0, 1, 1, 2, 2, 3, 3, 3]
    assert windows_of(spans, num_tokens=100, room=100) == ([0], [0] * 10)
    assert windows_of(spans, num_tokens=100, room=10)[0] == list(range(0, 100, 10))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, corpus: Path) -> Path:
    output = tmp_path_factory.mktemp("late") / "encoding"
    embed(output, *inputs_of(tiny_model, corpus), "corpus.unit_rows=3")
    return output


def encoder_of(model: Path, **changes: object) -> Encoder:
    values = {"model": str(model), "max_tokens": MAX_TOKENS, **changes}
    return Encoder(EncoderSettings.model_validate(values), device=torch.device("cpu"))


def test_the_chunks_are_those_that_are_read_alone_with_a_window(
    made: Path, tiny_model: Path, corpus: Path, tmp_path: Path
) -> None:
    alone = ["corpus.chunk_context=chunk", "corpus.unit_rows=3"]
    embed(tmp_path / "alone", *inputs_of(tiny_model, corpus), *alone)
    late, chunks = VectorStore(made, verify=True), VectorStore(tmp_path / "alone")
    assert late.manifest["chunks"] == {"tokens": SIZE, "overlap": OVERLAP, "context": "document"}
    assert chunks.manifest["chunks"] == {"tokens": SIZE, "overlap": OVERLAP}
    facts = rows_of(late)
    without = [{key: one[key] for key in one if key != "window"} for one in facts]
    assert without == rows_of(chunks)
    assert {fact["window"] for fact in facts if fact["row"] in (0, 4)} == {0}
    # A document of one chunk has the vector of the text; one of several has others than theirs.
    short = [n for n, fact in enumerate(facts) if fact["row"] == 0]
    encoder = encoder_of(tiny_model)
    np.testing.assert_allclose(late.read(short), encoder.encode(TEXTS[:1]), atol=1e-5)
    assert np.abs(late.read(slice(1, None)) - chunks.read(slice(1, None))).max() > 0.01
    assert write_parquet(made, out=tmp_path / "all.parquet") == late.num_rows
    names = ["id", "title", "empty", "row", "chunk", "begin", "end", "window"]
    assert late.facts([0]).column_names == names


@pytest.mark.parametrize("attention", ["packed", "sdpa"])
def test_vectors_do_not_depend_on_batches(attention: str, tiny_model: Path) -> None:
    """Batches have so many tokens of documents, and one document that is longer."""
    rules = ChunkRules(SIZE, OVERLAP, "document")
    texts = [text.strip() for text in TEXTS] + ["", "</s>", f"stop </s> {RIVER}"]
    found = []
    for batch_tokens in (1, 120, 16384):
        encoder = encoder_of(tiny_model, attention=attention, batch_tokens=batch_tokens)
        chunks, prepared = encoder.prepare_late(texts, chunks=rules)
        assert sorted(n for batch in prepared.batches for n in batch.numbers) == list(
            range(len(chunks))
        )
        for batch in prepared.batches:
            assert batch.rows.ids_BT.numel() <= max(batch_tokens, MAX_TOKENS)
        vectors = encoder.embed(prepared)
        found.append(vectors)
        # No tokens, or only special ones: the zero vector.
        assert [
            bool(vectors[n].any()) for n, chunk in enumerate(chunks) if chunk.text in (6, 7)
        ] == [
            False,
            False,
        ]
    assert len(encoder.embed(encoder.prepare_late([], chunks=rules)[1])) == 0
    for one in found[1:]:
        np.testing.assert_allclose(one, found[0], atol=1e-5)


def test_a_text_that_is_one_chunk_gets_the_vector_of_the_text(tiny_model: Path) -> None:
    """With a prompt or without, and with a special token in it."""
    rules = ChunkRules(MAX_TOKENS - 12, 0, "document")
    texts = ["A short text.", RIVER, "stop </s> here", "北京 и чай ☕", "", "Ünïcödé\n\n  x "]
    for prompt in ("", "Represent: "):
        encoder = encoder_of(tiny_model, prompt=prompt)
        chunks, prepared = encoder.prepare_late(texts, chunks=rules)
        assert [(chunk.begin, chunk.end) for chunk in chunks[:3]] == [
            (0, len(text)) for text in texts[:3]
        ]
        np.testing.assert_allclose(encoder.embed(prepared), encoder.encode(texts), atol=1e-5)
        plain = chunks_of(texts, tokenizer=encoder.tokenizer, rules=rules)
        assert [(one.begin, one.end) for one in chunks] == [(one.begin, one.end) for one in plain]


@pytest.mark.parametrize("task", [0, 1])
def test_whoever_works_and_however_often_the_files_are_the_same(
    task: int, made: Path, tmp_path: Path, tiny_model: Path, corpus: Path
) -> None:
    inputs = (*inputs_of(tiny_model, corpus), "corpus.unit_rows=3")
    embed(tmp_path / "out", *inputs, environ=array_task(task, count=2))
    assert contents(tmp_path / "out") == contents(made)
    for path in (tmp_path / "out" / "units").glob("00001.*"):
        path.unlink()
    embed(tmp_path / "out", *inputs)
    assert contents(tmp_path / "out") == contents(made)


def test_the_two_ways_never_mix(
    made: Path, tiny_model: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(made)
    alone = ["corpus.chunk_context=chunk", "corpus.unit_rows=3"]
    inputs = inputs_of(tiny_model, corpus)
    with pytest.raises(BadInput, match="holds an encoding of another chunks; choose"):
        embed(made, *inputs, *alone)
    assert contents(made) == before
    embed(tmp_path / "alone", *inputs, *alone, f"reuse={made}")
    assert f"reuse={made}: it is of another chunks; all texts" in capsys.readouterr().out
    assert read_json(tmp_path / "alone" / "reuse.json")["reused"] == 0


def test_a_document_that_changed_anywhere_is_read_again(
    tiny_model: Path, corpus: Path, tmp_path: Path
) -> None:
    """Its first chunk has the same text as before, and another vector."""
    settings = ("vectors=int8", "normalize=true")
    inputs = inputs_of(tiny_model, corpus)
    embed(tmp_path / "old", *inputs, *settings)
    texts = [text.strip() for text in reversed(TEXTS)]
    changed = texts.index(TEXTS[1].strip())
    texts[changed] += " The end."
    now = shard_articles(
        [article(number, text) for number, text in enumerate(texts)],
        output=tmp_path / "now" / "shards",
    )
    inputs = inputs_of(tiny_model, now)
    embed(tmp_path / "scratch", *inputs, *settings)
    embed(tmp_path / "out", *inputs, *settings, f"reuse={tmp_path / 'old'}")
    assert read_json(tmp_path / "out" / "reuse.json")["reused"] == len(TEXTS) - 1
    old, out, scratch = (VectorStore(tmp_path / one) for one in ("old", "out", "scratch"))
    assert rows_of(out) == rows_of(scratch)
    if not company_changes_bits(tiny_model):
        whole = contents(tmp_path / "out")
        del whole["reuse.json"]
        assert whole == contents(tmp_path / "scratch")
    (was,) = (
        old.read([n])[0] for n, f in enumerate(rows_of(old)) if (f["row"], f["chunk"]) == (1, 0)
    )
    (new,) = (
        out.read([n])[0]
        for n, f in enumerate(rows_of(out))
        if (f["row"], f["chunk"]) == (changed, 0)
    )
    assert np.abs(was - new).max() > 1e-3


def test_a_search_finds_a_late_chunk(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Queries are whole."""
    assert search.main([str(made), TEXTS[0], "--top", "2", "--json"]) == 0
    hits = json.loads(capsys.readouterr().out)["hits"]
    assert (hits[0]["row"], hits[0]["score"]) == (0, pytest.approx(1, abs=1e-5))
    assert {"chunk", "begin", "end"} < {*hits[0]}


def test_the_plan_counts_what_is_read_and_what_is_written(
    made: Path, tiny_model: Path, corpus: Path
) -> None:
    recipe = load_recipe("tiny_embed", overrides=list(inputs_of(tiny_model, corpus)))
    assert isinstance(recipe, EmbedRecipe)
    found = forecast(recipe)
    texts = [text.strip() for text in TEXTS]
    rules = ChunkRules(SIZE, OVERLAP, "document")
    _, prepared = encoder_of(tiny_model).prepare_late(texts, chunks=rules)
    assert found.tokens.value == pytest.approx(prepared.num_tokens)
    assert found.rows.value == pytest.approx(VectorStore(made).num_rows)
    prompted = recipe.encoder.model_copy(update={"prompt": "Represent this: " * 20})
    with pytest.raises(BadInput, match="give a shorter one"):
        forecast(recipe.model_copy(update={"encoder": prompted}))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["corpus.chunk_tokens=null", "corpus.chunk_overlap=0"],
            "corpus.chunk_context=document: needs corpus.chunk_tokens",
        ),
        (["corpus.chunk_context=text"], "should be 'chunk' or 'document', not"),
        (["corpus.chunk_tokens=49"], "chunk_tokens=49: the encoder takes at most"),
        (['encoder.text_format="<{text}>"'], "chunks have no encoder.text_format"),
        (
            ["encoder.pooling=cls"],
            "pools by 'cls', which is one token of the whole text; give encoder.pooling=mean",
        ),
        (
            ["encoder.prompt='Represent this: '", "corpus.chunk_tokens=46"],
            "give at most",
        ),
        (
            [f"encoder.prompt='{'say it: ' * 90}'", "corpus.chunk_tokens=16"],
            "fills all of max_tokens=",
        ),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    overrides: list[str],
    message: str,
    tiny_model: Path,
    corpus: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    inputs = (*inputs_of(tiny_model, corpus), *overrides, f"output_dir={out}")
    assert encode.main(["tiny_embed", *inputs]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert message in lines[0]
    assert not out.exists()
