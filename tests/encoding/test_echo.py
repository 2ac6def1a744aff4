"""Echo embeddings: a causal model reads a text twice, and the second reading is pooled.

What they are compared with reads one text at a time with plain transformers, joins the ids of both
readings by hand, and takes the states of the second. Tiny models with random weights, and the
shipped one.
"""

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
from scipy import stats
from transformers import AutoModel, AutoTokenizer

from tests.conftest import QUICKSTART, refused
from tests.encoding.conftest import embed
from toolkit import encode, evaluate, search
from toolkit.base.errors import BadInput
from toolkit.base.files import read_json, write_json
from toolkit.encoding.encoder import Encoder
from toolkit.encoding.forecast import forecast
from toolkit.encoding.rows import RowMaker, Rows
from toolkit.encoding.store import VectorStore
from toolkit.model.plain_path import OtherVectors
from toolkit.settings.recipes import load_recipe
from toolkit.settings.schema import EmbedRecipe, EncoderSettings
from toolkit.text.shards import open_shards

BEFORE, BETWEEN = "Rewrite the sentence:", ", rewritten sentence:"
MAX_TOKENS = 64
BEGIN, END = 1, 2
SHAPE = {
    "vocab_size": 8192,
    "bos_token_id": BEGIN,
    "eos_token_id": END,
    "pad_token_id": 3,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 256,
}
CONFIGS = {
    "mistral": transformers.MistralConfig(**SHAPE, num_key_value_heads=1, sliding_window=20),
    "llama": transformers.LlamaConfig(**SHAPE, num_key_value_heads=1),
    "gpt-neox": transformers.GPTNeoXConfig(**SHAPE),
    "tiny": None,
}
AROUND = {"mistral": ([BEGIN], []), "llama": ([BEGIN], [END]), "gpt-neox": ([], []),
          "tiny": ([BEGIN], [])}  # fmt: skip

Vectors = NDArray[np.float64]
Models = Callable[[str], Path]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """The folder of a model; each is made once, when it is first asked for."""

    @functools.cache
    def folder(name: str) -> Path:
        shipped, place = QUICKSTART / "tiny-mistral", tmp_path_factory.mktemp("echo") / name
        if CONFIGS[name] is None:
            return shipped
        torch.manual_seed(0)
        model = AutoModel.from_config(CONFIGS[name])
        with torch.no_grad():  # random states of one size would all be alike after a norm
            for parameter in model.parameters():
                parameter.copy_(torch.randn_like(parameter) * 0.25 + (parameter.ndim == 1))
        model.save_pretrained(place)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(shipped / file, place / file)
        put_around(place / "tokenizer.json", ids=AROUND[name])
        return place

    return folder


def put_around(path: Path, *, ids: tuple[list[int], list[int]]) -> None:
    """Have the tokenizer put these tokens before and after a text."""
    tokens = {BEGIN: "<s>", END: "</s>"}
    first, last = (
        [{"SpecialToken": {"id": tokens[n], "type_id": 0}} for n in some] for some in ids
    )
    single = [*first, {"Sequence": {"id": "A", "type_id": 0}}, *last]
    pair = [*single, {"Sequence": {"id": "B", "type_id": 0}}]
    special = {text: {"id": text, "ids": [n], "tokens": [text]} for n, text in tokens.items()}
    processor = {
        "type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": special
    }  # fmt: skip
    whole = read_json(path)
    write_json(path, {**whole, "post_processor": processor if first or last else None})


@pytest.fixture(scope="module")
def texts(shards: Path) -> list[str]:
    """40 pieces of the shipped encyclopedia, from a word to more than is read."""
    opened = open_shards(shards, verify=False)
    lengths = [5, 20, 60, 120, 900]
    return [opened.text(row)[: lengths[row % 5]].strip() for row in range(40)]


@functools.cache
def plain(folder: Path) -> tuple[Any, Any]:
    model = AutoModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
    return model.eval(), AutoTokenizer.from_pretrained(folder)


@torch.inference_mode()
def expected(
    folder: Path, texts: Sequence[str], *, name: str, last: bool = False, prompt: str = "",
    max_tokens: int = MAX_TOKENS,
) -> Vectors:  # fmt: skip
    """The vectors of texts, one at a time; none is empty or begins with a blank."""
    model, tokenizer = plain(folder)
    first, end = AROUND[name]
    vectors = []
    for text in texts:
        before, between, both = (
            tokenizer(one, add_special_tokens=False)["input_ids"]
            for one in (prompt + BEFORE, BETWEEN, f"{prompt}{BEFORE} {text}")
        )
        assert both[: len(before)] == before
        room = (max_tokens - len([*first, *before, *between, *end])) // 2
        read = both[len(before) :][:room]
        ids = [*first, *before, *read, *between, *read, *end]
        assert len(ids) <= max_tokens
        states_TD = model(input_ids=torch.tensor([ids])).last_hidden_state[0].double().numpy()
        stop = len(ids) - len(end)
        second_TD = states_TD[stop - len(read) : stop]
        vectors.append(second_TD[-1] if last else second_TD.mean(axis=0))
    return np.stack(vectors)


