"""Words to vectors: the mean of a word's sub-tokens, from a frozen encoder, kept for many epochs.

A sentence is its words with a blank between them, tokenised as a whole. A token belongs to each
word of which it holds a character; a token of a blank alone belongs to the word after it. Shapes: W
words of all sentences, D width, T tokens, M pairs of a token and a word, A alignments (shifted or
not).
"""

import dataclasses
import hashlib
import itertools
import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from toolkit.base.console import Progress, warn
from toolkit.base.errors import BadInput
from toolkit.base.files import naming, read_json, sha256_of, temporary_of, write_json
from toolkit.settings.schema import EncoderSettings
from toolkit.text.tokens import Ids, Places, TextTokenizer

DTYPES = {"fp32": np.float32, "fp16": np.float16}
FP16_MAX = float(np.finfo(np.float16).max)


class TokenEncoder(Protocol):
    """The part of `toolkit.encoding.encoder.Encoder` that is needed here."""

    settings: EncoderSettings
    tokenizer: TextTokenizer
    token_width: int

    def digest(self) -> str:
        """The digest that identifies the encoder's weights."""

    def token_states(self, rows: Sequence[Ids]) -> Iterator[tuple[Sequence[int], Tensor]]:
        """For each batch the numbers of its rows, and the hidden states (T, D) of their tokens."""


@dataclasses.dataclass(frozen=True)
class WordRows:
    """Rows of token ids for the encoder. Each row has M pairs: a token's place in the row
    (`token_M`) and the number of a word that it belongs to (`word_M`)."""

    rows: list[Ids]
    token_M: list[Ids]
    word_M: list[Ids]
    tokens_of_W: NDArray[np.int64]
    num_split: int

    @property
    def num_empty(self) -> int:
        """The number of words that have no token."""
        return int((self.tokens_of_W == 0).sum())


@dataclasses.dataclass(frozen=True)
class WordFeatures:
    """Word vectors (A, W, D), one alignment after another; zeros for a word without tokens.

    `seconds` is how long encoding took, or None where the vectors were already on disk.
    """

    vectors_AWD: NDArray[Any]
    num_empty: int
    num_split: int
    seconds: float | None


def lay_words(sentences: Sequence[Sequence[str]], *, tokenizer: TextTokenizer) -> WordRows:
    """The rows of all sentences. A sentence beyond the tokenizer's limit becomes several rows, cut
    between words where possible: no word and no token of a word is lost."""
    num_words = sum(map(len, sentences))
    laid = WordRows([], [], [], np.zeros(num_words, dtype=np.int64), 0)
    num_split = first_word = 0
    room = max(1, tokenizer.max_tokens - tokenizer.num_added)
    # Words of blanks alone are left out: a tokenizer may drop them, and places would not match.
    filled = [[n for n, word in enumerate(words) if word.strip()] for words in sentences]
    texts = [
        " ".join(words[n] for n in numbers)
        for words, numbers in zip(sentences, filled, strict=True)
    ]
    encoded = tokenizer.places(texts)
    for words, numbers, tokens in zip(sentences, filled, encoded, strict=True):
        lengths = np.array([len(words[n]) for n in numbers], dtype=np.int64)
        from_T, to_T = _words_of(tokens, lengths=lengths)
        cuts = _cuts(from_T, to_T, room=room) if numbers else [0]
        num_split += len(cuts) > 2
        number_of = np.array(numbers, dtype=np.int64) + first_word
        for start, stop in itertools.pairwise(cuts):
            count_T = to_T[start:stop] - from_T[start:stop] + 1
            token_M = np.repeat(np.arange(start, stop), count_T)
            nth_M = np.arange(len(token_M)) - np.repeat(np.cumsum(count_T) - count_T, count_T)
            word_M = number_of[from_T[token_M] + nth_M]
            laid.rows.append(tokenizer.as_row(tokens.ids_T[start:stop]))
            laid.token_M.append(token_M - start + len(tokenizer.prefix_ids))
            laid.word_M.append(word_M)
            np.add.at(laid.tokens_of_W, word_M, 1)
        first_word += len(words)
    return dataclasses.replace(laid, num_split=num_split)


