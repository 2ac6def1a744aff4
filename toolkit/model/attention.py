"""Attention over packed rows: documents one after another, none of which attends to another.

Knows tensors. It is registered with transformers under the name `PACKED`. So every decoder that
uses transformers' `AttentionInterface` can run it, and no class per model is needed. It has no mask
function on purpose: transformers' own masks let packed documents attend to each other when
attention is bidirectional.

Shapes: T tokens of all rows, S rows, H query heads, K key heads, E width of a head.
"""

import functools
import itertools
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from toolkit.model.attention_kernels import BY_HAND, PACKED, VARLEN, kernel_for, varlen_parameters
from toolkit.model.dropout import dropout

# Rows are padded to a multiple of so many tokens; rows of equal padded length share a call. The
# padding depends on the row's own length alone: kernels sum in another order for another length,
# so that otherwise a text would get other bits beside other texts.
ROUND_TO = 8


def packed_arguments(
    ids_BT: Tensor,
    *,
    position_BT: Tensor,
    bound_S: Tensor,
    bounds: tuple[int, ...],
    max_length: int,
) -> dict[str, Any]:
    """The arguments of a forward pass over packed rows (`toolkit.text.tokens.PackedBatch`).

    `bound_S` (S + 1, int32) are the bounds of the rows, from 0 to T, and `bounds` the same as plain
    numbers: reading them from a tensor would wait for the device, in every layer.
    """
    return {
        "input_ids": ids_BT,
        "position_ids": position_BT,
        "cu_seq_lens_q": bound_S,
        "cu_seq_lens_k": bound_S,
        "max_length_q": max_length,
        "max_length_k": max_length,
        "row_bounds": bounds,
    }


def pack_padded(ids_BT: Tensor, *, mask_BT: Tensor) -> dict[str, Any]:
    """`packed_arguments` for the tokens of a padded batch; `mask_BT` is 0 for padding."""
    lengths_B, device = mask_BT.long().sum(dim=1).tolist(), ids_BT.device
    bounds = (0, *itertools.accumulate(lengths_B))
    return packed_arguments(
        ids_BT[mask_BT.bool()][None],
        position_BT=torch.cat([torch.arange(n, device=device) for n in lengths_B])[None],
        bound_S=torch.tensor(bounds, dtype=torch.int32, device=device),
        bounds=bounds,
        max_length=max(lengths_B),
    )


def unpack(output_1TX: Tensor, *, mask_BT: Tensor) -> Tensor:
    """The outputs of a forward pass over `pack_padded`, padded again (B, T, X) with zeros."""
    output_BTX = output_1TX.new_zeros(*mask_BT.shape, output_1TX.shape[-1])
    output_BTX[mask_BT.bool()] = output_1TX[0]
    return output_BTX


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    _mask: Tensor | None = None,
    **settings: Any,
) -> tuple[Tensor, None]:
    """An attention function for transformers: query (1, H, T, E), key and value (1, K, T, E).

    Returns (1, T, H, E). Each row attends to itself only, in both directions unless `is_causal` or
    the module says otherwise. With a `sliding_window` of w, token i attends to j if |i - j| <= w,
    as in transformers' bidirectional mask, or if 0 <= i - j < w when causal. `softcap` is that of
    Gemma 2.
    """
    bound_S, bounds = settings.get("cu_seq_lens_q"), settings.get("row_bounds")
    max_length = settings.get("max_length_q")
    if bound_S is None or bounds is None or max_length is None:
        raise ValueError("packed attention needs the rows' bounds: give it `packed_arguments`")
    causal = settings.get("is_causal")
    dropout, softcap = settings.get("dropout", 0.0), settings.get("softcap")
    rules = _Rules(
        kernel=kernel_for(
            on_gpu=query.is_cuda,
            dtype=query.dtype,
            dropout=dropout,
            softcap=softcap,
            head_width=query.shape[-1],
        ),
        width=settings.get("sliding_window"),
        causal=bool(getattr(module, "is_causal", True) if causal is None else causal),
        scaling=settings.get("scaling"),
        dropout=dropout,
        softcap=softcap,
    )
    if rules.kernel == VARLEN:
        return _varlen(query, key, value, bound_S=bound_S, max_length=max_length, rules=rules), None
    groups, order_T = _grouped(bounds, query.device)
    # (T, heads, E) is how the tensors lie in memory, so selecting tokens of it copies whole rows.
    parts = [part[0].transpose(0, 1) for part in (query, key, value)]
    outputs = [_group_output(group, *parts, rules=rules) for group in groups]
    output = torch.cat(outputs) if len(outputs) > 1 else outputs[0]
    return (output if order_T is None else output.index_select(0, order_T))[None], None


