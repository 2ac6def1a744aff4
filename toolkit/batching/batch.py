"""Turns rows of tokens, packed or padded, into the arguments of a model, and its output to vectors.

Joins `text` (rows) and `model` (arguments, pooling), for training and encoding. No ranks.

Shapes: B rows, T tokens, D width, S packed rows, G tokens of slices.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from toolkit.model.attention import packed_arguments
from toolkit.model.pooling import FlatTokens, flat_packed, flat_padded, mean_pool, mean_pool_packed
from toolkit.text.tokens import TextTokenizer

Held = TypeVar("Held")  # rows, or a data class with rows among its fields


@dataclasses.dataclass(frozen=True)
class PaddedRows:
    """Rows padded to the longest. `own_BT` is 1 for a text's own tokens, `mask_BT` is 1 for all
    tokens and 0 for padding."""

    ids_BT: Tensor
    own_BT: Tensor
    mask_BT: Tensor


@dataclasses.dataclass(frozen=True)
class PackedRows:
    """Rows one after another, B = 1: row s is ids_BT[0, bound_S[s] : bound_S[s + 1]]. `own_BT` is 1
    for a text's own tokens. `bounds` (as in bound_S) and `max_length`, the longest row, are plain
    numbers: reading them from a tensor would wait for the device."""

    ids_BT: Tensor
    own_BT: Tensor
    position_BT: Tensor
    bound_S: Tensor
    bounds: tuple[int, ...]
    max_length: int


Rows = PaddedRows | PackedRows


@dataclasses.dataclass(frozen=True)
class Slices:
    """Which tokens of laid-out rows make which vector: G tokens, of which one may be there for
    several vectors. `cell_G` counts all cells of the rows, row after row."""

    cell_G: Tensor
    vector_G: Tensor
    num_vectors: int


def lay_out(
    rows: Sequence[NDArray[Any]],
    *,
    tokenizer: TextTokenizer,
    packed: bool,
    owns: Sequence[NDArray[np.bool_]] | None = None,
) -> Rows:
    """Lay out rows of token ids on the CPU: `packed` one after another, or padded to the longest.
    `owns` marks the tokens that are pooled; None: all but special ones."""
    laid = _laid_out(rows, tokenizer=tokenizer, packed=packed)
    if owns is None:
        return laid
    return dataclasses.replace(laid, own_BT=place(owns, rows=laid, fill=False).long())


def _laid_out(rows: Sequence[NDArray[Any]], *, tokenizer: TextTokenizer, packed: bool) -> Rows:
    if not packed:
        padded = tokenizer.pad(rows)
        return PaddedRows(
            ids_BT=torch.from_numpy(padded.ids_BT),
            own_BT=torch.from_numpy(padded.own_BT),
            mask_BT=torch.from_numpy(padded.mask_BT),
        )
    batch = tokenizer.pack(rows)
    return PackedRows(
        ids_BT=torch.from_numpy(batch.ids_BT),
        own_BT=torch.from_numpy(batch.own_BT),
        position_BT=torch.from_numpy(batch.position_BT),
        bound_S=torch.from_numpy(batch.bound_S),
        bounds=tuple(batch.bound_S.tolist()),
        max_length=batch.max_length,
    )


def place(values: Sequence[NDArray[Any]], *, rows: Rows, fill: Any) -> Tensor:
    """Lay out one value per token, given row by row, like the ids of `rows`; `fill` is for
    padding."""
    if isinstance(rows, PackedRows):
        return torch.from_numpy(np.concatenate(values)[None])
    placed = np.full(tuple(rows.ids_BT.shape), fill)
    for number, row in enumerate(values):
        placed[number, : len(row)] = row
    return torch.from_numpy(placed)


def model_arguments(rows: Rows) -> dict[str, Any]:
    """The arguments for the model's forward pass over `rows`."""
    if isinstance(rows, PaddedRows):
        return {"input_ids": rows.ids_BT, "attention_mask": rows.mask_BT}
    return packed_arguments(
        rows.ids_BT,
        position_BT=rows.position_BT,
        bound_S=rows.bound_S,
        bounds=rows.bounds,
        max_length=rows.max_length,
    )


def to_device(batch: Held, *, device: torch.device) -> Held:
    """The same rows, or a data class that holds rows, with all tensors moved from the CPU to
    `device`; plain numbers stay as they are. The host does not wait for the device: it may queue a
    batch while the one before is computed."""

    def moved(value: Any) -> Any:
        if isinstance(value, Tensor):
            # Safe on the way to a GPU only, and from memory that is not pinned as well: CUDA has
            # read it when the call returns.
            return value.to(device, non_blocking=True)
        return to_device(value, device=device) if dataclasses.is_dataclass(value) else value

    # Any, because the type variable does not say that it is a data class.
    whole: Any = batch
    fields = {one.name: moved(getattr(whole, one.name)) for one in dataclasses.fields(whole)}
    on_device: Held = dataclasses.replace(whole, **fields)
    return on_device


def num_tokens(rows: Rows) -> tuple[int, int]:
    """The number of tokens of `rows`, and the number of their cells (tokens and padding)."""
    cells = rows.ids_BT.numel()
    return (int(rows.mask_BT.sum()) if isinstance(rows, PaddedRows) else cells), cells


def embed_rows(
    forward: Callable[..., Any],
    rows: Rows,
    *,
    head: Callable[[FlatTokens], Tensor] | None = None,
    slices: Slices | None = None,
) -> Tensor:
    """The vectors (B, D) of rows, in fp32, by `head` or by the mean; zeros for a row without own
    tokens. With `slices` those of slices of the rows, by `head`. `forward` is a model without its
    language-model head."""
    hidden_BTD = forward(**model_arguments(rows)).last_hidden_state
    if head is not None:
        tokens = _flat(hidden_BTD, rows)
        return head(tokens if slices is None else _sliced(tokens, slices))
    assert slices is None
    if isinstance(rows, PaddedRows):
        return mean_pool(hidden_BTD, own_BT=rows.own_BT)
    return mean_pool_packed(hidden_BTD, own_BT=rows.own_BT, bound_S=rows.bound_S)


def _flat(hidden_BTD: Tensor, rows: Rows) -> FlatTokens:
    if isinstance(rows, PaddedRows):
        return flat_padded(hidden_BTD, own_BT=rows.own_BT)
    return flat_packed(
        hidden_BTD, own_BT=rows.own_BT, position_BT=rows.position_BT, bound_S=rows.bound_S
    )


def _sliced(tokens: FlatTokens, slices: Slices) -> FlatTokens:
    """The tokens of slices, each slice a row. They keep their places in the rows that were read."""
    return FlatTokens(
        hidden_TD=tokens.hidden_TD.index_select(0, slices.cell_G),
        own_T=torch.ones_like(slices.vector_G),
        row_T=slices.vector_G,
        place_T=tokens.place_T.index_select(0, slices.cell_G),
        num_rows=slices.num_vectors,
    )


def token_states(forward: Callable[..., Any], rows: Rows) -> Tensor:
    """The hidden states (T, D) of all tokens of rows, row after row, in fp32; padding is left out.
    `forward` is a decoder without its language-model head."""
    hidden_BTD: Tensor = forward(**model_arguments(rows)).last_hidden_state
    if isinstance(rows, PaddedRows):
        return hidden_BTD[rows.mask_BT.bool()].float()
    return hidden_BTD[0].float()