def _words_of(tokens: Places, *, lengths: NDArray[np.int64]) -> tuple[Ids, Ids]:
    """The first and the last word (T,) of each token, by the characters that it covers."""
    end_W = np.cumsum(lengths + 1) - 1  # a blank between two words
    start_W = end_W - lengths
    from_T = np.searchsorted(end_W, tokens.begin_T, side="right")
    from_T = np.minimum(from_T, max(0, len(lengths) - 1))
    to_T = np.searchsorted(start_W, tokens.end_T, side="left") - 1
    # A token of a blank alone, or of no character, belongs to the word that begins there.
    return from_T, np.maximum(to_T, from_T)


def _cuts(from_T: Ids, to_T: Ids, *, room: int) -> list[int]:
    """0 and the ends of rows of at most `room` tokens; only a longer word is cut inside."""
    cuts = [0]
    begins = np.flatnonzero(from_T[1:] > to_T[:-1]) + 1
    while cuts[-1] < len(from_T):
        end = cuts[-1] + room
        if end < len(from_T):
            before = begins[(begins > cuts[-1]) & (begins <= end)]
            end = int(before[-1]) if len(before) else end
        cuts.append(min(end, len(from_T)))
    return cuts


def pool_words(
    state_TD: Tensor, *, token_M: NDArray[np.int64], local_M: NDArray[np.int64], num_words: int
) -> Tensor:
    """The sum (num_words, D) of the states of each word's tokens; `local_M` numbers the words."""
    device = state_TD.device
    chosen_MD = state_TD.index_select(0, torch.from_numpy(token_M).to(device))
    zeros_WD = chosen_MD.new_zeros(num_words, state_TD.shape[1])
    return zeros_WD.index_add(0, torch.from_numpy(local_M).to(device), chosen_MD)


def fill(
    vectors_AWD: NDArray[Any], laid: WordRows, *, encoder: TokenEncoder, shifts: Sequence[int]
) -> None:
    """Write the vectors of all words, once for each of `shifts`: how many tokens earlier a word's
    states are taken.

    With a shift of one, a token is represented by the state that predicts it after MNTP (LLM2Vec,
    section 3), and the first token of a row by the begin token. Without a begin token, the first
    token represents itself. Raises `BadInput` where a vector is not finite, or fp16 cannot hold it.
    """
    progress = Progress("word vectors", total=len(laid.rows), unit="rows")
    for numbers, state_TD in encoder.token_states(laid.rows):
        ends = np.cumsum([len(laid.rows[n]) for n in numbers])
        starts = ends - [len(laid.rows[n]) for n in numbers]
        word_M = np.concatenate([laid.word_M[n] for n in numbers])
        words, local_M = np.unique(word_M, return_inverse=True)
        count_W1 = laid.tokens_of_W[words][:, None].astype(np.float32)
        for vectors_WD, shift in zip(vectors_AWD, shifts, strict=True):
            token_M = np.concatenate(
                [
                    np.maximum(laid.token_M[n] - shift, 0) + at
                    for n, at in zip(numbers, starts, strict=True)
                ]
            )
            sum_WD = pool_words(state_TD, token_M=token_M, local_M=local_M, num_words=len(words))
            mean_WD = sum_WD.cpu().numpy() / count_W1
            _check(mean_WD, dtype=vectors_WD.dtype, settings=encoder.settings)
            # Added, not assigned: a word that was cut inside arrives in parts.
            vectors_WD[words] += mean_WD.astype(vectors_WD.dtype)
        progress.advance(len(numbers))
    progress.close()


