"""A vector depends on its text alone, and is what a plain computation gives."""

import itertools
import json
import resource
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from toolkit.base.errors import BadInput
from toolkit.encoding.batches import token_batches
from toolkit.encoding.encoder import Encoder
from toolkit.model.backbone import check_positions, load_config
from toolkit.model.tokenizer import load_tokenizer
from toolkit.settings.model_source import resolve_model
from toolkit.settings.recipes import load_recipe
from toolkit.settings.schema import EncoderSettings, MntpRecipe
from toolkit.training.data import open_tokenizer
from toolkit.training.objectives import build_objective

MAX_TOKENS = 24
TOLERANCE = 1e-5
SENTENCES = (
    "A bridge carries the railway over the river.",
    "The chemist poured the acid slowly into a tall beaker, and wrote down what she saw.",
    "Why?",
    "Müller läuft über 北京 и пьёт чай ☕",
    "An essay on canals. " * 40,  # longer than the limit
    "",
    " \n\t ",
)
TEXTS = st.lists(st.sampled_from(SENTENCES) | st.text(max_size=60), min_size=1, max_size=12)
Naive = Callable[[str], NDArray[np.float32]]


def encoder_of(model: Path, **changes: object) -> Encoder:
    values = {"model": str(model), "max_tokens": MAX_TOKENS, **changes}
    return Encoder(EncoderSettings.model_validate(values), device=torch.device("cpu"))


