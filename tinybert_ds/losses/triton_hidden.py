"""The residuals of the hidden-state loss in one launch on a GPU: what it takes, how it is compiled and launched.

T tokens (B·S), H hidden size. The kernel itself is in `triton_hidden_kernel`. It was compiled for NVIDIA GPUs of
compute capability 8.0 and 9.0, interpreted on CPUs and run on an H200.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from tinybert_ds.losses.triton_attention import COMPILER, HOPPER, capability_of, device_refusal
from tinybert_ds.losses.triton_attention import EXACT_IN_TF32 as HALF_DTYPES
from tinybert_ds.losses.triton_hidden_kernel import hidden_residual_kernel

MOST_ELEMENTS = 2**31
"""Of a model's states: the kernel counts them in 32 bits."""


class Residuals(NamedTuple):
    """What one launch leaves; None for what was not asked for."""

    values: Tensor | None  # (T, H_teacher), rounded to the student's dtype; 0 for tokens that do not count
    bias_sums: Tensor | None  # (blocks of tokens, H_teacher) float32
    squares: Tensor | None  # (programs,) float64


def refusal(student: Tensor, teacher: Tensor, weight: Tensor | None, bias: Tensor | None) -> str | None:
    """Return why the kernel cannot take states (B, S, H) and their projection, None where it can."""
    if weight is None:
        return "there is no projection"
    floats = (*HALF_DTYPES, torch.float32)
    reasons = {
        "the student's states are not in half precision": student.dtype not in HALF_DTYPES,
        f"the projection is {weight.dtype}, the student's states are {student.dtype}": weight.dtype != student.dtype,
        "the teacher's states or the bias are float64": any(
            tensor is not None and tensor.dtype not in floats for tensor in (teacher, bias)
        ),
        "a model's states have 2³¹ elements or more": max(student.numel(), teacher.numel()) >= MOST_ELEMENTS,
    }
    return device_refusal(student.device) or next((reason for reason, holds in reasons.items() if holds), None)


def compile_options(capability: tuple[int, int]) -> dict[str, Any]:
    """Return the kernel's compile-time arguments that follow from the GPU's compute capability alone.

    They spill no registers, whatever widths and dtypes, compiled by Triton 3.9 for 8.0, 9.0 and 12.0; on Hopper, those
    of them that an H200 was fastest with in a sweep (`tests/gpu/sweep.py`).
    """
    if capability[0] != HOPPER:
        return COMPILER | {"BLOCK": 64, "COLUMNS": 128, "INNER": 32, "num_warps": 4, "num_stages": 2}
    return COMPILER | {"BLOCK": 128, "COLUMNS": 64, "INNER": 64, "num_warps": 4, "num_stages": 2}


def launch(
    student: Tensor,
    teacher: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    real: Tensor | None,
    *,
    need_value: bool,
    need_residuals: bool,
    need_bias: bool,
) -> Residuals:
    """Run the kernel on states and a projection that `refusal` lets through.

    Args:
        student, teacher: (T, H_student), (T, H_teacher).
        real: (T,) bool, the tokens that count; None for all.
    """
    (tokens, teacher_width), device = teacher.shape, teacher.device
    options = compile_options(capability_of(device))
    blocks, parts = triton.cdiv(tokens, options["BLOCK"]), triton.cdiv(teacher_width, options["COLUMNS"])
    found = Residuals(
        student.new_empty(tokens, teacher_width) if need_residuals else None,
        torch.empty(blocks, teacher_width, dtype=torch.float32, device=device) if need_bias else None,
        torch.empty(blocks * parts, dtype=torch.float64, device=device) if need_value else None,
    )
    student, teacher, weight = student.contiguous(), teacher.contiguous(), weight.contiguous()
    if tokens:
        not_touched = student  # stands for what is not there
        with torch.cuda.device_of(student):
            hidden_residual_kernel[(blocks * parts,)](
                *(student, weight, teacher, not_touched if bias is None else bias),
                not_touched if real is None else real.contiguous(),
                *(not_touched if tensor is None else tensor for tensor in found),
                tokens,
                STUDENT_WIDTH=student.shape[1],
                TEACHER_WIDTH=teacher_width,
                HAS_BIAS=bias is not None,
                VALID=real is not None,
                NEED_VALUE=need_value,
                NEED_RESIDUALS=need_residuals,
                NEED_BIAS=need_bias,
                **options,
            )
    return found
