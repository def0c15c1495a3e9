"""The closed form of the attention loss in one launch on a GPU: what it takes, how it is compiled and launched.

B batch rows, S sequence length, A attention heads, D head size. The kernel itself is in `triton_kernel`. It was
compiled for NVIDIA GPUs of compute capability 8.0 and 9.0 and interpreted on CPUs; no GPU has run it yet.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from tinybert_ds.hardware import on_cuda
from tinybert_ds.losses.precomputed import Needs
from tinybert_ds.losses.reference import Problem
from tinybert_ds.losses.triton_kernel import attention_loss_kernel

MAX_HEAD = 64
"""Widest head whose Gram matrices fit into a program's registers."""
EXACT_IN_TF32 = (torch.bfloat16, torch.float16)
OLDEST_CAPABILITY = (8, 0)
"""The first NVIDIA GPUs with TF32."""


def refusal(problem: Problem) -> str | None:
    """Return why the kernel cannot take the problem, None where it can."""
    tensors = (*problem.student, *problem.teacher)
    reasons = {
        f"a head is wider than {MAX_HEAD}": max(problem.head_sizes) > MAX_HEAD,
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
    if torch.version.hip or torch.cuda.get_device_capability(device) < OLDEST_CAPABILITY:
        return "it needs an NVIDIA GPU of compute capability 8.0 or newer, for TF32"
    return None


def compile_options(student_head: int, teacher_head: int) -> dict[str, Any]:
    """Return the kernel's compile-time arguments that follow from the head sizes.

    Positions at a time and warps are the ones that spill no registers on GPUs of compute capability 8.0 and 9.0.
    """
    student_block = 32 if student_head <= 32 else 64
    teacher_block = 32 if max(student_head, teacher_head) <= 32 else 64
    return {
        "STUDENT_HEAD": student_head,
        "TEACHER_HEAD": teacher_head,
        "STUDENT_BLOCK": student_block,
        "TEACHER_BLOCK": teacher_block,
        "BLOCK": 32 if student_block == 32 else 16,
        "num_warps": 4 if student_block == 32 else 8,
    }


def launch(problem: Problem, coefficient: Tensor, needs: Needs) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
    """Run the kernel on a problem that `refusal` lets through.

    Returns:
        Statistics (4, B·A) float64 of each head: Σ student², −2·Σ student·teacher, Σ teacher² (0 unless `needs.value`),
        and, under padding="reference", a bound on the size of its scores (else 0). The gradients (B, A, S, D_student)
        float32 by student query and key, laid out as these, or None.
    """
    (query, key), (teacher_query, teacher_key) = problem.student, problem.teacher
    batch, heads, length, student_head = query.shape
    gradients = None
    if needs.gradient:
        gradients = (torch.empty_like(query, dtype=torch.float32), torch.empty_like(key, dtype=torch.float32))
    targets = gradients or (query, key)  # not touched without need
    statistics = torch.zeros(4, batch * heads, dtype=torch.float64, device=query.device)
    strides = (tensor.stride()[:3] for tensor in (query, teacher_query, targets[0]))
    with torch.cuda.device_of(query):
        attention_loss_kernel[(batch * heads,)](
            *(query, key, teacher_query, teacher_key, problem.real.contiguous(), coefficient, *targets, statistics),
            *(batch * heads, heads, length),
            *(stride for tensor_strides in strides for stride in tensor_strides),
            *(problem.student_scaling, problem.teacher_scaling),
            VALID=problem.padding == "valid",
            NEED_VALUE=needs.value,
            NEED_GRADIENT=needs.gradient,
            **compile_options(student_head, teacher_query.shape[3]),
        )
    return statistics, gradients