def echoing(folder: Path, **options: Any) -> Encoder:
    values = {"model": str(folder), "max_tokens": MAX_TOKENS, "causal": True, "echo": True}
    given = EncoderSettings.model_validate({**values, **options})
    return Encoder(given, device=torch.device("cpu"))


def assert_same(found: NDArray[Any], wanted: Vectors) -> None:
    lengths = np.linalg.norm(found, axis=1), np.linalg.norm(wanted, axis=1)
    assert (np.vecdot(found, wanted) / (lengths[0] * lengths[1])).min() >= 0.99999
    assert np.abs(lengths[0] / lengths[1] - 1).max() <= 1e-4


@pytest.mark.parametrize("attention", ["packed", "sdpa"])
@pytest.mark.parametrize("name", CONFIGS)
def test_the_second_reading_is_pooled(
    name: str, attention: str, models: Models, texts: list[str]
) -> None:
    folder = models(name)
    encoder = echoing(folder, attention=attention)
    assert_same(encoder.encode(texts), expected(folder, texts, name=name))
    last = echoing(folder, attention=attention, pooling="last").encode(texts)
    assert_same(last, expected(folder, texts, name=name, last=True))


def test_a_prompt_is_read_once_before_both_readings(models: Models, texts: list[str]) -> None:
    prompt = "Represent the passage. "
    wanted = expected(models("llama"), texts, name="llama", prompt=prompt)
    encoder = echoing(models("llama"))
    assert_same(encoder.encode(texts, prompt=prompt), wanted)
    assert_same(echoing(models("llama"), prompt=prompt).encode(texts), wanted)
    assert np.abs(encoder.encode(texts) - wanted).max() > 0.1


@pytest.fixture(scope="module")
def encoders(models: Models) -> list[Encoder]:
    return [
        echoing(models("mistral")),
        echoing(models("gpt-neox"), attention="eager", pooling="last"),
    ]


@settings(max_examples=15)
@given(data=st.data())
def test_a_vector_depends_on_its_text_alone(
    data: st.DataObject, encoders: list[Encoder], texts: list[str]
) -> None:
    """Whatever batch, order, padding and neighbours; a text without tokens gets zeros."""
    encoder = data.draw(st.sampled_from(encoders))
    chosen = data.draw(st.lists(st.sampled_from([*texts, ""]), min_size=1, max_size=8))
    found = encoder.encode(chosen, batch_size=data.draw(st.integers(1, 8)))
    alone = np.stack([encoder.encode(text) for text in chosen])
    assert np.abs(found - alone).max() <= 1e-5 * max(1.0, np.abs(alone).max())
    assert [bool(row.any()) for row in found] == [bool(text) for text in chosen]


def test_no_more_is_read_than_the_limit_and_least_is_a_token(models: Models) -> None:
    """The limit counts all that is read; the least limit is the one that the error names."""
    folder, long = models("llama"), "canal " * 300
    with pytest.raises(BadInput, match=r"max_tokens=8: the prompt and the words of") as error:
        echoing(folder, max_tokens=8)
    least = int(str(error.value).split()[-1])
    with pytest.raises(BadInput, match=f"give at least {least}"):
        echoing(folder, max_tokens=least - 1)
    for limit in (least, least + 1, least + 4):
        encoder = echoing(folder, max_tokens=limit)
        assert limit - 1 <= encoder.prepare([long]).num_tokens <= limit
        wanted = expected(folder, [long], name="llama", max_tokens=limit)
        assert_same(encoder.encode([long]), wanted)


