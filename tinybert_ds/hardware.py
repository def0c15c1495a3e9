"""What the machine can do, where torch does not say it in one word."""

from __future__ import annotations

import torch


def multiplies_fast(dtype: torch.dtype, device: torch.device) -> bool:
    """Return whether the device multiplies matrices of a half-precision dtype faster than float32 ones.

    A CPU without bfloat16 instructions is ten times slower with them than with float32.
    """
    if device.type != "cpu":
        return dtype in (torch.float16, torch.bfloat16)
    capabilities = torch.cpu.get_capabilities()
    return dtype is torch.bfloat16 and any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16"))
