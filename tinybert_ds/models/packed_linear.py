"""Linear layers of a frozen model on a CPU with bfloat16 products: oneDNN's own order of weights, made once."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tinybert_ds.hardware import multiplies_fast


class PackedLinear(nn.Linear):
    """A linear layer that is never trained and whose weight is in the order that oneDNN multiplies in.

    `nn.Linear` lets oneDNN put the weight in order for every product, and writes the bias into the result beforehand.
    The operators are the ones that torch's compiler (`torch._inductor`) emits; they have no public name.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return input W^T + b in the input's dtype.

        The first call puts the weight in order: a weight that a model reads itself instead of calling its layer
        (DeBERTa's `in_proj`) is left as it is.
        """
        if not self.weight.is_mkldnn:
            packed = torch.ops.mkldnn._reorder_linear_weight(self.weight.detach())
            self.weight = nn.Parameter(packed, requires_grad=False)
        return torch.ops.mkldnn._linear_pointwise(input, self.weight, self.bias, "none", [], "")


def pack_linear_layers(model: nn.Module, device: torch.device) -> None:
    """Let the linear layers of a frozen model have packed weights, in place, where that is for the better.

    That is in bfloat16 on a CPU that has instructions for it. Names, hooks and results stay as they are, but for the
    last bit; weights that another module has, too, stay with that one.
    """
    if device.type != "cpu" or not multiplies_fast(torch.bfloat16, device):
        return
    for module in model.modules():
        if type(module) is nn.Linear and module.weight.dtype is torch.bfloat16:
            module.__class__ = PackedLinear
