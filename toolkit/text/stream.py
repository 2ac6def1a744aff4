"""Samples for training: passages of documents, or sentences, in a deterministic global order.

Knows shards and text. Refuses to know tokens and ranks: it deals row ranges of a global batch.
"""

import dataclasses

import numpy as np
from numpy.typing import NDArray

from toolkit.files import BadInput
from toolkit.text.order import sample_at
from toolkit.text.shards import ShardSet
from toolkit.text.tokens import TextTokenizer

MAX_SNAP_CHARS = 64
NUM_MEASURED_ROWS = 64
MEASURED_CHARS = 2000


@dataclasses.dataclass(frozen=True)
class Sample:
    """One training text. (epoch, index) names it, whatever rank or restart reads it."""

    epoch: int
    index: int
    text: str


class SampleStream:
    """Random access to the samples of a shard directory.

    unit "sentences": every sentence is a sample. unit "documents": every document is cut into
    passages of `passage_chars`, each a sample, so that all text counts alike.
    """

    def __init__(self, shards: ShardSet, *, unit: str, passage_chars: int, seed: int) -> None:
        self._shards = shards
        self._unit = unit
        self._seed = seed
        self._chars = passage_chars
        # Less than a passage, so that none becomes empty.
        self._snap = min(MAX_SNAP_CHARS, self._chars - 1)
        if unit == "sentences":
            per_row = shards.num_sentences.astype(np.int64)
        else:
            per_row = -(-shards.num_chars // self._chars)
        self._ends: NDArray[np.int64] = np.cumsum(per_row)
        self.num_samples = int(self._ends[-1]) if len(self._ends) else 0
        if self.num_samples == 0:
            raise BadInput(f"the shards hold no {unit}: nothing to train on")

    def batch(self, step: int, *, global_rows: int, start: int, stop: int) -> list[Sample]:
        """Rows start..stop of the global batch of `step` (from 0)."""
        positions = np.arange(start, stop, dtype=np.int64) + step * global_rows
        indices = sample_at(positions, num_samples=self.num_samples, seed=self._seed)
        epochs = positions // self.num_samples
        return [
            Sample(epoch=int(epoch), index=int(index), text=self._text(int(index)))
            for epoch, index in zip(epochs, indices, strict=True)
        ]

    def _text(self, index: int) -> str:
        row = int(np.searchsorted(self._ends, index, side="right"))
        part = index - (int(self._ends[row - 1]) if row else 0)
        if self._unit == "sentences":
            return self._shards.sentence(row, part)
        text = self._shards.text(row)
        return text[
            snap(text, at=part * self._chars, limit=self._snap) : snap(
                text, at=(part + 1) * self._chars, limit=self._snap
            )
        ].strip()


def passage_length(shards: ShardSet, *, tokenizer: TextTokenizer, max_tokens: int) -> int:
    """How many characters make about `max_tokens` tokens, by the shards' own first texts.

    Four a token for English, a little over one for Chinese: a fixed figure would cut half of every
    passage away unseen. The same shards and tokenizer always give the same figure.
    """
    num_rows = min(NUM_MEASURED_ROWS, shards.num_rows)
    texts = [shards.text(row)[:MEASURED_CHARS] for row in range(num_rows)]
    num_tokens = sum(tokenizer.count(text) for text in texts)
    per_token = sum(map(len, texts)) / max(1, num_tokens)
    return max(2, int(max_tokens * per_token))


def snap(text: str, *, at: int, limit: int) -> int:
    """The last word start at most `limit` characters before `at`; `at` where there is none."""
    if at <= 0 or at >= len(text):
        return max(0, min(at, len(text)))
    for position in range(at, max(at - limit, 0), -1):
        if text[position - 1].isspace():
            return position
    return at
