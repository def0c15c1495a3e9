"""The closed form of the attention loss in one launch on a GPU: what it takes, how it is compiled and launched.

B batch rows, S sequence length, A attention heads, D head size. The kernel itself is in `triton_kernel`, those for few
heads of long rows in `triton_split_kernel`. They were compiled for NVIDIA GPUs of compute capability 8.0 and 9.0,
interpreted on CPUs and run on an H200.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from tinybert_ds.hardware import on_cuda
from tinybert_ds.losses.precomputed import Needs
from tinybert_ds.losses.reference import Problem
from tinybert_ds.losses.triton_kernel import attention_loss_kernel
from tinybert_ds.losses.triton_split_kernel import split_gradients_kernel, split_grams_kernel

MAX_HEAD = 64
"""Widest head of a student, and of a teacher beside one wider than SMALL_HEAD, whose Gram matrices fit into a program's
registers."""
SMALL_HEAD, MAX_TEACHER_HEAD = 32, 128
"""A student's head beside which a teacher's may be as wide."""
WIDEST_LOAD = 8
"""Elements of half precision that a thread loads at once."""
ENOUGH_PROGRAMS = 264
"""Two for each multiprocessor of an H100; with fewer heads, long ones are parted."""
LEAST_SHARE = 256
"""Positions that are worth a program of their own."""
EXACT_IN_TF32 = (torch.bfloat16, torch.float16)
OLDEST_CAPABILITY = (8, 0)
"""The first NVIDIA GPUs with TF32."""
HOPPER = 9
"""The major compute capability of H100 and H200, the GPUs that launches were timed on."""
COMPILER: dict[str, Any] = {"enable_fp_fusion": True}
"""What every kernel is compiled with: products and sums in one rounding, whatever Triton's default comes to be."""


def refusal(problem: Problem) -> str | None:
    """Return why the kernel cannot take the problem, None where it can."""
    tensors = (*problem.student, *problem.teacher)
    student_head, _ = problem.head_sizes
    widest = MAX_TEACHER_HEAD if student_head <= SMALL_HEAD else MAX_HEAD
    reasons = {
        f"a head is wider than {widest}": max(problem.head_sizes) > widest,
        "an input is not in half precision": any(tensor.dtype not in EXACT_IN_TF32 for tensor in tensors),
        "the elements of a head are apart in memory": any(tensor.stride(3) != 1 for tensor in tensors),
        "a model's query and key are laid out differently in memory": any(
            query.stride() != key.stride() for query, key in (problem.student, problem.teacher)
        ),
    }
    return device_refusal(problem.real.device) or next((reason for reason, holds in reasons.items() if holds), None)


def device_refusal(device: torch.device) -> str | None:
    """Return why the kernel cannot run on a device, None where it can."""
    if not on_cuda(device):
        interpreted = not isinstance(attention_loss_kernel, triton.JITFunction)
        return None if interpreted else f"it runs on CUDA, not on {device.type} (TRITON_INTERPRET=1 interprets it)"
    if torch.version.hip or capability_of(device) < OLDEST_CAPABILITY:
        return "it needs an NVIDIA GPU of compute capability 8.0 or newer, for TF32"
    return None


def capability_of(device: torch.device) -> tuple[int, int]:
    """Return the compute capability of a GPU that kernels are compiled for; the oldest one for any other device."""
    return torch.cuda.get_device_capability(device) if on_cuda(device) else OLDEST_CAPABILITY


def compile_options(student_head: int, teacher_head: int, needs: Needs, capability: tuple[int, int]) -> dict[str, Any]:
    """Return the kernels' compile-time arguments: positions at a time and warps that spill no registers.

    Compiled by Triton 3.9 for compute capability 8.0, 9.0 and 12.0. On Hopper they are what an H200 was fastest with in
    a sweep of gradients alone (`tests/gpu/sweep.py`); others were not timed.
    """
    student_block = 32 if student_head <= 32 else 64
    teacher_block = 32 if max(student_head, teacher_head) <= 32 else 64 if teacher_head <= 64 else 128
    sizes = {
        **COMPILER,
        "STUDENT_HEAD": student_head,
        "TEACHER_HEAD": teacher_head,
        "STUDENT_BLOCK": student_block,
        "TEACHER_BLOCK": teacher_block,
    }
    small = student_block == 32 and teacher_block <= 64
    on_hopper = capability[0] == HOPPER
    if not on_hopper and not small:
        return {**sizes, "BLOCK": 16, "num_warps": 8, "maxnreg": 255}  # told nothing, it may spill to stay within 128
    most_registers = 168 if on_hopper and not needs.value else 224  # of 168 three programs fit a multiprocessor
    return {
        **sizes,
        "BLOCK": 64,  # rows that Hopper's products of four warps have: those of gradients, and of Gram matrices of 64
        "num_warps": 8 if needs.value and not small else 4,
        "num_stages": 1,
        **({"maxnreg": most_registers} if small else {}),
    }


