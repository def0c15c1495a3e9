"""How much the fused losses hold at a time, and what they multiply in."""

from __future__ import annotations

import torch
from torch import Tensor

from tinybert_ds.hardware import on_cuda

CPU_BYTES_PER_THREAD = 8 << 20
"""About a core's share of the last cache. With 2 MiB, the attention losses of rows of 512 take a quarter longer."""
DEVICE_BYTES = 256 << 20
"""On an accelerator: few launches, but no more than this at once."""


def workspace_bytes(device: torch.device) -> int:
    """Return the size that intermediate results of one chunk should stay below."""
    if device.type != "cpu":
        return DEVICE_BYTES
    return min(CPU_BYTES_PER_THREAD * torch.get_num_threads(), DEVICE_BYTES)


def wide_matmul(left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the product of two matrices, or of two batches of them, in `dtype`.

    Half-precision operands are multiplied as they are on CUDA, where the result never is in half precision. A CPU has
    no such product: there they are converted first.
    """
    multiply = torch.mm if left.dim() == 2 else torch.bmm
    if left.dtype == dtype:
        return multiply(left, right)
    if on_cuda(left.device):
        return multiply(left, right, out_dtype=dtype)
    return multiply(left.to(dtype), right.to(dtype))