def naive_of(model: Path, *, causal: bool) -> Naive:
    """Plain transformers, one text at a time: the mean over its tokens without the begin token."""
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    config = AutoConfig.from_pretrained(model)
    config.is_causal = causal
    backbone = AutoModel.from_pretrained(model, config=config, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(model)

    @torch.inference_mode()
    def vector(text: str) -> NDArray[np.float32]:
        ids = tokenizer(text, truncation=True, max_length=MAX_TOKENS, return_tensors="pt").input_ids
        assert ids[0, 0] == tokenizer.bos_token_id
        if ids.shape[1] == 1:
            return np.zeros(backbone.config.hidden_size, dtype=np.float32)
        mean: NDArray[np.float32] = backbone(ids).last_hidden_state[0, 1:].mean(dim=0).numpy()
        return mean

    return vector


@pytest.fixture(scope="module")
def naive(tiny_model: Path) -> Naive:
    return naive_of(tiny_model, causal=False)


@pytest.fixture(scope="module")
def encoders(tiny_model: Path) -> list[Encoder]:
    """From one row a batch to all rows in one batch."""
    return [encoder_of(tiny_model, batch_tokens=number) for number in (1, 50, 16384)]


def distance(first: NDArray[np.float32], second: NDArray[np.float32]) -> float:
    return float(np.abs(first - second).max(initial=0.0))


@settings(deadline=None, max_examples=25)
@given(texts=TEXTS, data=st.data())
def test_a_vector_depends_on_its_text_alone(
    texts: list[str], data: st.DataObject, encoders: list[Encoder], naive: Naive
) -> None:
    """Whatever batch, order, padding and neighbours: it is the naive vector."""
    order = data.draw(st.permutations(range(len(texts))))
    encoder = data.draw(st.sampled_from(encoders))
    found = encoder.encode([texts[number] for number in order])
    assert found.dtype == np.float32
    for place, number in enumerate(order):
        assert distance(found[place], naive(texts[number])) <= TOLERANCE


@settings(deadline=None, max_examples=25)
@given(texts=TEXTS, data=st.data())
def test_a_vector_does_not_depend_on_its_unit(
    texts: list[str], data: st.DataObject, encoders: list[Encoder], naive: Naive
) -> None:
    """Cut into units anywhere, each unit prepared and embedded apart, by another encoder each."""
    cuts = data.draw(st.lists(st.integers(0, len(texts)), max_size=4).map(sorted))
    for start, stop in itertools.pairwise([0, *cuts, len(texts)]):
        encoder = data.draw(st.sampled_from(encoders))
        found = encoder.embed(encoder.prepare(texts[start:stop]))
        for text, vector in zip(texts[start:stop], found, strict=True):
            assert distance(vector, naive(text)) <= TOLERANCE


@pytest.mark.parametrize("attention", ["packed", "sdpa", "eager"])
def test_real_sentences_equal_the_naive_computation(
    attention: str, tiny_model: Path, naive: Naive, real_data: Path
) -> None:
    lines = (real_data / "stsbenchmark_en" / "stsb-en-test.csv").read_text().splitlines()
    texts = [line.partition(",")[0] for line in lines[:60]]
    found = encoder_of(tiny_model, attention=attention, batch_tokens=200).encode(texts)
    assert distance(found, np.stack([naive(text) for text in texts])) <= TOLERANCE


def test_a_text_without_tokens_is_the_zero_vector(encoders: list[Encoder]) -> None:
    for encoder in encoders:
        for texts in ([""], ["", ""], ["", SENTENCES[0], ""]):
            vectors = encoder.encode(texts)
            assert np.isfinite(vectors).all()
            for text, vector in zip(texts, vectors, strict=True):
                assert (vector == 0).all() == (text == "")
        assert encoder.encode([]).shape == (0, 256)


def test_a_tokenizer_without_begin_token_makes_empty_rows(encoders: list[Encoder]) -> None:
    """Such as Qwen's: a text without tokens is then a row without any id at all."""
    empty = [np.zeros(0, dtype=np.int64)]
    row = encoders[0].tokenizer.encode([SENTENCES[0]])
    for rows in (empty, empty * 2, row + empty):
        vectors = encoders[0].embed(encoders[0].prepare_rows(rows))
        assert np.isfinite(vectors).all()
        assert (vectors[-1] == 0).all()


def test_causal_is_another_encoder(tiny_model: Path, encoders: list[Encoder]) -> None:
    texts = list(SENTENCES[:4])
    causal = encoder_of(tiny_model, causal=True).encode(texts)
    naive = naive_of(tiny_model, causal=True)
    assert distance(causal, np.stack([naive(text) for text in texts])) <= TOLERANCE
    both_ways = encoders[0].encode(texts)
    # Even the rows of one or two tokens differ, since the begin token sees them.
    assert (np.abs(causal - both_ways).max(axis=1) > 1e-2).all()


def test_bf16_is_close_to_fp32(tiny_model: Path, encoders: list[Encoder]) -> None:
    texts = [text for text in SENTENCES if text.strip()]
    low = encoder_of(tiny_model, dtype="bf16").encode(texts)
    full = encoders[0].encode(texts)
    assert low.dtype == np.float32
    assert distance(low, full) > 1e-3  # rounding of bf16, not of another batch
    norms = np.linalg.norm(low, axis=1) * np.linalg.norm(full, axis=1)
    assert ((low * full).sum(axis=1) / norms > 0.99).all()


def test_progress_counts_every_row_and_token(encoders: list[Encoder]) -> None:
    seen: list[tuple[int, int]] = []
    encoders[1].vectors_of(SENTENCES, on_rows=lambda rows, tokens: seen.append((rows, tokens)))
    lengths = [len(row) for row in encoders[1].tokenizer.encode(SENTENCES)]
    assert len(seen) > 1
    assert [sum(column) for column in zip(*seen, strict=True)] == [len(SENTENCES), sum(lengths)]


def test_the_names_of_sentence_transformers(
    tiny_model: Path, encoders: list[Encoder], capsys: pytest.CaptureFixture[str]
) -> None:
    encoder = Encoder.from_pretrained(tiny_model, max_tokens=MAX_TOKENS, device="cpu")
    texts = [text for text in SENTENCES if text]
    plain = encoders[0].encode(texts)
    assert distance(encoder.encode(texts, batch_size=2), plain) <= TOLERANCE
    assert distance(encoder.encode(texts[0]), plain[0]) <= TOLERANCE  # (D,)
    tensor = encoder.encode(tuple(texts), convert_to_tensor=True, normalize_embeddings=True)
    assert isinstance(tensor, torch.Tensor)
    assert torch.allclose(tensor.norm(dim=1), torch.ones(len(texts)), atol=1e-5)
    assert capsys.readouterr().out == ""
    encoder.encode(texts, show_progress_bar=True)
    assert f"encode: {len(texts)}/{len(texts)} rows" in capsys.readouterr().out
    cut = Encoder.from_pretrained(
        str(tiny_model), max_tokens=MAX_TOKENS, device="cpu", truncate_dim=8
    )
    assert distance(cut.encode(texts), plain[:, :8]) <= TOLERANCE
    assert cut.encode([]).shape == (0, 8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sentences": ["a", None]}, r"sentences\[1\] is None: give texts"),
        ({"sentences": "a", "batch_size": 0}, "batch_size=0: at least 1"),
    ],
)
def test_what_is_no_text_is_refused(
    arguments: dict[str, object], message: str, encoders: list[Encoder]
) -> None:
    with pytest.raises(BadInput, match=message):
        encoders[0].encode(**arguments)  # type: ignore[arg-type]


def test_large_tensors_leave_their_memory_to_the_next(encoders: list[Encoder]) -> None:
    """Page faults of a forward pass that was done before: there are none to speak of. The least
    of three, for what other threads and the heap's own trimming add is not the pass's."""
    prepared = encoders[2].prepare(["An essay on canals. " * 40] * 400)
    encoders[2].embed(prepared)

    def faults() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        encoders[2].embed(prepared)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    counts = [faults() for _ in range(3)]
    assert min(counts) < 15_000, counts  # 60 MiB; without, some 100 MiB a layer