def register() -> None:
    """Register the name `PACKED` with transformers; a second call changes nothing."""
    AttentionInterface.register(PACKED, packed_attention)


@dataclass(frozen=True)
class _Rules:
    kernel: str
    width: int | None  # of a sliding window
    causal: bool
    scaling: float | None
    dropout: float
    softcap: float | None

    def window(self, num_tokens: int) -> tuple[int, int]:
        """How many tokens to the left and right a token of such a row attends to; -1: all."""
        width = self.width
        if width is not None and width >= num_tokens:
            width = None  # all tokens are in the window, and a kernel without a window is faster
        if self.causal:
            return (-1 if width is None else width - 1, 0)
        side = -1 if width is None else width
        return (side, side)


@dataclass(frozen=True)
class _Group:
    """Rows that are computed in one call: n rows, all of t tokens or all padded to that.

    `inside_n11t` is false for padding; None if all rows have t tokens. `place_N` (N = n * t) gives
    the place of each token in the packed sequence, and any place for padding; None if all rows have
    t tokens and lie side by side from `start` on.
    """

    num_rows: int
    num_tokens: int
    start: int
    place_N: Tensor | None
    inside_n11t: Tensor | None


# Cached, because every layer of a forward pass asks for the same groups. Inference mode is off,
# because tensors made in it cannot be used in a backward pass, and training may find in the cache
# what an embedding in the same process has made.
@functools.lru_cache(maxsize=64)
@torch.inference_mode(mode=False)
def _grouped(bounds: tuple[int, ...], device: torch.device) -> tuple[list[_Group], Tensor | None]:
    """The groups of rows, and the place (T,) of each token in the joined outputs of all groups;
    None if the order is unchanged.

    A group has the rows of one padded length; those that need no padding, and so no mask, are a
    group of their own.
    """
    # One call per row would be slow for many short rows, and one call for all rows would compute
    # the scores of all padding.
    lengths = [b - a for a, b in itertools.pairwise(bounds)]

    def form(row: int) -> tuple[int, bool]:
        padding = -lengths[row] % ROUND_TO
        return lengths[row] + padding, padding == 0

    rows = sorted(range(len(lengths)), key=form, reverse=True)
    # Groups are in order of length, and their outputs are joined in that order. `order` says where
    # each token has come to, by which its output is put back to where it was.
    order, first, made = torch.empty(bounds[-1], dtype=torch.long), 0, []
    for (num_tokens, is_whole), same in itertools.groupby(rows, key=form):
        group = list(same)
        start_n = torch.tensor([bounds[row] for row in group])
        length_n = torch.tensor([lengths[row] for row in group])
        steps_t = torch.arange(num_tokens)
        inside_n_t = steps_t[None] < length_n[:, None]
        # Padding repeats the first token of its row: any token would do, since the mask hides it
        # as a key and `order` leaves out its output.
        token_n_t = torch.where(inside_n_t, start_n[:, None] + steps_t, start_n[:, None])
        place_n_t = first + torch.arange(token_n_t.numel()).view_as(token_n_t)
        order[token_n_t[inside_n_t]] = place_n_t[inside_n_t]
        first += token_n_t.numel()
        # Neighbouring rows of equal length are one slice of the packed sequence: no copy is needed.
        in_a_piece = is_whole and group == list(range(group[0], group[0] + len(group)))
        made.append(
            _Group(
                num_rows=len(group),
                num_tokens=num_tokens,
                start=bounds[group[0]],
                place_N=None if in_a_piece else token_n_t.flatten().to(device),
                inside_n11t=None if is_whole else inside_n_t[:, None, None].to(device),
            )
        )
    in_place = torch.equal(order, torch.arange(first))
    return made, None if in_place else order.to(device)


