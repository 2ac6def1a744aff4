"""Texts to padded token arrays. Knows the `tokenizers` library; refuses to know models.

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

# Texts are tokenised in parts of so many characters: the tokenizers library keeps a hundred bytes
# for each token of a text, and gives them back only when the whole text is done.
PART_CHARS = 2**20
# For the same reason so many texts are given to it at a time.
PART_TEXTS = 256
# A text that is cut is tokenised as far as its first tokens can need: at first so many characters
# for each of them and some more, then `GROWTH` times as many, until the rest can change nothing.
CHARS_PER_TOKEN = 8
LOOKAHEAD_CHARS = 256
GROWTH = 4
# What follows a word of more characters than this is not waited for. Only a tokenizer that looks
# at the whole word (Viterbi's, or digits in threes from the right) could tell.
MAX_WORD_CHARS = 2**16
# Nor is anything waited for beyond so many characters: a text of which they hold fewer tokens than
# the limit (blanks without end, where blanks are folded) ends there.
MAX_CUT_CHARS = 2**20
SHOWN_CHARS = 60

Ids = NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class TokenBatch:
    """A right-padded batch. `own_BT` marks a text's own tokens: not begin, end or padding."""

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
    """A text's own tokens, and the characters from begin to end that each stands for."""

    ids_T: Ids
    begin_T: Ids
    end_T: Ids


def is_unicode(text: str) -> bool:
    """Whether it can be written as UTF-8: half a surrogate pair cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class TextTokenizer:
    """A truncating tokenizer. `special_ids` are never a text's own tokens.

    `num_embeddings` is how many ids the model has vectors of. A tokenizer may know more tokens, of
    which some were added to it alone: a text that holds one is refused.
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
        self._tokenizer = Tokenizer.from_str(tokenizer.to_str())  # ours alone: settings are state
        self._tokenizer.no_padding()
        self._whole = Tokenizer.from_str(self._tokenizer.to_str())
        self._whole.no_truncation()
        self._tokenizer.enable_truncation(max_tokens)
        for ours in (self._tokenizer, self._whole):
            _forget_texts(ours)
        self._special_ids = np.asarray(sorted(special_ids), dtype=np.int64)
        self._pad_id = pad_id
        vocab: dict[str, int] = self._tokenizer.get_vocab()
        # Ids may have gaps: the largest may be beyond the number of tokens.
        self.num_ids = 1 + max(vocab.values())
        self._num_embeddings = num_embeddings or self.num_ids
        self.vocab_size = min(len(vocab), self._num_embeddings)
        self.max_tokens = max_tokens
        # What a text begins and ends with, such as the begin token.
        whole = self._whole.encode("a").ids
        inner = self._whole.encode("a", add_special_tokens=False).ids
        first = next(k for k in range(len(whole)) if whole[k : k + len(inner)] == inner)
        self.prefix_ids: tuple[int, ...] = tuple(whole[:first])
        self.suffix_ids: tuple[int, ...] = tuple(whole[first + len(inner) :])
        self._lookahead = max(LOOKAHEAD_CHARS, 2 * max(map(len, vocab)))
        around = [*self.prefix_ids, *self.suffix_ids, pad_id]
        self.check_ids(np.array(around), where="what stands around every text")

    def check_ids(self, ids: NDArray[Any], *, where: str) -> None:
        """Raise `BadInput` for a token that the model has no vector of; `where` names its text."""
        if self.num_ids > self._num_embeddings and len(ids):
            self.check_largest(int(ids.max()), where=where)

    def check_largest(self, number: int, *, where: str) -> None:
        """`check_ids` of the largest one."""
        if number >= self._num_embeddings:
            token = self._tokenizer.id_to_token(number)
            raise BadInput(
                f"{where}: holds the token {token!r} (id {number}), and the model has vectors of "
                f"{self._num_embeddings} tokens (ids below that) alone; take the token out of the "
                "tokenizer, or enlarge the model's embedding (resize_token_embeddings)"
            )

    @property
    def digest(self) -> str:
        """The SHA-256 of all that decides which tokens a text becomes."""
        return hashlib.sha256(self._whole.to_str().encode()).hexdigest()

    def tokenize(
        self, texts: Sequence[str], *, marks: Sequence[Ids]
    ) -> list[tuple[NDArray[np.uint32], Ids]]:
        """Of each text all its tokens, no special ones added, and the tokens that begin at `marks`.

        `marks` are ascending character places of each text. A text is tokenised in parts of
        `PART_CHARS`, cut at a blank where there is one.
        """
        bounds = [part_bounds(text) for text in texts]
        parts = [
            text[start:end]
            for text, ends in zip(texts, bounds, strict=True)
            for start, end in itertools.pairwise(ends)
        ]
        encodings = iter(self._whole.encode_batch(parts, add_special_tokens=False))
        found = []
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
            found.append((np.concatenate(ids), np.array(tokens, dtype=np.int64)))
        return found

    def places(self, texts: Sequence[str]) -> list[Places]:
        """Of each text all its tokens, no special ones added, and where they are in it."""
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
        """Token ids of each text, special tokens included, cut at the limit: those of the whole
        text and no others, though a long text is tokenised only as far as it must be. The exception
        is a text of which `MAX_CUT_CHARS` characters hold fewer tokens than the limit: it ends
        there."""
        found = []
        for text, encoding in zip(texts, self._encodings(texts), strict=True):
            found.append(np.asarray(encoding.ids, dtype=np.int64))
            self.check_ids(found[-1], where=_shown(text))
        return found

    def encode_after(
        self, prefix: str, texts: Sequence[str]
    ) -> list[tuple[Ids, NDArray[np.bool_]]]:
        """Token ids of `prefix` and text together, cut at the limit, and which are the text's own.

        The prefix, an instruction, is never pooled. A token that holds its end and the beginning of
        the text belongs to the text.
        """
        found = []
        whole = [prefix + text for text in texts]
        for text, encoding in zip(whole, self._encodings(whole), strict=True):
            ids_T = np.asarray(encoding.ids, dtype=np.int64)
            self.check_ids(ids_T, where=_shown(text))
            ends_T = np.array([end for _, end in encoding.offsets], dtype=np.int64)
            found.append((ids_T, (ends_T > len(prefix)) & self.is_own(ids_T)))
        return found

    @property
    def num_added(self) -> int:
        """The tokens that a text begins and ends with."""
        return len(self.prefix_ids) + len(self.suffix_ids)

    def as_row(self, ids_T: Ids) -> Ids:
        """A text's own tokens with those that it begins and ends with."""
        row = np.concatenate([self.prefix_ids, ids_T, self.suffix_ids])
        return row.astype(np.int64)

    def _encodings(self, texts: Sequence[str]) -> Iterator[Encoding]:
        for start in range(0, len(texts), PART_TEXTS):
            yield from self._cut(texts[start : start + PART_TEXTS])

    def _cut(self, texts: Sequence[str]) -> list[Encoding]:
        """The first tokens of each text, which no character behind what was tokenised can change:
        a text of 50 MB would else be tokenised whole and thrown away."""
        size = self.max_tokens * CHARS_PER_TOKEN + 2 * self._lookahead
        limit = max(MAX_CUT_CHARS, GROWTH * size)
        found: list[Encoding] = self._tokenizer.encode_batch([text[:size] for text in texts])
        open_ones = [n for n, text in enumerate(texts) if len(text) > size]
        while size < limit and (
            open_ones := [
                n for n in open_ones if not self._is_settled(found[n], texts[n], size=size)
            ]
        ):
            size = min(GROWTH * size, limit)
            for group in _groups([(n, 0, min(size, len(texts[n]))) for n in open_ones]):
                again = self._tokenizer.encode_batch([texts[n][:end] for n, _, end in group])
                for (n, _, _), encoding in zip(group, again, strict=True):
                    found[n] = encoding
        return found

    def _is_settled(self, encoding: Encoding, text: str, *, size: int) -> bool:
        """Whether the tokens of the first `size` characters are those that the whole text has.

        They are where the last one begins in a word that has ended, and the characters behind that
        word are so many that no token reaches beyond them. Blanks at the end do not count: what
        follows may take them all for itself.
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
        """Which of these ids are a text's own tokens."""
        return ~np.isin(ids, self._special_ids)

    def pad(self, rows: Sequence[Ids]) -> TokenBatch:
        """Pad rows to the longest (at least one token)."""
        num_tokens = max(1, *(len(row) for row in rows))
        ids_BT = np.full((len(rows), num_tokens), self._pad_id, dtype=np.int64)
        mask_BT = np.zeros_like(ids_BT)
        for number, row in enumerate(rows):
            ids_BT[number, : len(row)] = row
            mask_BT[number, : max(1, len(row))] = 1  # a row that attends to nothing gives NaN
        own_BT = mask_BT * self.is_own(ids_BT)  # padding is a special id
        return TokenBatch(ids_BT=ids_BT, mask_BT=mask_BT, own_BT=own_BT)

    def pack(self, rows: Sequence[Ids]) -> PackedBatch:
        """Put rows one after another. An empty row becomes one padding token, which is not its own:
        attention over nothing has no result."""
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
        """The id of a token by its exact text, or None."""
        found: int | None = self._tokenizer.token_to_id(token)
        return found