def longest_first(lengths: Sequence[int]) -> list[int]:
    return sorted(range(len(lengths)), key=lambda number: -lengths[number])


@given(lengths=st.lists(st.integers(0, 40)), max_rows=st.integers(1, 9))
def test_batches_have_at_most_so_many_rows(lengths: list[int], max_rows: int) -> None:
    rows = [np.zeros(length, dtype=np.int64) for length in lengths]
    order = longest_first(lengths)
    batches = token_batches(order, rows=rows, batch_tokens=10**6, max_rows=max_rows)
    assert [number for batch in batches for number in batch] == order
    assert all(len(batch) == max_rows for batch in batches[:-1])


@given(lengths=st.lists(st.integers(0, 40)), batch_tokens=st.integers(1, 200))
def test_batches_keep_the_bound_and_lose_nothing(lengths: list[int], batch_tokens: int) -> None:
    rows = [np.zeros(length, dtype=np.int64) for length in lengths]
    order = longest_first(lengths)
    batches = token_batches(order, rows=rows, batch_tokens=batch_tokens)
    assert [number for batch in batches for number in batch] == order
    cells = [len(batch) * max(1, *(lengths[n] for n in batch)) for batch in batches]
    assert all(len(b) == 1 or c <= batch_tokens for b, c in zip(batches, cells, strict=True))
    # And no row waits for the next batch that had room in its own.
    for batch, c, following in zip(batches, cells, batches[1:], strict=False):
        assert c // len(batch) * (len(batch) + 1) > batch_tokens, following


def test_the_digest_names_the_model(tiny_model: Path, tmp_path: Path) -> None:
    """The same for a copy elsewhere; another for other weights or another tokenizer."""
    import shutil

    from safetensors.torch import load_file, save_file

    copy = tmp_path / "copy"
    shutil.copytree(tiny_model, copy)
    digests = {encoder_of(tiny_model).digest(), encoder_of(copy).digest()}
    assert len(digests) == 1
    text = (copy / "tokenizer_config.json").read_text()
    (copy / "tokenizer_config.json").write_text(text.replace("1024", "512"))
    digests.add(encoder_of(copy).digest())
    tensors = load_file(copy / "model.safetensors")
    tensors["model.norm.weight"] *= 2
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    digests.add(encoder_of(copy).digest())
    assert len(digests) == 3
    assert load_tokenizer(resolve_model(str(copy))).model_max_length == 512


def test_a_text_format_is_read_before_and_pooled_after(
    tiny_model: Path, encoders: list[Encoder]
) -> None:
    texts = [text for text in SENTENCES if text.strip()]
    framed = encoder_of(tiny_model, text_format="Say: {text} (end)")
    wanted = [f"{text.strip()} (end)" for text in texts]
    expected = encoders[0].encode(wanted, prompt="Say: ")
    assert distance(framed.encode(texts), expected) <= TOLERANCE
    expected = encoders[0].encode(wanted, prompt="Say: twice; ")
    assert distance(framed.encode(texts, prompt="twice; "), expected) <= TOLERANCE
    for wrong in ("no place", "{text} {text}", "{text} {other}"):
        with pytest.raises(ValueError, match="text_format"):
            encoder_of(tiny_model, text_format=wrong)


def test_what_makes_vectors_is_told_as_before_there_were_formats() -> None:
    """Or encodings that were begun then would be refused."""
    settings = EncoderSettings(model="m", adapters=("a",))
    assert set(settings.facts()) == {"max_tokens", "dtype", "attention", "causal"}
    other = settings.model_copy(update={"text_format": "x {text}"})
    assert other.facts() == {**settings.facts(), "text_format": "x {text}"}


@pytest.mark.parametrize("attention", ["packed", "sdpa"])
def test_an_instruction_is_read_and_not_pooled(attention: str, tiny_model: Path) -> None:
    """Equal to plain transformers over both, pooled over the text's own tokens."""
    from transformers import AutoConfig, AutoModel

    instruction = "Find a text that says the same; "
    encoder = encoder_of(tiny_model, attention=attention)
    texts = [text for text in SENTENCES if text.strip()]
    found = encoder.encode(texts, prompt=instruction)
    config = AutoConfig.from_pretrained(tiny_model)
    config.is_causal = False
    backbone = AutoModel.from_pretrained(tiny_model, config=config, dtype=torch.float32).eval()
    tokenizer = load_tokenizer(resolve_model(str(tiny_model)))
    for vector, text in zip(found, texts, strict=True):
        tokens = tokenizer(
            instruction + text,
            truncation=True,
            max_length=MAX_TOKENS,
            return_offsets_mapping=True,
        )
        own = [end > len(instruction) for _, end in tokens["offset_mapping"]]
        with torch.inference_mode():
            hidden = backbone(torch.tensor([tokens["input_ids"]])).last_hidden_state[0]
        assert distance(vector, hidden[own].mean(dim=0).numpy()) <= TOLERANCE
    assert distance(found, encoder.encode(texts)) > 0.01


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"truncate_dim": 0}, "dims=0: the vectors of .* have 256 numbers"),
        ({"truncate_dim": -1}, "dims=-1"),
        ({"max_tokens": 4}, "max_tokens: input should be greater"),
        ({"dtype": "fp8"}, "dtype: input should be"),
        ({"text_format": "foo"}, "text_format: "),
        ({"device": "nonsense"}, "device='nonsense': "),
    ],
)
def test_arguments_that_cannot_be_are_named(
    arguments: dict[str, Any], message: str, tiny_model: Path
) -> None:
    with pytest.raises(BadInput, match=f"(?i){message}"):
        Encoder.from_pretrained(str(tiny_model), **arguments)


