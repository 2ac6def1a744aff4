"""Texts to padded token arrays. Knows the `tokenizers` library; refuses to know models.

Shapes: B rows, T tokens.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

# No tokenizer in use has ordinary tokens longer than this; text beyond it cannot reach the limit.
MAX_CHARS_PER_TOKEN = 32

Ids = NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class TokenBatch:
    """A right-padded batch. `own_BT` marks a text's own tokens: not begin, end or padding."""

    ids_BT: Ids
    mask_BT: Ids
    own_BT: Ids


class TextTokenizer:
    """A truncating tokenizer. `special_ids` are never a text's own tokens."""

    def __init__(
        self, tokenizer: Tokenizer, *, special_ids: Sequence[int], pad_id: int, max_tokens: int
    ) -> None:
        self._tokenizer = Tokenizer.from_str(tokenizer.to_str())  # ours alone: settings are state
        self._tokenizer.no_padding()
        self._whole = Tokenizer.from_str(self._tokenizer.to_str())
        self._whole.no_truncation()
        self._tokenizer.enable_truncation(max_tokens)
        self._special_ids = np.asarray(sorted(special_ids), dtype=np.int64)
        self._pad_id = pad_id
        self._max_chars = max_tokens * MAX_CHARS_PER_TOKEN
        self.vocab_size = self._tokenizer.get_vocab_size()

    def encode(self, texts: Sequence[str]) -> list[Ids]:
        """Token ids of each text, special tokens included, cut at the limit."""
        # Cut before tokenising: a text of 50 MB would else be tokenised whole and thrown away.
        cut = [text[: self._max_chars] for text in texts]
        return [np.asarray(e.ids, dtype=np.int64) for e in self._tokenizer.encode_batch(cut)]

    def count(self, text: str) -> int:
        """The number of tokens of a text, uncut and without special tokens."""
        return len(self._whole.encode(text, add_special_tokens=False).ids)

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

    def token_id(self, token: str) -> int | None:
        """The id of a token by its exact text, or None."""
        found: int | None = self._tokenizer.token_to_id(token)
        return found
