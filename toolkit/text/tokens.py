"""Turns texts into arrays of tokens. Knows the `tokenizers` library; refuses to know models.

Shapes: B rows, T tokens.
"""

import dataclasses
import hashlib
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from toolkit.base.errors import BadInput

# A long text is tokenised in parts of this many characters, because the tokenizers library keeps
# about a hundred bytes per token until the whole text is done.
PART_CHARS = 2**20
# The number of texts that are passed to it at a time, for the same reason.
PART_TEXTS = 256
# A text that will be cut is tokenised only as far as its first tokens need it: first this many
# characters per token and some more, then `GROWTH` times as many, until the rest of the text cannot
# change these tokens.
CHARS_PER_TOKEN = 8
LOOKAHEAD_CHARS = 256
GROWTH = 4
# A word longer than this is not read to its end. Its first tokens depend on its end only in
# tokenizers that look at whole words (by Viterbi's algorithm, or digits in threes from the right).
MAX_WORD_CHARS = 2**16
# No text is read further than this. If these characters hold fewer tokens than the limit (endless
# blanks that the tokenizer folds to one), the text ends there.
MAX_CUT_CHARS = 2**20
SHOWN_CHARS = 60

Ids = NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class TokenBatch:
    """A batch padded on the right. `own_BT` is 1 for a text's own tokens, and 0 for begin, end and
    padding tokens; `mask_BT` is 0 for padding only."""

    ids_BT: Ids
    mask_BT: Ids
    own_BT: Ids


@dataclasses.dataclass(frozen=True)
class PackedBatch:
    """Rows one after another, without padding: B = 1, T = all tokens, S rows.

    Row s is ids_BT[0, bound_S[s] : bound_S[s + 1]], so bound_S has S + 1 entries. Positions count
    from 0 in each row.
    """

    ids_BT: Ids
    position_BT: Ids
    own_BT: Ids
    bound_S: NDArray[np.int32]
    max_length: int


@dataclasses.dataclass(frozen=True)
class Places:
    """A text's own tokens, and the range of characters, begin to end, that each stands for."""

    ids_T: Ids
    begin_T: Ids
    end_T: Ids


