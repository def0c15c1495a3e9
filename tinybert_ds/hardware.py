"""What the machine can do, where torch does not say it in one word."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Literal

import torch

from tinybert_ds.rank_environment import device_of

logger = logging.getLogger(__name__)

PROBED_PRODUCTS = ((8, 768, 768), (256, 312, 1200), (512, 768, 3072))
"""(rows, inner size, columns) of products as the layers of a teacher and a student have them."""
WORSE_BY = 2.0
"""How many times the default library's own error a probed product may be off; bfloat16 is off by 10,000 times."""


Precision = Literal["auto", "fp32", "bf16", "fp16"]
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def inference_dtype(device: torch.device, choice: Precision = "auto") -> torch.dtype:
    """Return what a frozen model runs in: auto is fp16 on a GPU, bf16 on a CPU with bf16 instructions, else fp32."""
    if choice != "auto":
        return _DTYPES[choice]
    if device.type != "cpu":
        return torch.float16
    return torch.bfloat16 if multiplies_fast(torch.bfloat16, device) else torch.float32


def precision_problems(flag: str, choice: Precision, device: torch.device) -> list[str]:
    """What is wrong with the precision of a frozen model that a flag asks for."""
    if choice == "fp16" and device.type == "cpu":
        return [f"--{flag} fp16 is not supported on a CPU; take auto, bf16 or fp32"]
    return []


CUDA = "cuda"
"""The device whose kernels are chosen; a test without one lets another take its place."""


def on_cuda(device: torch.device) -> bool:
    """Whether a device has CUDA's kernels: SDPA's fused ones, products of half precision into float32, Triton's."""
    return device.type == CUDA


def device_of_rank(local_rank: int, *, no_cuda: bool) -> torch.device:
    """Return what a rank that no engine places computes on: a GPU of its own where there are any, else the CPU."""
    if no_cuda or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device(CUDA, device_of(local_rank, torch.cuda.device_count()))


def wait_for(device: torch.device) -> None:
    """Wait until a device has done all that it was given, before a clock is read; a CPU has when a call returns."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def computes_bf16_itself() -> bool:
    """Whether the CUDA device has bf16 of its own: V100 and T4 compute it by way of fp32, and fp16 fast."""
    return torch.cuda.is_bf16_supported(including_emulation=False)


def multiplies_fast(dtype: torch.dtype, device: torch.device) -> bool:
    """Return whether the device multiplies matrices of a half-precision dtype faster than float32 ones.

    A CPU without bfloat16 instructions is ten times slower with them than with float32.
    """
    if device.type != "cpu":
        return dtype in (torch.float16, torch.bfloat16)
    capabilities = torch.cpu.get_capabilities()
    return dtype is torch.bfloat16 and any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16"))


def bfloat16_operands() -> AbstractContextManager[None]:
    """Within the context a CPU may round the operands of float32 matrix products to bfloat16; sums stay float32.

    torch has no product of bfloat16 matrices into float32 on a CPU, and this is one for operands that bfloat16 holds
    exactly: as fast as bfloat16 products where the CPU has instructions for them, and nothing of the result is rounded.
    """
    return _products_in(torch.backends.mkldnn.matmul, "bf16")


def tf32_products() -> AbstractContextManager[None]:
    """Within the context CUDA multiplies float32 matrices in TF32, which has the exponents of float32 and ten bits of
    mantissa: exact for operands that have no more, bfloat16 and float16 numbers in any mixture; sums stay float32.
    """
    return _products_in(torch.backends.cuda.matmul, "tf32")


@contextmanager
def _products_in(settings: Any, precision: str) -> Iterator[None]:
    before = settings.fp32_precision
    settings.fp32_precision = precision
    try:
        yield
    finally:
        settings.fp32_precision = before


def choose_float32_products(device: torch.device, *, onednn: bool) -> None:
    """Take float32 matrix products on a CPU through oneDNN where it computes them as accurately as float32 does.

    On CPUs that torch's default library serves badly, oneDNN is twice as fast. Its route is opened by allowing it
    bfloat16, which it makes use of where the CPU multiplies that: there it stays closed. The choice depends on the
    machine alone, not on timings, and is logged.
    """
    if device.type != "cpu":
        return
    settings = torch.backends.mkldnn.matmul
    settings.fp32_precision = "none"
    if not onednn:
        logger.info("float32 matrix products: torch's default library (--no_onednn_matmul)")
        return
    own = product_error()
    settings.fp32_precision = "bf16"
    routed = product_error()
    if routed <= WORSE_BY * own:
        logger.info("float32 matrix products: oneDNN (relative error %.1e, default library %.1e)", routed, own)
        return
    settings.fp32_precision = "none"
    logger.info("float32 matrix products: torch's default library (oneDNN is off by %.1e, it by %.1e)", routed, own)


def product_error() -> float:
    """Return the largest relative error of the probed float32 products against float64."""
    generator = torch.Generator().manual_seed(0)
    errors = []
    for rows, inner, columns in PROBED_PRODUCTS:
        left, right = (torch.randn(shape, generator=generator) for shape in ((rows, inner), (columns, inner)))
        exact = left.double() @ right.double().T
        errors.append((torch.nn.functional.linear(left, right).double() - exact).norm() / exact.norm())
    return float(torch.stack(errors).max())
