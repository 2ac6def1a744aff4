"""Texts to vectors in one process. Shapes: B rows, T tokens, D width, N texts.

A vector depends on its text alone: not on its batch, its neighbours or their padding.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from toolkit.batch import embed_rows, lay_out, to_device
from toolkit.encoding.store import Vectors
from toolkit.model.attention import PACKED
from toolkit.model.backbone import load_backbone, load_config
from toolkit.model.bidirectional import prove_attention
from toolkit.model.weights import base_folder, model_digest
from toolkit.parallel.comm import device_of
from toolkit.schema import EncoderSettings
from toolkit.text_tokenizer import text_tokenizer


class Encoder:
    """A loaded model, in eval mode, on the device at hand."""

    def __init__(self, settings: EncoderSettings, *, device: torch.device | None = None) -> None:
        self._settings = settings
        self._packed = settings.attention == PACKED
        self.device = device or device_of(0)
        config = load_config(settings.model, causal=settings.causal)
        self.tokenizer = text_tokenizer(settings.model, max_tokens=settings.max_tokens)
        self._model = load_backbone(
            settings.model,
            config=config,
            head=False,
            dtype=settings.dtype,
            attention=settings.attention,
            device=self.device,
        )
        self._model.eval()
        prove_attention(
            self._hidden,
            packed=self._packed,
            causal=settings.causal,
            vocab_size=self.tokenizer.vocab_size,
            device=self.device,
        )

    def digest(self) -> str:
        """What identifies the model: see `model_digest`."""
        return model_digest(base_folder(self._settings.model))

    def encode(
        self, texts: Sequence[str], *, on_rows: Callable[[int, int], None] | None = None
    ) -> Vectors:
        """Vectors (N, D), fp32, in the order of `texts`; `on_rows(rows, tokens)` after each batch.

        Rows of like length share a batch; a text without tokens gets the zero vector.
        """
        rows = self.tokenizer.encode(texts)
        order = sorted(range(len(rows)), key=lambda number: (-len(rows[number]), number))
        vectors: Vectors | None = None
        for numbers in token_batches(order, rows=rows, batch_tokens=self._settings.batch_tokens):
            batch = self._batch([rows[number] for number in numbers])
            if vectors is None:
                vectors = np.zeros((len(rows), batch.shape[1]), dtype=np.float32)
            vectors[numbers] = batch
            if on_rows:
                on_rows(len(numbers), sum(len(rows[number]) for number in numbers))
        if vectors is None:
            return np.zeros((0, self._model.config.hidden_size), dtype=np.float32)
        return vectors

    @torch.inference_mode()
    def _batch(self, rows: Sequence[NDArray[np.int64]]) -> Vectors:
        batch = lay_out(rows, tokenizer=self.tokenizer, packed=self._packed)
        vectors: Vectors = (
            embed_rows(self._model, to_device(batch, device=self.device)).cpu().numpy()
        )
        return vectors

    def _hidden(self, **arguments: Any) -> torch.Tensor:
        hidden: torch.Tensor = self._model(**arguments).last_hidden_state
        return hidden


def token_batches(
    order: Sequence[int], *, rows: Sequence[NDArray[np.int64]], batch_tokens: int
) -> list[list[int]]:
    """Cut `order` (longest first) into batches of at most `batch_tokens` cells, at least a row."""
    batches: list[list[int]] = []
    for number in order:
        longest = len(rows[batches[-1][0]]) if batches else 0
        if batches and (len(batches[-1]) + 1) * max(longest, 1) <= batch_tokens:
            batches[-1].append(number)
        else:
            batches.append([number])
    return batches
