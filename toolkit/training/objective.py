"""What an objective is to the loop.

An objective turns samples into a batch and a batch into a SUM of losses over its units (masked
tokens, rows); the loop owns the normaliser, because only it sees the whole global batch.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from toolkit.model.attention import packed_arguments
from toolkit.text.stream import Sample
from toolkit.text.tokens import PackedBatch, TextTokenizer

# Tensors, and numbers that are needed without asking the device for them.
Batch = Mapping[str, Tensor | int | float]
# What to report, each figure summed over units: the loop divides by those of all ranks.
Figures = Mapping[str, Tensor]


class Encoded(Protocol):
    """A sample as tokens, in whatever form its objective collates."""

    @property
    def num_tokens(self) -> int:
        """How many tokens it puts into a batch."""


class Objective(Protocol):
    """The part of a training run that differs between MNTP, SimCSE and supervised training."""

    @property
    def needs_head(self) -> bool:
        """Whether the language-model head takes part."""

    def encode(
        self, samples: Sequence[Sample[Any]], *, tokenizer: TextTokenizer
    ) -> Sequence[Encoded]:
        """Each sample as tokens."""

    def collate(self, encoded: Sequence[Any], *, tokenizer: TextTokenizer) -> Batch:
        """The batch of some samples that `encode` gave, as CPU tensors."""

    def num_units(self, batch: Batch) -> int:
        """How many terms the loss of this batch sums."""

    def terms(
        self, forward: nn.Module, batches: Sequence[Batch]
    ) -> Iterator[tuple[Tensor, Figures]]:
        """For each micro-batch in order a scalar, whose gradients add up to that of the SUM of
        losses over this rank's units, and the figures to report with it, "loss" among them.

        The caller goes backward from a scalar before it asks for the next.
        """


def lay_out(rows: Sequence[NDArray[Any]], *, tokenizer: TextTokenizer, packed: bool) -> Batch:
    """Rows of token ids as one batch: one after another, or padded to the longest.

    ids_BT and own_BT (1 for a text's own tokens), and what attention needs: mask_BT, or position_BT
    with bound_S and max_length. A packed batch has one row, B = 1.
    """
    if not packed:
        padded = tokenizer.pad(rows)
        return {
            "ids_BT": torch.from_numpy(padded.ids_BT),
            "own_BT": torch.from_numpy(padded.own_BT),
            "mask_BT": torch.from_numpy(padded.mask_BT),
        }
    batch: PackedBatch = tokenizer.pack(rows)
    return {
        "ids_BT": torch.from_numpy(batch.ids_BT),
        "own_BT": torch.from_numpy(batch.own_BT),
        "position_BT": torch.from_numpy(batch.position_BT),
        "bound_S": torch.from_numpy(batch.bound_S),
        "max_length": batch.max_length,
    }


def place(rows: Sequence[NDArray[Any]], *, batch: Batch, fill: Any) -> Tensor:
    """Values of tokens, row by row, laid out like the ids of `batch`."""
    ids_BT = tensor(batch, "ids_BT")
    if "bound_S" in batch:
        return torch.from_numpy(np.concatenate(rows)[None])
    placed = np.full(tuple(ids_BT.shape), fill)
    for number, row in enumerate(rows):
        placed[number, : len(row)] = row
    return torch.from_numpy(placed)


def model_arguments(batch: Batch) -> dict[str, Any]:
    """The arguments of the model's forward pass over a batch of `lay_out`."""
    if "bound_S" not in batch:
        return {"input_ids": batch["ids_BT"], "attention_mask": batch["mask_BT"]}
    max_length = batch["max_length"]
    assert isinstance(max_length, int)
    return packed_arguments(
        tensor(batch, "ids_BT"),
        position_BT=tensor(batch, "position_BT"),
        bound_S=tensor(batch, "bound_S"),
        max_length=max_length,
    )


def to_device(batch: Batch, *, device: torch.device) -> Batch:
    """The same batch with its tensors on a device; integers stay where they are."""
    return {
        key: value.to(device) if isinstance(value, Tensor) else value
        for key, value in batch.items()
    }


def num_tokens(batch: Batch) -> tuple[int, int]:
    """The tokens of a batch, and its cells: tokens and padding."""
    cells = tensor(batch, "ids_BT").numel()
    return (int(tensor(batch, "mask_BT").sum()) if "mask_BT" in batch else cells), cells


def tensor(batch: Batch, key: str) -> Tensor:
    """The tensor of that name."""
    found = batch[key]
    assert isinstance(found, Tensor)
    return found