def _check(mean_WD: NDArray[np.float32], *, dtype: Any, settings: EncoderSettings) -> None:
    if not np.isfinite(mean_WD).all():
        count = int((~np.isfinite(mean_WD)).any(axis=1).sum())
        raise BadInput(
            f"{settings.model}: the vectors of {count} words of a batch are NaN or infinite in "
            f"{settings.dtype}; try the encoder's dtype=fp32"
        )
    if dtype == np.float16 and (largest := float(np.abs(mean_WD).max(initial=0))) > FP16_MAX:
        raise BadInput(f"cache_dtype=fp16 cannot hold {largest:.3g}; give cache_dtype=fp32")


def word_features(
    encoder: TokenEncoder,
    sentences: Sequence[Sequence[str]],
    *,
    shifts: Sequence[int],
    dtype: str = "fp32",
    folder: Path | None = None,
) -> WordFeatures:
    """The vectors of all words, in memory or in a mapped file in `folder`, which is used again for
    the same encoder, settings and words. See `fill`."""
    laid = lay_words(sentences, tokenizer=encoder.tokenizer)
    shape = (len(shifts), len(laid.tokens_of_W), encoder.token_width)
    began = time.monotonic()
    if folder is None:
        vectors_AWD: NDArray[Any] = np.zeros(shape, dtype=DTYPES[dtype])
        fill(vectors_AWD, laid, encoder=encoder, shifts=shifts)
        return WordFeatures(vectors_AWD, laid.num_empty, laid.num_split, time.monotonic() - began)
    path = folder / f"{_key(encoder, sentences, shifts=shifts, dtype=dtype)}.npy"
    seconds = None
    mapped = _opened(path, shape=shape, dtype=dtype)
    if mapped is None:
        folder.mkdir(parents=True, exist_ok=True)
        temporary = temporary_of(path)
        try:
            mapped = new_map(temporary, shape=shape, dtype=dtype)
            fill(mapped, laid, encoder=encoder, shifts=shifts)
            with naming(path):
                mapped.flush()
            # The digest first: vectors without one would be taken for damaged.
            write_json(_note(path), {"sha256": sha256_of(temporary)})
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        seconds = time.monotonic() - began
    return WordFeatures(mapped, laid.num_empty, laid.num_split, seconds)


def _opened(path: Path, *, shape: tuple[int, ...], dtype: str) -> Any:
    """Map a file of vectors; None unless it exists and is whole. Its SHA-256 is compared, since it
    is read whole anyway."""
    if not path.exists():
        return None
    try:
        if dict(read_json(_note(path))).get("sha256") != sha256_of(path):
            raise ValueError("its SHA-256 differs")
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, TypeError, EOFError) as error:
        warn(f"{path}: is made again ({error})")
        return None
    return mapped if (mapped.shape, mapped.dtype) == (shape, np.dtype(DTYPES[dtype])) else None


def _note(path: Path) -> Path:
    return path.with_suffix(".json")


def new_map(path: Path, *, shape: tuple[int, ...], dtype: str) -> Any:
    """Create a mapped file of zeros with all its space on disk reserved. A full disk is an
    `OSError` here; later, writing to a page without space would kill the process."""
    with naming(path):
        mapped = np.lib.format.open_memmap(path, mode="w+", dtype=DTYPES[dtype], shape=shape)
        with path.open("r+b") as handle:
            os.posix_fallocate(handle.fileno(), 0, os.fstat(handle.fileno()).st_size)
    return mapped


def _key(
    encoder: TokenEncoder, sentences: Sequence[Sequence[str]], *, shifts: Sequence[int], dtype: str
) -> str:
    """The file name of vectors: a digest of all that they depend on."""
    words = hashlib.sha256(json.dumps(sentences).encode()).hexdigest()
    settings = encoder.settings.facts()
    made_of = [encoder.digest(), encoder.token_width, settings, words, list(shifts), dtype]
    return hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:32]