def is_unicode(text: str) -> bool:
    """Whether a text can be written as UTF-8; a lone surrogate cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class TextTokenizer:
    """A tokenizer that cuts texts at `max_tokens`. `special_ids` are never a text's own tokens.

    `num_embeddings` is the number of ids for which the model has a vector. A tokenizer may know
    more tokens, if some were added to it but not to the model; a text with such a token is refused.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        special_ids: Sequence[int],
        pad_id: int,
        max_tokens: int,
        num_embeddings: int | None = None,
    ) -> None:
        # A copy, because padding and truncation are settings inside the tokenizer itself.
        self._tokenizer = Tokenizer.from_str(tokenizer.to_str())
        self._tokenizer.no_padding()
        self._whole = Tokenizer.from_str(self._tokenizer.to_str())
        self._whole.no_truncation()
        self._tokenizer.enable_truncation(max_tokens)
        for ours in (self._tokenizer, self._whole):
            _forget_texts(ours)
        self._special_ids = np.asarray(sorted(special_ids), dtype=np.int64)
        self._pad_id = pad_id
        vocab: dict[str, int] = self._tokenizer.get_vocab()
        # Ids may have gaps, so the largest id may exceed the number of tokens.
        self.num_ids = 1 + max(vocab.values())
        self._num_embeddings = num_embeddings or self.num_ids
        self.vocab_size = min(len(vocab), self._num_embeddings)
        self.max_tokens = max_tokens
        # The tokens that are put around every text, such as the begin token.
        whole = self._whole.encode("a").ids
        inner = self._whole.encode("a", add_special_tokens=False).ids
        first = next(k for k in range(len(whole)) if whole[k : k + len(inner)] == inner)
        self.prefix_ids: tuple[int, ...] = tuple(whole[:first])
        self.suffix_ids: tuple[int, ...] = tuple(whole[first + len(inner) :])
        self._lookahead = max(LOOKAHEAD_CHARS, 2 * max(map(len, vocab)))
        around = [*self.prefix_ids, *self.suffix_ids, pad_id]
        self.check_ids(np.array(around), where="what stands around every text")

    def check_ids(self, ids: NDArray[Any], *, where: str) -> None:
        """Raise `BadInput` for a token without a vector in the model; `where` names its text."""
        if self.num_ids > self._num_embeddings and len(ids):
            self.check_largest(int(ids.max()), where=where)

    def check_largest(self, number: int, *, where: str) -> None:
        """`check_ids`, given only the largest id of a text."""
        if number >= self._num_embeddings:
            token = self._tokenizer.id_to_token(number)
            raise BadInput(
                f"{where}: holds the token {token!r} (id {number}), but the model has vectors only "
                f"for ids below {self._num_embeddings}; take the token out of the tokenizer, or "
                "enlarge the model's embedding (resize_token_embeddings)"
            )

    @property
    def digest(self) -> str:
        """The SHA-256 of everything that decides the tokens of a text."""
        return hashlib.sha256(self._whole.to_str().encode()).hexdigest()

    def tokenize(
        self, texts: Sequence[str], *, marks: Sequence[Ids]
    ) -> list[tuple[NDArray[np.uint32], Ids]]:
        """For each text all its tokens, without special ones, and the indices of the tokens that
        hold the characters `marks`.

        `marks` are ascending indices of characters. A text is tokenised in parts of `PART_CHARS`
        characters, which end at a blank if there is one.
        """
        bounds = [part_bounds(text) for text in texts]
        parts = [
            text[start:end]
            for text, ends in zip(texts, bounds, strict=True)
            for start, end in itertools.pairwise(ends)
        ]
        encodings = iter(self._whole.encode_batch(parts, add_special_tokens=False))
        tokenized = []
        for ends, places in zip(bounds, marks, strict=True):
            ids: list[NDArray[np.uint32]] = [np.array([], dtype=np.uint32)]
            tokens: list[int] = []
            num_tokens = 0
            for start, end in itertools.pairwise(ends):
                encoding = next(encodings)
                ids.append(np.array(encoding.ids, dtype=np.uint32))
                inside = places[np.searchsorted(places, start) : np.searchsorted(places, end)]
                at = (encoding.char_to_token(int(place) - start) for place in inside)
                tokens.extend(num_tokens + token for token in at if token is not None)
                num_tokens += len(encoding)
            tokenized.append((np.concatenate(ids), np.array(tokens, dtype=np.int64)))
        return tokenized

    def places(self, texts: Sequence[str]) -> list[Places]:
        """For each text all its tokens, without special ones, with their places in the text."""
        parts = [
            (number, start, end)
            for number, text in enumerate(texts)
            for start, end in itertools.pairwise(part_bounds(text))
        ]
        pieces: list[list[Ids]] = [[np.zeros((0, 3), dtype=np.int64)] for _ in texts]
        for some in _groups(parts):
            cut = [texts[number][start:end] for number, start, end in some]
            encodings = self._whole.encode_batch(cut, add_special_tokens=False)
            for (number, start, _), encoding in zip(some, encodings, strict=True):
                piece_T3 = np.empty((len(encoding), 3), dtype=np.int64)
                piece_T3[:, 0] = encoding.ids
                self.check_ids(piece_T3[:, 0], where=_shown(texts[number][start:]))
                piece_T3[:, 1:] = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2) + start
                pieces[number].append(piece_T3)
        return [Places(*np.concatenate(one).T) for one in pieces]

    def encode(self, texts: Sequence[str]) -> list[Ids]:
        """Token ids of each text, special tokens included, cut at `max_tokens`. They are the first
        ids of the whole text, even though a long text is tokenised only as far as necessary. The
        one exception is a text whose first `MAX_CUT_CHARS` characters hold fewer tokens than the
        limit: it ends there."""
        rows = []
        for text, encoding in zip(texts, self._encodings(texts), strict=True):
            rows.append(np.asarray(encoding.ids, dtype=np.int64))
            self.check_ids(rows[-1], where=_shown(text))
        return rows

    def encode_after(
        self, prefix: str, texts: Sequence[str]
    ) -> list[tuple[Ids, NDArray[np.bool_]]]:
        """Token ids of `prefix` and text together, cut at `max_tokens`, and for each id whether it
        is one of the text's own.

        The prefix, an instruction, is never pooled. A token that spans the end of the prefix and
        the beginning of the text belongs to the text.
        """
        rows = []
        whole = [prefix + text for text in texts]
        for text, encoding in zip(whole, self._encodings(whole), strict=True):
            ids_T = np.asarray(encoding.ids, dtype=np.int64)
            self.check_ids(ids_T, where=_shown(text))
            ends_T = np.array([end for _, end in encoding.offsets], dtype=np.int64)
            rows.append((ids_T, (ends_T > len(prefix)) & self.is_own(ids_T)))
        return rows

    @property
    def num_added(self) -> int:
        """The number of special tokens that are put around every text."""
        return len(self.prefix_ids) + len(self.suffix_ids)

    def as_row(self, ids_T: Ids) -> Ids:
        """A row for the model: a text's own tokens with the special tokens around them."""
        row = np.concatenate([self.prefix_ids, ids_T, self.suffix_ids])
        return row.astype(np.int64)

    def _encodings(self, texts: Sequence[str]) -> Iterator[Encoding]:
        for start in range(0, len(texts), PART_TEXTS):
            yield from self._cut(texts[start : start + PART_TEXTS])

    def _cut(self, texts: Sequence[str]) -> list[Encoding]:
        """The first `max_tokens` tokens of each text. Only as many characters are read as can
        change them; a text of 50 MB would otherwise be tokenised whole, and mostly thrown away."""
        size = self.max_tokens * CHARS_PER_TOKEN + 2 * self._lookahead
        limit = max(MAX_CUT_CHARS, GROWTH * size)
        encodings: list[Encoding] = self._tokenizer.encode_batch([text[:size] for text in texts])
        open_ones = [n for n, text in enumerate(texts) if len(text) > size]
        while size < limit and (
            open_ones := [
                n for n in open_ones if not self._is_settled(encodings[n], texts[n], size=size)
            ]
        ):
            size = min(GROWTH * size, limit)
            for group in _groups([(n, 0, min(size, len(texts[n]))) for n in open_ones]):
                again = self._tokenizer.encode_batch([texts[n][:end] for n, _, end in group])
                for (n, _, _), encoding in zip(group, again, strict=True):
                    encodings[n] = encoding
        return encodings

    def _is_settled(self, encoding: Encoding, text: str, *, size: int) -> bool:
        """Whether the first `max_tokens` tokens of the first `size` characters are also those of
        the whole text.

        They are if the last one begins in a word that has ended, and so many characters follow that
        word that no token can span them. Blanks at the end do not count, because the next token may
        take all of them.
        """
        if len(text) <= size:
            return True
        last = self.max_tokens - len(self.suffix_ids) - 1
        if len(encoding) < self.max_tokens or last < 0:
            return False
        begin = encoding.offsets[last][0]
        words = text[:size].rstrip()[: -self._lookahead].rsplit(None, 1)
        return size - begin >= MAX_WORD_CHARS or (len(words) == 2 and begin < len(words[0]))

    def is_own(self, ids: Ids) -> NDArray[np.bool_]:
        """Whether each of these ids is a text's own token."""
        return ~np.isin(ids, self._special_ids)

    def pad(self, rows: Sequence[Ids]) -> TokenBatch:
        """Pad rows on the right to the longest row, at least to one token."""
        num_tokens = max(1, *(len(row) for row in rows))
        ids_BT = np.full((len(rows), num_tokens), self._pad_id, dtype=np.int64)
        mask_BT = np.zeros_like(ids_BT)
        for number, row in enumerate(rows):
            ids_BT[number, : len(row)] = row
            mask_BT[number, : max(1, len(row))] = 1  # a row that attends to nothing gives NaN
        own_BT = mask_BT * self.is_own(ids_BT)  # padding is a special id
        return TokenBatch(ids_BT=ids_BT, mask_BT=mask_BT, own_BT=own_BT)

    def pack(self, rows: Sequence[Ids]) -> PackedBatch:
        """Put rows one after another. An empty row becomes one padding token, which is not its own
        token, because attention over no tokens has no result."""
        filled = [row if len(row) else np.array([self._pad_id], dtype=np.int64) for row in rows]
        ids_T = np.concatenate(filled)
        lengths = [len(row) for row in filled]
        return PackedBatch(
            ids_BT=ids_T[None],
            position_BT=np.concatenate([np.arange(length) for length in lengths])[None],
            own_BT=self.is_own(ids_T)[None].astype(np.int64),
            bound_S=np.cumsum([0, *lengths], dtype=np.int32),
            max_length=max(lengths),
        )

    def token_id(self, token: str) -> int | None:
        """The id of the token with exactly this text; None if there is none."""
        number: int | None = self._tokenizer.token_to_id(token)
        return number


