"""From hidden states to one vector per text. Shapes: B rows, T tokens, D width."""

from torch import Tensor


def mean_pool(hidden_BTD: Tensor, *, own_BT: Tensor) -> Tensor:
    """The mean (B, D), in fp32, over each text's own tokens; zeros where a row has none.

    `own_BT` is 1 for the text's own tokens and 0 for the begin token and padding (LLM2Vec,
    section 2.2 and its released code). Computed in fp32: a bf16 sum of 512 tokens loses 8 bits.
    """
    weights_BT1 = own_BT.unsqueeze(-1).float()
    total_BD = (hidden_BTD.float() * weights_BT1).sum(dim=1)
    return total_BD / weights_BT1.sum(dim=1).clamp(min=1.0)
