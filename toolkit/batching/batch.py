"""A batch: rows of tokens as the arguments of a model, packed or padded, and its output as vectors.

Where `text` (rows) and `model` (arguments, pooling) meet; training and encoding share it. No ranks.

Shapes: B rows, T tokens, D width, S packed rows.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from toolkit.model.attention import packed_arguments
from toolkit.model.pooling import mean_pool, mean_pool_packed
from toolkit.text.tokens import PackedBatch, TextTokenizer

# Tensors, and numbers that are needed without asking the device for them.
Batch = Mapping[str, Tensor | int | float]


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


def embed_rows(forward: Callable[..., Any], batch: Batch) -> Tensor:
    """The mean-pooled vectors (B, D) of the rows of `lay_out`, in fp32; zeros for a row without
    tokens of its own. `forward` is a decoder without its head."""
    hidden_BTD = forward(**model_arguments(batch)).last_hidden_state
    own_BT = tensor(batch, "own_BT")
    if "bound_S" not in batch:
        return mean_pool(hidden_BTD, own_BT=own_BT)
    return mean_pool_packed(hidden_BTD, own_BT=own_BT, bound_S=tensor(batch, "bound_S"))


def token_states(forward: Callable[..., Any], batch: Batch) -> Tensor:
    """The hidden states (T, D) of all tokens of the rows of `lay_out`, row after row, in fp32;
    padding is left out. `forward` is a decoder without its head."""
    hidden_BTD: Tensor = forward(**model_arguments(batch)).last_hidden_state
    if "bound_S" not in batch:
        return hidden_BTD[tensor(batch, "mask_BT").bool()].float()
    return hidden_BTD[0].float()
