"""The KL of relations in two launches on a GPU: what they take, how they are compiled and launched.

B batch rows, S sequence length, R relation heads, d their width. The kernels themselves are in
`triton_relation_kernel`. They were compiled for NVIDIA GPUs of compute capability 8.0 and 9.0, interpreted on CPUs
and run on an H200.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from tinybert_ds.losses.precomputed import Needs
from tinybert_ds.losses.reference import Problem
from tinybert_ds.losses.triton_attention import COMPILER, EXACT_IN_TF32, device_refusal
from tinybert_ds.losses.triton_relation_kernel import log_sums_kernel, relation_loss_kernel

MAX_STUDENT_HEAD, MAX_TEACHER_HEAD = 64, 128
"""Widest relation heads whose rows fit into a program's registers; the student's gradient lies there, too."""
LEAST_BLOCK = 16
"""What a tensor core's product has at least in each direction."""


def refusal(problem: Problem) -> str | None:
    """Return why the kernels cannot take the problem, None where they can."""
    tensors = (problem.student[0], problem.teacher[0])
    student_head, teacher_head = problem.head_sizes
    reasons = {
        f"a relation head of the student is wider than {MAX_STUDENT_HEAD}": student_head > MAX_STUDENT_HEAD,
        f"a relation head of the teacher is wider than {MAX_TEACHER_HEAD}": teacher_head > MAX_TEACHER_HEAD,
        "an input is not in half precision": any(tensor.dtype not in EXACT_IN_TF32 for tensor in tensors),
        "the elements of a head are apart in memory": any(tensor.stride(3) != 1 for tensor in tensors),
    }
    return device_refusal(problem.real.device) or next((reason for reason, holds in reasons.items() if holds), None)


def compile_options(student_head: int, teacher_head: int) -> dict[str, Any]:
    """Return the kernels' compile-time arguments that follow from the head sizes.

    Rows and keys at a time and warps are ones that spill no registers, compiled by Triton 3.9 for compute capability
    8.0 and 9.0, and of these the ones that an H200 was fastest with in a sweep (`tests/gpu/sweep.py`). On 12.0 a
    student's heads beyond 32 spill about a hundred bytes where the value is needed.
    """
    student_block, teacher_block = (
        max(LEAST_BLOCK, triton.next_power_of_2(size)) for size in (student_head, teacher_head)
    )
    return {
        **COMPILER,
        "STUDENT_HEAD": student_head,
        "TEACHER_HEAD": teacher_head,
        "STUDENT_BLOCK": student_block,
        "TEACHER_BLOCK": teacher_block,
        "BLOCK": 64,
        "KEYS": 32,
        "num_warps": 4 if teacher_block <= 64 else 8,
        "num_stages": 1 if teacher_block > LEAST_BLOCK else 3,  # with one, the least spill on 8.0
    }


def launch(problem: Problem, coefficient: Tensor, needs: Needs) -> tuple[Tensor | None, Tensor | None]:
    """Run the kernels on a problem that `refusal` lets through.

    Args:
        coefficient: float32 scalar tensor, 1 / denominator.

    Returns:
        The sum of the KL of all rows that count (float64 scalar), and the gradient (B, R, S, d_student) float32 by the
        student's vectors, laid out as these; each None where it is not needed.
    """
    student, teacher = problem.student[0], problem.teacher[0]
    batch, heads, length, student_head = student.shape
    options = compile_options(student_head, teacher.shape[3])
    grid = (batch * heads, triton.cdiv(length, options["BLOCK"]))
    gradient = torch.empty_like(student, dtype=torch.float32) if needs.gradient else None
    values = torch.zeros(grid, dtype=torch.float64, device=student.device)
    if student.numel() and any(needs):
        log_sums = torch.empty(2, batch * heads, length, dtype=torch.float32, device=student.device)
        real = problem.real.contiguous()
        sizes = (batch * heads * length, heads, length)
        strides = [stride for tensor in (student, teacher) for stride in tensor.stride()[:3]]
        scalings = (problem.student_scaling, problem.teacher_scaling)
        common = {"VALID": problem.padding == "valid", **options}
        target = student if gradient is None else gradient  # not touched without need
        with torch.cuda.device_of(student):
            log_sums_kernel[grid](student, teacher, real, log_sums, *sizes, *strides, *scalings, **common)
            relation_loss_kernel[grid](
                *(student, teacher, real, log_sums, coefficient, target, values),
                *(*sizes, *strides, *target.stride()[:3], *scalings),
                NEED_VALUE=needs.value,
                NEED_GRADIENT=needs.gradient,
                **common,
            )
    return values.sum() if needs.value else None, gradient