def _groups(parts: Sequence[tuple[int, int, int]]) -> Iterator[list[tuple[int, int, int]]]:
    """Parts (text, start, end) in groups of about `PART_CHARS`."""
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
    """A text as an error names it."""
    return f"the text {text[:SHOWN_CHARS]!r}"


def _forget_texts(tokenizer: Tokenizer) -> None:
    """Have a tokenizer that does not split texts into words keep no cache of "words": ten thousand
    whole sentences are 90 MiB, and come back an epoch later at best."""
    text = "two words"
    if tokenizer.normalizer is not None:
        text = tokenizer.normalizer.normalize_str(text)
    words = tokenizer.pre_tokenizer.pre_tokenize_str(text) if tokenizer.pre_tokenizer else [text]
    resize = getattr(tokenizer.model, "_resize_cache", None)
    if resize is not None and len(words) == 1:
        resize(0)


def part_bounds(text: str) -> list[int]:
    """0, the ends of the parts, and the length of a text: parts end after a blank if they can."""
    bounds = [0]
    while len(text) - bounds[-1] > PART_CHARS:
        end = bounds[-1] + PART_CHARS
        blank = max(text.rfind(" ", bounds[-1], end), text.rfind("\n", bounds[-1], end))
        bounds.append(blank + 1 if blank > bounds[-1] else end)
    return [*bounds, len(text)]
