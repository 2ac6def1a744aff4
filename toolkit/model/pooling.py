"""From hidden states to one vector per text. Shapes: B rows, T tokens, D width, S packed rows."""

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
    lengths_S = (bound_S[1:] - bound_S[:-1]).long()
    row_T = torch.repeat_interleave(
        torch.arange(len(lengths_S), device=bound_S.device),
        lengths_S,
        output_size=own_BT.shape[1],  # without it torch would wait for the device to know the size
    )
    weights_T1 = own_BT[0].unsqueeze(-1).float()
    zeros_SD = hidden_BTD.new_zeros(len(lengths_S), hidden_BTD.shape[-1], dtype=torch.float32)
    total_SD = zeros_SD.index_add(0, row_T, hidden_BTD[0].float() * weights_T1)
    count_S1 = zeros_SD[:, :1].index_add(0, row_T, weights_T1)
    return total_SD / count_S1.clamp(min=1.0)