def test_an_instruction_that_leaves_nothing_of_a_text_is_refused(encoders: list[Encoder]) -> None:
    limit = encoders[0].settings.max_tokens
    with pytest.raises(BadInput, match=f"fills all of max_tokens={limit}"):
        encoders[0].encode(["the cat sat"], prompt="Find the passage. " * limit)


def test_half_a_surrogate_pair_is_named(encoders: list[Encoder]) -> None:
    with pytest.raises(BadInput, match=r"sentences\[1\] is '.udc00x', which is not valid Unicode"):
        encoders[0].encode(["a", "\udc00x"])
    with pytest.raises(BadInput, match=r"instruction .* is not valid Unicode"):
        encoders[0].encode(["a"], prompt="\udc00x")


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(
    ("rope", "longest"),
    [
        ({"rope_type": "dynamic", "factor": 2.0}, 1024),
        ({"rope_type": "longrope", "original_max_position_embeddings": 16}, 16),
    ],
)
def test_positions_that_depend_on_the_batch_are_refused(
    tiny_model: Path, rope: dict[str, Any], longest: int, nested: bool
) -> None:
    config = load_config(resolve_model(str(tiny_model)))
    plain = {"rope_type": "default", "rope_theta": 1e4}
    config.rope_parameters = (
        {"sliding_attention": plain, "full_attention": rope} if nested else rope
    )
    check_positions(config, max_tokens=longest)
    with pytest.raises(BadInput, match=f"at most {longest}"):
        check_positions(config, max_tokens=longest + 1)
    config.rope_parameters = plain
    check_positions(config, max_tokens=longest + 1)


def test_an_encoder_of_dynamic_positions_beyond_their_length_is_refused(
    tiny_model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "dynamic"
    shutil.copytree(tiny_model, folder)
    config = json.loads((folder / "config.json").read_text())
    config["rope_parameters"] = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    config["max_position_embeddings"] = 16
    (folder / "config.json").write_text(json.dumps(config))
    encoder_of(folder, max_tokens=16)
    with pytest.raises(BadInput, match=r"max_tokens=17: beyond 16 tokens .* 'dynamic'"):
        encoder_of(folder, max_tokens=17)


def test_a_tokenizer_larger_than_the_model_is_used_and_its_own_tokens_are_refused(
    tiny_model: Path, tmp_path: Path
) -> None:
    """Such as a padding token, added without resizing: an IndexError in some later batch."""
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    tokenizer = load_tokenizer(resolve_model(str(tiny_model)))
    known = len(tokenizer)
    tokenizer.add_tokens(["zebra", "okapi"])
    tokenizer.save_pretrained(model)
    encoder = encoder_of(model)
    wanted = encoder_of(tiny_model).encode(["A horse runs."])
    assert np.array_equal(encoder.encode(["A horse runs."]), wanted)
    with pytest.raises(
        BadInput, match=rf"'A zebra runs\.'.* 'zebra' \(id {known}\), but the model has"
    ):
        encoder.encode(["A horse runs.", "A zebra runs."])
    recipe = load_recipe(
        "tiny_mntp", overrides=[f"model.base={model}", "data.train=x", "run_dir=x"]
    )
    assert isinstance(recipe, MntpRecipe)
    ours = open_tokenizer(recipe, base=resolve_model(recipe.model.base))
    assert (ours.vocab_size, ours.num_ids) == (known, known + 2)
    for token in ("_", "zebra"):
        masked = recipe.model_copy(
            update={"mntp": recipe.mntp.model_copy(update={"mask_token": token})}
        )
        if token == "_":
            assert build_objective(masked, tokenizer=ours)
            continue
        with pytest.raises(BadInput, match=r"mntp.mask_token='zebra': holds the token 'zebra'"):
            build_objective(masked, tokenizer=ours)
