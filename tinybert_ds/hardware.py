"""What the machine can do, where torch does not say it in one word."""

from __future__ import annotations

import torch


def inference_dtype(device: torch.device) -> torch.dtype:
    """Return what a frozen model runs in: fp16 on a GPU, bf16 on a CPU with bf16 instructions, fp32 elsewhere."""
    if device.type != "cpu":
        return torch.float16
    return torch.bfloat16 if multiplies_fast(torch.bfloat16, device) else torch.float32


def multiplies_fast(dtype: torch.dtype, device: torch.device) -> bool:
    """Return whether the device multiplies matrices of a half-precision dtype faster than float32 ones.

    A CPU without bfloat16 instructions is ten times slower with them than with float32.
    """
    if device.type != "cpu":
        return dtype in (torch.float16, torch.bfloat16)
    capabilities = torch.cpu.get_capabilities()
    return dtype is torch.bfloat16 and any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16"))
