"""Heads filled up with zeros, or cut, in one launch on a GPU: what it takes, how it is launched.

B batch rows, S sequence length, A heads, D head size. PyTorch's operators for this copy element by element, at a third
of the speed of memory, and fill what they copy to beforehand. The kernel itself is in `triton_heads_kernel`. It was
compiled for NVIDIA GPUs of compute capability 8.0 and 9.0, interpreted on CPUs and run on an H200.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from tinybert_ds.losses.triton_attention import COMPILER, device_refusal
from tinybert_ds.models.triton_heads_kernel import resize_heads_kernel

ELEMENTS = 2048
"""Of the heads that a program copies."""


def refusal(device: torch.device) -> str | None:
    """Return why the kernel cannot be taken, None where it can."""
    return device_refusal(device)


def compile_options(size: int, width: int) -> dict[str, Any]:
    """Return the kernel's compile-time arguments for heads of a size that become as wide as `width`."""
    columns = triton.next_power_of_2(max(size, width))
    sizes = {"FROM": size, "TO": width, "COLUMNS": columns, "ROWS": max(1, ELEMENTS // columns), "num_warps": 4}
    return COMPILER | sizes


def launch(heads: Tensor, width: int) -> Tensor:
    """Return heads (B, S, A, D) as (B, S, A, width), in the order of memory: with zeros behind, or cut."""
    heads = heads.contiguous()
    options = compile_options(heads.shape[-1], width)
    target = heads.new_empty(*heads.shape[:-1], width)
    count = heads.shape[:-1].numel()
    if count:
        with torch.cuda.device_of(heads):
            resize_heads_kernel[(triton.cdiv(count, options["ROWS"]),)](heads, target, count, **options)
    return target