def _group_output(
    group: _Group, query_THE: Tensor, key_TKE: Tensor, value_TKE: Tensor, *, rules: _Rules
) -> Tensor:
    """Attention of the rows of a group: (n * t, H, E), with arbitrary values for padding."""
    num_rows, num_tokens = group.num_rows, group.num_tokens

    def rows_of(part_THE: Tensor) -> Tensor:
        if group.place_N is None:
            rows = part_THE[group.start : group.start + num_rows * num_tokens]
        else:
            rows = part_THE.index_select(0, group.place_N)
        return rows.view(num_rows, num_tokens, *part_THE.shape[1:]).transpose(1, 2)

    query, key, value = (rows_of(part) for part in (query_THE, key_TKE, value_TKE))
    mask = _seen(num_tokens, window=rules.window(num_tokens), device=query.device)
    if group.inside_n11t is not None:
        mask = group.inside_n11t if mask is None else mask & group.inside_n11t
    if rules.kernel == BY_HAND:
        out = _by_hand(query, key, value, mask=mask, rules=rules)
    else:
        out = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            scale=rules.scaling,
            enable_gqa=query.shape[1] != key.shape[1],
        )
    return out.transpose(1, 2).reshape(num_rows * num_tokens, *query_THE.shape[1:])


def _seen(num_tokens: int, *, window: tuple[int, int], device: torch.device) -> Tensor | None:
    """The mask (t, t), true where token i may attend to token j; None if all are true."""
    left, right = window
    if left < 0 and right < 0:
        return None
    place = torch.arange(num_tokens, device=device)
    back = place[:, None] - place[None, :]
    seen = torch.ones_like(back, dtype=torch.bool)
    if left >= 0:
        seen &= back <= left
    if right >= 0:
        seen &= -back <= right
    return seen


def _by_hand(
    query: Tensor, key: Tensor, value: Tensor, *, mask: Tensor | None, rules: _Rules
) -> Tensor:
    """Attention (n, H, t, E) with dropout or soft capping, which fused kernels lack on a CPU."""
    num_rows, heads, num_tokens, width = query.shape
    # Query heads that share a key head become rows of one product with it: repeating the key for
    # each of them would copy it.
    grouped = query.reshape(num_rows, key.shape[1], -1, width)
    scale = width**-0.5 if rules.scaling is None else rules.scaling
    scores = grouped @ key.transpose(2, 3) * scale
    if rules.softcap:
        scores = rules.softcap * torch.tanh(scores / rules.softcap)
    scores = scores.view(num_rows, heads, num_tokens, num_tokens)
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    # In fp32, as transformers' own attention does: a bf16 sum of many weights loses precision.
    weights = F.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = dropout(weights, p=rules.dropout)
    return (weights.view(*grouped.shape[:3], num_tokens) @ value).view_as(query)


def _varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    bound_S: Tensor,
    max_length: int,
    rules: _Rules,
) -> Tensor:
    """torch's flash attention over rows of any lengths (CUDA, fp16 or bf16): (1, T, H, E)."""
    from torch.nn.attention.varlen import varlen_attn

    grouped: dict[str, Any] = {}
    # torch 2.11 has no such parameter; its kernel takes fewer key heads all the same.
    if "enable_gqa" in varlen_parameters():
        grouped["enable_gqa"] = query.shape[1] != key.shape[1]
    if rules.dropout:
        raise ValueError(
            f"packed attention on CUDA has no attention dropout (here {rules.dropout}); "
            "use model.attention=sdpa"
        )
    query, key, value = (part.squeeze(0).transpose(0, 1) for part in (query, key, value))
    out = varlen_attn(
        query,
        key,
        value,
        bound_S,
        bound_S,
        max_length,
        max_length,
        scale=rules.scaling,
        window_size=rules.window(max_length),
        **grouped,
    )
    assert isinstance(out, Tensor)
    return out.unsqueeze(0)
