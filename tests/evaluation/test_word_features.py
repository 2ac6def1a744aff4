"""A word's vector is the mean over its sub-tokens, as a plain pass over its sentence gives it."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from toolkit.base.errors import BadInput
from toolkit.batching.tokenizer import text_tokenizer
from toolkit.encoding.encoder import Encoder
from toolkit.evaluation.word_features import WordRows, fill, lay_words, word_features
from toolkit.evaluation.words import read_word_data
from toolkit.settings.model_source import resolve_model
from toolkit.settings.schema import EncoderSettings
from toolkit.settings.task_schema import WordTask
from toolkit.text.tokens import Ids, TextTokenizer

TOLERANCE = 1e-5
SENTENCES = (
    ("Why", "?"),
    ("Müller", "läuft", "über", "北京", "☕", "!"),
    ("<s>", "unbelievably", "co-operative", "#", "10\u00a0000", "km"),
    ("a",),
)


def encoder_of(model: Path, **changes: object) -> Encoder:
    values = {"model": str(model), "max_tokens": 64, "batch_tokens": 100, **changes}
    return Encoder(EncoderSettings.model_validate(values), device=torch.device("cpu"))


def naive(
    model: Path, sentences: Sequence[Sequence[str]], *, causal: bool, shift: int
) -> NDArray[np.float32]:
    """Plain transformers, one sentence at a time, by the tokenizer's own split into words."""
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    config = AutoConfig.from_pretrained(model)
    config.is_causal = causal
    backbone = AutoModel.from_pretrained(model, config=config, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(model)
    found = []
    for words in sentences:
        encoded = tokenizer(list(words), is_split_into_words=True, return_tensors="pt")
        with torch.inference_mode():
            hidden_TD = backbone(encoded.input_ids).last_hidden_state[0]
        word_of = encoded.word_ids(0)
        for word in range(len(words)):
            places = [t - shift for t, found in enumerate(word_of) if found == word]
            found.append(hidden_TD[places].mean(dim=0).numpy())
    return np.stack(found)


@pytest.mark.parametrize(
    ("attention", "causal"), [("packed", False), ("packed", True), ("sdpa", False)]
)
def test_vectors_equal_a_plain_pass(attention: str, causal: bool, tiny_model: Path) -> None:
    encoder = encoder_of(tiny_model, attention=attention, causal=causal)
    found = word_features(encoder, SENTENCES, shifts=(0, 1))
    assert (found.num_empty, found.num_split) == (0, 0)
    assert found.vectors_AWD.dtype == np.float32
    for shift in (0, 1):
        expected_WD = naive(tiny_model, SENTENCES, causal=causal, shift=shift)
        assert np.abs(found.vectors_AWD[shift] - expected_WD).max() <= TOLERANCE


@pytest.mark.parametrize("name", ["tiny-mistral", "stories260K"])
def test_vectors_of_a_real_treebank(name: str, real_data: Path) -> None:
    """Two kinds of tokenizer: bytes with the blank before a word, and pieces with a normaliser."""
    model = real_data.parent / "models" / name
    path = str(real_data / "ud_english_ewt" / "en_ewt-ud-dev.conllu")
    part = read_word_data(WordTask(train=path, test=path)).train
    sentences = part.sentences[:30]
    found = word_features(encoder_of(model, max_tokens=256), sentences, shifts=(1, 0))
    for place, shift in enumerate((1, 0)):
        expected_WD = naive(model, sentences, causal=False, shift=shift)
        # States of one token reach 16, and differ by up to 2.2e-5: the rounding of other kernels.
        assert np.abs(found.vectors_AWD[place] - expected_WD).max() <= 3 * TOLERANCE


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> TextTokenizer:
    return text_tokenizer(resolve_model(str(tiny_model)), max_tokens=8)


WORDS = st.sampled_from(["the", "unbelievably", "a", "", " ", "北京", "x" * 40, "</s>"]) | st.text(
    max_size=12
)


@settings(deadline=None, max_examples=50)
@given(sentences=st.lists(st.lists(WORDS, max_size=9), max_size=5))
def test_no_word_and_no_token_is_lost(sentences: list[list[str]], tokenizer: TextTokenizer) -> None:
    """Whatever the limit: rows hold it, and hold all tokens in order; each has its word."""
    laid = lay_words(sentences, tokenizer=tokenizer)
    prefix = list(tokenizer.prefix_ids)
    texts = [" ".join(w for w in words if w.strip()) for words in sentences]
    whole = [tokens.ids_T for tokens in tokenizer.places(texts)]
    inner = [row[len(prefix) :] for row in laid.rows]
    assert all(len(row) <= 8 and list(row[: len(prefix)]) == prefix for row in laid.rows)
    assert np.array_equal(np.concatenate([[], *inner]), np.concatenate([[], *whole]))
    words = [word for words in sentences for word in words]
    assert len(laid.tokens_of_W) == len(words)
    assert laid.num_empty == sum(not word.strip() for word in words)
    pairs = [
        pair
        for row in zip(laid.token_M, laid.word_M, strict=True)
        for pair in zip(*row, strict=True)
    ]
    assert np.array_equal(
        np.bincount([w for _, w in pairs], minlength=len(words)), laid.tokens_of_W
    )
    for token_M, row in zip(laid.token_M, laid.rows, strict=True):
        assert sorted(set(token_M)) == list(range(len(prefix), len(row)))
    # What fits into a row is not cut.
    rows_of = np.bincount(np.concatenate([np.zeros(0, int), *map(np.unique, laid.word_M)]))
    short = laid.tokens_of_W[: len(rows_of)] <= 8 - len(prefix)
    assert (rows_of[short] <= 1).all()


def test_a_long_sentence_is_cut_before_a_word(tiny_model: Path) -> None:
    """Into pieces that are encoded alone; a word longer than a piece is the mean over all of it."""
    encoder = encoder_of(tiny_model, max_tokens=8, batch_tokens=8)  # each piece in its own batch
    words = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    laid = lay_words([words], tokenizer=encoder.tokenizer)
    pieces = [[words[w] for w in sorted(set(word_M))] for word_M in laid.word_M]
    assert [word for piece in pieces for word in piece] == words
    assert len(pieces) > 1
    found = word_features(encoder, [words, ["a"]], shifts=(0, 1))
    assert found.num_split == 1
    for shift in (0, 1):
        expected_WD = naive(tiny_model, [*pieces, ["a"]], causal=False, shift=shift)
        assert np.abs(found.vectors_AWD[shift] - expected_WD).max() <= TOLERANCE
    long = word_features(encoder, [["incomprehensibilities" * 2, "a"]], shifts=(0,))
    assert long.num_split == 1
    laid = lay_words([["incomprehensibilities" * 2, "a"]], tokenizer=encoder.tokenizer)
    states = torch.cat([state_TD[1:] for _, state_TD in by_row(encoder, laid.rows)])
    assert laid.tokens_of_W[0] == len(states) - 1 > 7
    expected = states[: laid.tokens_of_W[0]].mean(dim=0).numpy()
    assert np.abs(long.vectors_AWD[0, 0] - expected).max() <= TOLERANCE


def by_row(encoder: Encoder, rows: Sequence[Ids]) -> Iterator[tuple[int, torch.Tensor]]:
    for number, row in enumerate(rows):
        ((_, state_TD),) = encoder.token_states([row])
        yield number, state_TD


def test_a_word_without_tokens_is_the_zero_vector(tiny_model: Path) -> None:
    encoder = encoder_of(tiny_model)
    sentences = [["", "a", " ", "b"], [], [" \t"], ["c"]]
    found = word_features(encoder, sentences, shifts=(0, 1))
    assert found.num_empty == 3
    assert (found.vectors_AWD == 0).all(axis=2).tolist() == [
        [True, False, True, False, True, False]
    ] * 2
    plain = word_features(encoder, [["a", "b"], ["c"]], shifts=(0, 1))
    assert np.abs(found.vectors_AWD[:, [1, 3, 5]] - plain.vectors_AWD).max() <= TOLERANCE


@dataclasses.dataclass
class ByHand:
    """An encoder whose states are given."""

    states: list[list[float]]
    settings: EncoderSettings = dataclasses.field(
        default_factory=lambda: EncoderSettings(model="by hand")
    )

    def token_states(self, rows: Sequence[Ids]) -> Iterator[tuple[Sequence[int], torch.Tensor]]:
        """The rows in the other order, one batch each."""
        for number in reversed(range(len(rows))):
            yield [number], torch.tensor(self.states[number])[:, None]


def laid_by_hand() -> WordRows:
    """<s> t11 t12 t2 and <s> t3, three words; then t4 t5 without a begin token."""
    rows = [np.array([1, 11, 12, 2]), np.array([1, 3]), np.array([4, 5])]
    token_M = [np.array([1, 2, 3]), np.array([1]), np.array([0, 1])]
    word_M = [np.array([0, 0, 1]), np.array([2]), np.array([3, 4])]
    return WordRows(rows, token_M, word_M, np.array([2, 1, 1, 1, 1]), 0)


STATES = [[100.0, 1.0, 2.0, 4.0], [200.0, 8.0], [16.0, 32.0]]


def test_the_shift_in_a_case_worked_out_by_hand() -> None:
    """Word 1 = mean(BOS, t11), word 2 = t12; where no token stands before, the token itself."""
    vectors_AWD = np.zeros((2, 5, 1), dtype=np.float32)
    encoder: Callable[..., object] = ByHand
    fill(vectors_AWD, laid_by_hand(), encoder=encoder(STATES), shifts=(0, 1))  # type: ignore[arg-type]
    assert vectors_AWD[0, :, 0].tolist() == [1.5, 4.0, 8.0, 16.0, 32.0]
    assert vectors_AWD[1, :, 0].tolist() == [50.5, 2.0, 200.0, 16.0, 16.0]


@pytest.mark.parametrize(
    ("state", "dtype", "message"),
    [
        (
            float("nan"),
            "float32",
            r"by hand: the vectors of 1 words of a batch are NaN or infinite",
        ),
        (float("inf"), "float16", r"are NaN or infinite in fp32"),
        (7e4, "float16", r"cache_dtype=fp16 cannot hold 7e\+04; give cache_dtype=fp32"),
    ],
)
def test_vectors_that_are_no_numbers(state: float, dtype: str, message: str) -> None:
    vectors_AWD = np.zeros((1, 5, 1), dtype=dtype)
    states = [[100.0, 1.0, 2.0, state], *STATES[1:]]
    with pytest.raises(BadInput, match=message):
        fill(vectors_AWD, laid_by_hand(), encoder=ByHand(states), shifts=(0,))  # type: ignore[arg-type]


def test_vectors_on_the_disk_are_found_again(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the same encoder, settings, words, alignments and type only; a damaged file is no file."""
    encoder = encoder_of(tiny_model)
    plain = word_features(encoder, SENTENCES, shifts=(0,))

    def mapped(dtype: str = "fp16", **changes: object) -> tuple[bool, NDArray[np.float32]]:
        used = encoder_of(tiny_model, **changes) if changes else encoder
        found = word_features(used, SENTENCES, shifts=(0,), dtype=dtype, folder=tmp_path)
        return found.seconds is None, found.vectors_AWD

    was_there, vectors_AWD = mapped()
    assert not was_there
    assert isinstance(vectors_AWD, np.memmap)
    assert vectors_AWD.dtype == np.float16
    assert (
        np.abs(vectors_AWD.astype(np.float32) - plain.vectors_AWD).max()
        < 2e-3 * np.abs(plain.vectors_AWD).max()
    )
    kept_AWD = vectors_AWD.copy()
    again, same_AWD = mapped()
    assert again
    assert np.array_equal(same_AWD, kept_AWD)
    assert not mapped("fp32")[0]
    assert not mapped(causal=True)[0]
    assert mapped(batch_tokens=64)[0]
    assert len(list(tmp_path.glob("*.npy"))) == 3
    for harm in (lambda data: data[:-1], lambda data: data[:-9] + b"\7" + data[-8:]):
        for file in tmp_path.glob("*.npy"):
            file.write_bytes(harm(file.read_bytes()))
        capsys.readouterr()
        assert not mapped()[0]
        assert "is made again" in capsys.readouterr().err
    assert np.array_equal(mapped()[1], kept_AWD)
