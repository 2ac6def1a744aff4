"""From hidden states to one vector per text. Shapes: B rows, T tokens, D width, S packed rows."""

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor


def mean_pool(hidden_BTD: Tensor, *, own_BT: Tensor) -> Tensor:
    """The mean (B, D), in fp32, over each text's own tokens; zeros where a row has none.

    `own_BT` is 1 for the text's own tokens and 0 for the begin token and padding (LLM2Vec,
    section 2.2 and its released code). Computed in fp32: a bf16 sum of 512 tokens loses 8 bits.
    """
    weights_BT1 = own_BT.unsqueeze(-1).float()
    total_BD = (hidden_BTD.float() * weights_BT1).sum(dim=1)
    return total_BD / weights_BT1.sum(dim=1).clamp(min=1.0)


def mean_pool_packed(hidden_BTD: Tensor, *, own_BT: Tensor, bound_S: Tensor) -> Tensor:
    """`mean_pool` of rows that lie one after another: (S, D).

    `hidden_BTD` is (1, T, D), `own_BT` (1, T), and row s spans bound_S[s] to bound_S[s + 1].
    """
    row_T = rows_of_packed(bound_S, num_tokens=own_BT.shape[1])
    total_SD, count_S1 = _sums(
        hidden_BTD[0], weight_T=own_BT[0], row_T=row_T, num_rows=len(bound_S) - 1
    )
    return total_SD / count_S1


def rows_of_packed(bound_S: Tensor, *, num_tokens: int) -> Tensor:
    """The row (T,) of each token of rows that lie one after another."""
    return torch.repeat_interleave(
        torch.arange(len(bound_S) - 1, device=bound_S.device),
        (bound_S[1:] - bound_S[:-1]).long(),
        output_size=num_tokens,  # without it torch would wait for the device to know the size
    )


@dataclasses.dataclass(frozen=True)
class FlatTokens:
    """The states of tokens in a row, whether packed or padded: the row that each belongs to, its
    place in that row from 0 on, and 1 for each that is pooled."""

    hidden_TD: Tensor
    own_T: Tensor
    row_T: Tensor
    place_T: Tensor
    num_rows: int


def flat_padded(hidden_BTD: Tensor, *, own_BT: Tensor) -> FlatTokens:
    """All cells of padded rows, those of padding too."""
    num_rows, num_tokens = own_BT.shape
    step_T = torch.arange(num_tokens, device=own_BT.device)
    row_B = torch.arange(num_rows, device=own_BT.device)
    return FlatTokens(
        hidden_TD=hidden_BTD.flatten(0, 1),
        own_T=own_BT.flatten(),
        row_T=row_B[:, None].expand(-1, num_tokens).reshape(-1),
        place_T=step_T[None].expand(num_rows, -1).reshape(-1),
        num_rows=num_rows,
    )


def flat_packed(
    hidden_BTD: Tensor, *, own_BT: Tensor, position_BT: Tensor, bound_S: Tensor
) -> FlatTokens:
    """The tokens of rows that lie one after another, as in `mean_pool_packed`."""
    row_T = rows_of_packed(bound_S, num_tokens=own_BT.shape[1])
    return FlatTokens(hidden_BTD[0], own_BT[0], row_T, position_BT[0], len(bound_S) - 1)


def pool(tokens: FlatTokens, *, modes: tuple[str, ...]) -> Tensor:
    """The pooled vectors (S, D x modes), in fp32, joined in the order of `modes`, which have the
    names of sentence-transformers; zeros for a row without a token to pool.

    The weight of a token in the weighted mean is its place in its row, counted from 1, even if
    tokens before it are not pooled.
    """
    return torch.cat([_POOLINGS[mode](tokens) for mode in modes], dim=1)


def _sums(
    hidden_TD: Tensor, *, weight_T: Tensor, row_T: Tensor, num_rows: int
) -> tuple[Tensor, Tensor]:
    """The weighted sum (S, D) of the tokens of each row, and the sum (S, 1) of their weights, which
    is 1 where there are none."""
    weight_T1 = weight_T.unsqueeze(-1).float()
    zeros_SD = hidden_TD.new_zeros(num_rows, hidden_TD.shape[-1], dtype=torch.float32)
    total_SD = zeros_SD.index_add(0, row_T, hidden_TD.float() * weight_T1)
    return total_SD, zeros_SD[:, :1].index_add(0, row_T, weight_T1).clamp(min=1.0)


def _summed(tokens: FlatTokens, weight_T: Tensor) -> tuple[Tensor, Tensor]:
    return _sums(tokens.hidden_TD, weight_T=weight_T, row_T=tokens.row_T, num_rows=tokens.num_rows)


def _mean(tokens: FlatTokens) -> Tensor:
    total_SD, count_S1 = _summed(tokens, tokens.own_T)
    return total_SD / count_S1


def _mean_by_root(tokens: FlatTokens) -> Tensor:
    total_SD, count_S1 = _summed(tokens, tokens.own_T)
    return total_SD / count_S1.sqrt()


def _weighted_mean(tokens: FlatTokens) -> Tensor:
    total_SD, weight_S1 = _summed(tokens, tokens.own_T * (tokens.place_T + 1))
    return total_SD / weight_S1


def _max(tokens: FlatTokens) -> Tensor:
    least = float("-inf")
    state_TD = tokens.hidden_TD.float().masked_fill(~tokens.own_T.bool().unsqueeze(-1), least)
    row_TD = tokens.row_T.unsqueeze(-1).expand_as(state_TD)
    none_SD = state_TD.new_full((tokens.num_rows, state_TD.shape[1]), least)
    most_SD = none_SD.scatter_reduce(0, row_TD, state_TD, reduce="amax")
    return most_SD.masked_fill(most_SD == least, 0.0)


def _chosen(tokens: FlatTokens, *, reduce: str, beyond: int) -> Tensor:
    """The state of one pooled token per row: the first for "amin", the last for "amax". `beyond` is
    where no token is, on the other side."""
    index_T = torch.arange(len(tokens.row_T), device=tokens.row_T.device)
    none_S = index_T.new_full((tokens.num_rows,), beyond)
    chosen_S = none_S.scatter_reduce(
        0, tokens.row_T, index_T.masked_fill(~tokens.own_T.bool(), beyond), reduce=reduce
    )
    is_none_S1 = (chosen_S == beyond).unsqueeze(-1)
    last = len(index_T) - 1
    state_SD = tokens.hidden_TD.index_select(0, chosen_S.clamp(0, last))
    return state_SD.float().masked_fill(is_none_S1, 0.0)


def _first(tokens: FlatTokens) -> Tensor:
    return _chosen(tokens, reduce="amin", beyond=len(tokens.row_T))


def _last(tokens: FlatTokens) -> Tensor:
    return _chosen(tokens, reduce="amax", beyond=-1)


_POOLINGS: dict[str, Callable[[FlatTokens], Tensor]] = {
    "cls": _first,
    "max": _max,
    "mean": _mean,
    "mean_sqrt_len_tokens": _mean_by_root,
    "weightedmean": _weighted_mean,
    "lasttoken": _last,
}
