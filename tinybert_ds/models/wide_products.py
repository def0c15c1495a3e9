"""Half precision on CPUs that do not multiply it: products in float32 of operands and results in bfloat16."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from tinybert_ds.hardware import multiplies_fast

_PRODUCTS = frozenset({F.linear, F.scaled_dot_product_attention, torch.matmul, Tensor.matmul, torch.bmm, torch.baddbmm})


class WideProducts(TorchFunctionMode):
    """Computes linear layers and attention of bfloat16 tensors in float32 and rounds the results.

    The numbers are those of bfloat16 instructions, which add up in float32 as well; without such instructions bfloat16
    products take 30 times as long as float32 ones.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Call `func`, widened if it is a product of bfloat16 tensors."""
        kwargs = kwargs or {}
        if func not in _PRODUCTS or next(iter((*args, *kwargs.values()))).dtype is not torch.bfloat16:
            return func(*args, **kwargs)
        widened = {name: _widen(value) for name, value in kwargs.items()}
        return func(*map(_widen, args), **widened).to(torch.bfloat16)


def wide_products(model: PreTrainedModel, device: torch.device) -> AbstractContextManager[Any]:
    """Return the mode where a model on a device gains by it, else a context that does nothing."""
    if device.type != "cpu" or model.dtype is not torch.bfloat16 or multiplies_fast(torch.bfloat16, device):
        return nullcontext()
    return WideProducts()


def _widen(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype is torch.bfloat16 else value