def test_the_proof_finds_another_reading(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the first reading is pooled."""
    twice = RowMaker._twice

    def first(self: RowMaker, prefix: str, texts: Sequence[str]) -> Rows:
        made = twice(self, prefix, texts)
        assert made.owns is not None
        return Rows(made.rows, [np.roll(own, -own.sum()) for own in made.owns])

    monkeypatch.setattr(RowMaker, "_twice", first)
    with pytest.raises(OtherVectors, match="the vectors differ"):
        echoing(models("llama"))


def test_encode_search_and_plan_follow_it_and_nothing_mixes(
    models: Models, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, output = models("mistral"), tmp_path / "out"
    inputs = f"encoder.model={folder}", f"corpus.input={shards}", "encoder.causal=true"
    inputs = (*inputs, f"encoder.max_tokens={MAX_TOKENS}")
    embed(output, *inputs, "encoder.echo=true")
    opened, store = open_shards(shards, verify=False), VectorStore(output)
    wanted = expected(folder, [opened.text(row) for row in range(30)], name="mistral")
    assert_same(store.read(slice(0, 30)), wanted)
    for other in ((), ("encoder.echo=true", "encoder.pooling=last")):
        with pytest.raises(BadInput, match="holds an encoding of another model and encoder"):
            embed(output, *inputs, *other)
    query = "who built the canal?"
    capsys.readouterr()
    assert search.main([str(output), query, "--top", "1", "--json"]) == 0
    (hit,) = json.loads(capsys.readouterr().out)["hits"]
    (vector,) = expected(folder, [query], name="mistral")
    rows = store.read(slice(0, store.num_rows))
    cosines = rows @ vector / np.linalg.norm(rows, axis=1) / np.linalg.norm(vector)
    assert hit["score"] == pytest.approx(cosines.max(), abs=1e-4)
    recipe = load_recipe("tiny_embed", overrides=[*inputs, "encoder.echo=true"])
    assert isinstance(recipe, EmbedRecipe)
    every = [opened.text(row) for row in range(opened.num_rows)]
    prepared = echoing(folder).prepare(every)
    assert forecast(recipe).tokens.value == pytest.approx(prepared.num_tokens)


def test_an_evaluation_follows_it(
    models: Models, texts: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, grades = models("llama"), [0.5 * (row % 7) for row in range(20)]
    pairs = tmp_path / "pairs.tsv"
    lines = zip(grades, texts[:20], texts[20:], strict=True)
    flat = [(grade, *(one.replace("\n", " ") for one in both)) for grade, *both in lines]
    pairs.write_text("".join(f"{grade}\t{one}\t{other}\n" for grade, one, other in flat))
    encoder = {"model": str(folder), "max_tokens": MAX_TOKENS, "causal": True}
    recipe = {
        "kind": "evaluate",
        "output_dir": str(tmp_path / "out"),
        "encoders": {"plain": encoder, "echo": {**encoder, "echo": True}},
        "sts": {"pairs": str(pairs)},
    }
    path = tmp_path / "evaluate.yaml"
    write_json(path, recipe)
    assert evaluate.main([str(path)]) == 0
    first, second = (expected(folder, [row[n] for row in flat], name="llama") for n in (1, 2))
    cosines = np.vecdot(first, second) / np.linalg.norm(first, axis=1)
    wanted = stats.spearmanr(cosines / np.linalg.norm(second, axis=1), grades).statistic
    scores = read_json(tmp_path / "out" / "scores.json")
    assert scores["echo"]["pairs Spearman"] == pytest.approx(wanted, abs=1e-3)
    assert scores["plain"] != scores["echo"]
    # Tasks on words take states of a text that is read once.
    tagged = tmp_path / "words.txt"
    tagged.write_text("the D\ncanal N\n\na D\nmill N\n")
    write_json(path, {**recipe, "words": {"tags": {"train": str(tagged), "test": str(tagged),
                                                   "column": 2}}})  # fmt: skip
    assert "encoders.echo.echo=true: tasks on words" in refused(capsys, evaluate.main, path)
    with pytest.raises(BadInput, match="reads texts, not single words"):
        next(echoing(folder).token_states([np.array([5, 6])]))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            ["encoder.causal=false"],
            "encoder's is bidirectional; give encoder.causal=true, or leave",
        ),
        (["encoder.pooling=cls"], "encoder.pooling=cls: with encoder.echo=true valid: auto, mean,"),
        (["encoder.pooling=max"], "encoder.pooling=max: with encoder.echo=true valid: auto, mean,"),
        (["encoder.text_format='- {text}'"], "encoder.text_format='- {text}': encoder.echo=true"),
        (["corpus.chunk_tokens=16"], "corpus.chunk_tokens=16: chunks are read once, and encoder.e"),
        (
            ["corpus.chunk_tokens=16", "corpus.chunk_context=document"],
            "corpus.chunk_tokens=16: chunks are read once, and encoder.echo=true reads a text twi",
        ),
        (["encoder.max_tokens=8"], "leave no room to read a text twice; give at least"),
        (["encoder.model={declared}"], "modules.json is of a model that reads a text once; give"),
    ],
)
def test_what_does_not_go_with_it_is_refused(
    given: list[str],
    message: str,
    models: Models,
    shards: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    declared = tmp_path / "declared"
    shutil.copytree(models("mistral"), declared)
    write_json(declared / "modules.json", [])
    output = tmp_path / "out"
    fixed = [f"encoder.model={models('mistral')}", f"corpus.input={shards}", f"output_dir={output}"]
    fixed += ["encoder.causal=true", "encoder.echo=true"]
    given = [one.replace("{declared}", str(declared)) for one in given]
    assert message in refused(capsys, encode.main, "tiny_embed", *fixed, *given)
    assert not output.exists()


def test_encodings_of_before_keep_their_identity() -> None:
    before = EncoderSettings(model="m", causal=True)
    assert "echo" not in before.facts()
    assert before.model_copy(update={"echo": True}).facts() == {**before.facts(), "echo": True}