def unit_of(strides: Sequence[int]) -> int:
    """Return the largest power of two, up to WIDEST_LOAD, that divides all strides."""
    return math.gcd(*strides, WIDEST_LOAD)


def parts_of(heads: int, length: int) -> int:
    """Return between how many programs the positions of each head are parted, of all rows' heads together."""
    return max(1, min(ENOUGH_PROGRAMS // heads, length // LEAST_SHARE)) if heads else 1


class Layout(NamedTuple):
    """How queries and keys lie in memory, as the kernels take it: strides over units, and these."""

    strides: tuple[int, ...]  # of batch, head and position, of each tensor
    units: dict[str, int]

    @classmethod
    def of(cls, **tensors: Tensor) -> Layout:
        """Return the layout of tensors (B, A, S, D), by what the kernels call them."""
        strides: list[int] = []
        units = {}
        for name, tensor in tensors.items():
            own = tensor.stride()[:3]
            units[f"{name}_UNIT"] = unit_of(own)
            strides += [stride // units[f"{name}_UNIT"] for stride in own]
        return cls(tuple(strides), units)


def launch(
    problem: Problem, coefficient: Tensor, needs: Needs, gradient_dtype: torch.dtype = torch.float32
) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
    """Run the kernel on a problem that `refusal` lets through; few heads of long rows in two launches.

    Args:
        gradient_dtype: What gradients are rounded to.

    Returns:
        Statistics (4, B·A) float64 of each head: Σ student², −2·Σ student·teacher, Σ teacher² (0 unless `needs.value`),
        and, under padding="reference", a bound on the size of its scores (else 0). The gradients (B, A, S, D_student)
        by student query and key, laid out as these, or None.
    """
    (query, key), (teacher_query, teacher_key) = problem.student, problem.teacher
    batch, heads, length, student_head = query.shape
    gradients = None
    if needs.gradient:
        gradients = (torch.empty_like(query, dtype=gradient_dtype), torch.empty_like(key, dtype=gradient_dtype))
    targets = gradients or (query, key)  # not touched without need
    statistics = torch.zeros(4, batch * heads, dtype=torch.float64, device=query.device)
    parts = parts_of(batch * heads, length) if problem.padding == "valid" else 1
    options = compile_options(student_head, teacher_query.shape[3], needs, capability_of(query.device))
    inputs = (query, key, teacher_query, teacher_key, problem.real.contiguous())
    layout = Layout.of(STUDENT=query, TEACHER=teacher_query, GRADIENT=targets[0])
    wanted = {"NEED_VALUE": needs.value, "NEED_GRADIENT": needs.gradient}
    scalings = (problem.student_scaling, problem.teacher_scaling)
    with torch.cuda.device_of(query):
        if parts > 1:
            grams = gram_matrices(inputs, heads, parts, options, needs)
            split_gradients_kernel[(batch * heads, parts)](
                *(*inputs, coefficient, grams, *targets, statistics),
                *(heads, length, share_of(length, parts, options["BLOCK"]), *layout.strides, *scalings),
                **(wanted | layout.units | options),
            )
            return statistics, gradients
        attention_loss_kernel[(batch * heads,)](
            *(*inputs, coefficient, *targets, statistics),
            *(batch * heads, heads, length, *layout.strides, *scalings),
            VALID=problem.padding == "valid",
            **(wanted | layout.units | options),
        )
    return statistics, gradients


def share_of(length: int, parts: int, block: int) -> int:
    """Return how many positions each part has, a multiple of the kernels' block."""
    return triton.cdiv(triton.cdiv(length, parts), block) * block


def gram_matrices(inputs: tuple[Tensor, ...], heads: int, parts: int, options: dict[str, Any], needs: Needs) -> Tensor:
    """Return the Gram matrices of each part of each head, laid out as `triton_split_kernel` says.

    Args:
        inputs: queries and keys of student and teacher, and which tokens are real.
    """
    query, _, teacher_query, _, _ = inputs
    batch, _, length, _ = query.shape
    student, teacher = options["STUDENT_BLOCK"], options["TEACHER_BLOCK"]
    side = student * student + teacher * student + teacher * teacher
    grams = torch.empty(parts, batch * heads, 2 * side, dtype=torch.float32, device=query.device)
    layout = Layout.of(STUDENT=query, TEACHER=teacher_query)
    split_grams_kernel[(batch * heads, parts)](
        *(*inputs, grams, heads, length, share_of(length, parts, options["BLOCK"]), *layout.strides),
        NEED_VALUE=needs.value,
        **(layout.units | options),
    )
    return grams
