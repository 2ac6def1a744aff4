"""Attention over packed rows: many documents one after another, none of which sees another.

Knows tensors. Registered with transformers under the name `PACKED`, so that every decoder that asks
its `AttentionInterface` runs it, without a class per model. It has no mask function on purpose:
transformers' own masks let packed documents see each other when attention is bidirectional.

Shapes: T tokens of all rows, S rows, H query heads, K key heads, E width of a head.
"""

import itertools
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

PACKED = "packed"
HALF_TYPES = (torch.float16, torch.bfloat16)


def packed_arguments(
    ids_BT: Tensor, *, position_BT: Tensor, bound_S: Tensor, max_length: int
) -> dict[str, Any]:
    """The arguments of a forward pass over packed rows (`toolkit.text.tokens.PackedBatch`).

    `bound_S` (S + 1, int32) are the bounds of the rows, from 0 to T.
    """
    return {
        "input_ids": ids_BT,
        "position_ids": position_BT,
        "cu_seq_lens_q": bound_S,
        "cu_seq_lens_k": bound_S,
        "max_length_q": max_length,
        "max_length_k": max_length,
    }


def pack_padded(ids_BT: Tensor, *, mask_BT: Tensor) -> dict[str, Any]:
    """`packed_arguments` of a padded batch whose padding `mask_BT` (0) is left out."""
    lengths_B = mask_BT.long().sum(dim=1)
    return packed_arguments(
        ids_BT[mask_BT.bool()][None],
        position_BT=torch.cat([torch.arange(int(n), device=ids_BT.device) for n in lengths_B])[
            None
        ],
        bound_S=F.pad(lengths_B.cumsum(0), (1, 0)).int(),
        max_length=int(lengths_B.max()),
    )


def unpack(output_1TX: Tensor, *, mask_BT: Tensor) -> Tensor:
    """Outputs (B, T, X) of a forward pass over `pack_padded`; zeros where there was padding."""
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
    """transformers' attention function: query (1, H, T, E), key and value (1, K, T, E).

    Returns (1, T, H, E). Each row attends to itself only, in both directions unless the module or
    `is_causal` says otherwise. A `sliding_window` of w lets token i see j with |i - j| <= w, as
    transformers' bidirectional mask does, and 0 <= i - j < w when causal; `softcap` as in Gemma 2.
    """
    bound_S, max_length = settings.get("cu_seq_lens_q"), settings.get("max_length_q")
    if bound_S is None or max_length is None:
        raise ValueError("packed attention needs the rows' bounds: give it `packed_arguments`")
    causal = settings.get("is_causal")
    rules = _Rules(
        window=_window(
            settings.get("sliding_window"),
            causal=getattr(module, "is_causal", True) if causal is None else causal,
            max_length=max_length,
        ),
        scaling=settings.get("scaling"),
        dropout=settings.get("dropout", 0.0),
        softcap=settings.get("softcap"),
    )
    if query.is_cuda and query.dtype in HALF_TYPES and not rules.softcap:
        return _varlen(query, key, value, bound_S=bound_S, max_length=max_length, rules=rules), None
    bounds = bound_S.tolist()
    rows = [
        _one_row(query[:, :, a:b], key[:, :, a:b], value[:, :, a:b], rules=rules)
        for a, b in itertools.pairwise(bounds)
    ]
    return torch.cat(rows, dim=2).transpose(1, 2).contiguous(), None


def register() -> None:
    """Make transformers know the name; the second time changes nothing."""
    AttentionInterface.register(PACKED, packed_attention)


@dataclass(frozen=True)
class _Rules:
    window: tuple[int, int]  # how many tokens to the left and right are seen; -1: all
    scaling: float | None
    dropout: float
    softcap: float | None


def _window(width: int | None, *, causal: bool, max_length: int) -> tuple[int, int]:
    if width is not None and width >= max_length:
        width = None  # everything is in the window, and a kernel without one is faster
    if causal:
        return (-1 if width is None else width - 1, 0)
    side = -1 if width is None else width
    return (side, side)


def _one_row(query: Tensor, key: Tensor, value: Tensor, *, rules: _Rules) -> Tensor:
    """Attention of one row (1, H, t, E)."""
    mask = _seen(query.shape[2], window=rules.window, device=query.device)
    if rules.softcap:
        return _softcapped(query, key, value, mask=mask, rules=rules)
    return F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        dropout_p=rules.dropout,
        scale=rules.scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )


def _seen(num_tokens: int, *, window: tuple[int, int], device: torch.device) -> Tensor | None:
    """(t, t), True where token i may see token j; None when it sees all."""
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


def _softcapped(
    query: Tensor, key: Tensor, value: Tensor, *, mask: Tensor | None, rules: _Rules
) -> Tensor:
    groups = query.shape[1] // key.shape[1]
    key, value = (part.repeat_interleave(groups, dim=1) for part in (key, value))
    scale = query.shape[-1] ** -0.5 if rules.scaling is None else rules.scaling
    assert rules.softcap
    scores = rules.softcap * torch.tanh(query @ key.transpose(2, 3) * scale / rules.softcap)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    weights = F.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    return F.dropout(weights, p=rules.dropout) @ value


def _varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    bound_S: Tensor,
    max_length: int,
    rules: _Rules,
) -> Tensor:
    """torch's own flash attention over rows of many lengths (CUDA, fp16 or bf16): (1, T, H, E)."""
    from torch.nn.attention.varlen import varlen_attn

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
        window_size=rules.window,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    assert isinstance(out, Tensor)
    return out.unsqueeze(0)
