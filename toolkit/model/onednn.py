"""Linear layers by oneDNN on a CPU, with weights in the memory order that its kernels read.

Knows the operators that torch's own compiler uses for a linear layer with constant weights; in a
build without them, layers stay as they are. For inference only: they have no gradient.
"""

import torch
from torch import Tensor, nn

# The approximate number of rows per product, by which oneDNN chooses the order; any number works.
ROWS_HINT = 2048


def lay_out_linears(model: nn.Module) -> int:
    """Replace each fp32 `nn.Linear` of a model on the CPU, in place; returns their number.

    The results differ by rounding. Compared with MKL, it saves a tenth of the time of a small
    model's forward pass on an AMD processor with AVX-512. In bf16 torch uses oneDNN by itself.
    """
    is_built = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if not is_built or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return 0
    count = 0
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            # The exact type: a subclass may compute something else.
            if type(child) is nn.Linear and _is_suited(child.weight):
                setattr(module, name, _LaidOut(child))
                count += 1
    return count


def _is_suited(weight: Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype == torch.float32


class _LaidOut(nn.Module):
    """A linear layer without parameters: (..., in) to (..., out)."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), ROWS_HINT)
        self.bias = None if linear.bias is None else linear.bias.detach()

    def forward(self, input: Tensor) -> Tensor:
        output: Tensor = torch.ops.mkldnn._linear_pointwise(
            input, self.weight, self.bias, "none", [], ""
        )
        return output