def _groups(parts: Sequence[tuple[int, int, int]]) -> Iterator[list[tuple[int, int, int]]]:
    """Parts (text, start, end) in groups of about `PART_CHARS` characters."""
    group: list[tuple[int, int, int]] = []
    num_chars = 0
    for part in parts:
        group.append(part)
        num_chars += part[2] - part[1]
        if num_chars >= PART_CHARS:
            yield group
            group, num_chars = [], 0
    if group:
        yield group


def _shown(text: str) -> str:
    """A text in the words of an error message, cut to its beginning."""
    return f"the text {text[:SHOWN_CHARS]!r}"


def _forget_texts(tokenizer: Tokenizer) -> None:
    """Turn off the cache of words in a tokenizer that does not split texts into words. It would
    hold ten thousand whole sentences, which are 90 MiB, and a sentence comes again only an epoch
    later."""
    text = "two words"
    if tokenizer.normalizer is not None:
        text = tokenizer.normalizer.normalize_str(text)
    words = tokenizer.pre_tokenizer.pre_tokenize_str(text) if tokenizer.pre_tokenizer else [text]
    resize = getattr(tokenizer.model, "_resize_cache", None)
    if resize is not None and len(words) == 1:
        resize(0)


def part_bounds(text: str) -> list[int]:
    """Where the parts of a text begin and end: from 0 to its length, each bound after a blank if
    there is one."""
    bounds = [0]
    while len(text) - bounds[-1] > PART_CHARS:
        end = bounds[-1] + PART_CHARS
        blank = max(text.rfind(" ", bounds[-1], end), text.rfind("\n", bounds[-1], end))
        bounds.append(blank + 1 if blank > bounds[-1] else end)
    return [*bounds, len(text)]
