"""The hidden-state loss without projected states: residuals of some tokens at a time, gradients taken as they pass.

T tokens (B·S), H hidden size. Each chunk is projected, compared and multiplied back before the next one, so that
neither projected states nor residuals of the whole batch exist. (A form by Gram matrices loses the value to
cancellation.)
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tinybert_ds.hardware import multiplies_fast
from tinybert_ds.losses import reference
from tinybert_ds.losses.precomputed import attach_gradients
from tinybert_ds.losses.workspace import wide_matmul, workspace_bytes


class HiddenGradients(NamedTuple):
    """Gradients in the compute dtype; None for what is not differentiated or not there."""

    states: Tensor | None  # (T, H_student)
    weight: Tensor | None  # (H_teacher, H_student)
    bias: Tensor | None  # (H_teacher,)


def fused_hidden_loss(
    student_hidden: Tensor,
    teacher_hidden: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    real: Tensor,
    *,
    padding: str,
    denominator: float | None,
) -> Tensor:
    """Return the hidden-state loss with its gradients; arguments as in `tinybert_ds.losses`, real (B, S) bool."""
    projection = [parameter for parameter in (weight, bias) if parameter is not None]
    dtype = reference.compute_dtype(student_hidden, teacher_hidden, *projection)
    count = reference.hidden_count(real, teacher_hidden.shape[2], padding)
    coefficient = reference.divide(real.new_full((), 2.0, dtype=dtype), denominator, count)
    needed = gradients_needed(student_hidden, weight, bias)
    with torch.no_grad():
        total, gradients = hidden_terms(
            student_hidden.flatten(0, 1),
            teacher_hidden.flatten(0, 1),
            weight,
            bias,
            real.flatten() if padding == "valid" else None,
            dtype=dtype,
            product_dtype=hidden_product_dtype(student_hidden, dtype),
            needed=needed,
        )
        value = reference.divide(total, denominator, count).to(dtype)
        pairs = [
            (tensor, gradient.mul_(coefficient).view(tensor.shape))
            for tensor, gradient in zip((student_hidden, weight, bias), gradients, strict=True)
            if tensor is not None and gradient is not None
        ]
    return attach_gradients(value, *zip(*pairs, strict=True)) if pairs else value


def gradients_needed(*tensors: Tensor | None) -> tuple[bool, ...]:
    """Return for each tensor whether it is there and differentiated."""
    return tuple(torch.is_grad_enabled() and tensor is not None and tensor.requires_grad for tensor in tensors)


def hidden_product_dtype(student_hidden: Tensor, compute_dtype: torch.dtype) -> torch.dtype:
    """Return what states and weights are multiplied in: the states' own dtype where the machine gains by that.

    Rounding the projected states costs what it costs the published form in that dtype, 2⁻⁹/√ρ for bfloat16 (ρ: loss
    over the teacher's power), and no more: the residuals are float32.
    """
    own = student_hidden.dtype
    return own if multiplies_fast(own, student_hidden.device) else compute_dtype


def hidden_terms(
    student: Tensor,
    teacher: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    real: Tensor | None,
    *,
    dtype: torch.dtype,
    product_dtype: torch.dtype,
    needed: tuple[bool, ...],
) -> tuple[Tensor, HiddenGradients]:
    """Return the sum of squared residuals (float64) and half of its gradients.

    Args:
        student, teacher: (T, H_student), (T, H_teacher).
        real: (T,) bool, the tokens that count; None for all.
        dtype: residuals, sums and gradients are of this dtype, float32 or float64.
        product_dtype: student states and weight are multiplied in this dtype.
        needed: which gradients to take: by the states, the weight, the bias.
    """
    factors = None if weight is None else weight.to(product_dtype)
    shapes = (student.shape, None if weight is None else weight.shape, None if bias is None else bias.shape)
    by_states, by_weight, by_bias = (
        student.new_zeros(shape, dtype=dtype) if wanted and shape is not None else None
        for wanted, shape in zip(needed, shapes, strict=True)
    )
    total = torch.zeros((), dtype=torch.float64, device=student.device)
    step = max(1, workspace_bytes(student.device) // (teacher.shape[1] * dtype.itemsize))
    for start in range(0, len(student), step):
        tokens = slice(start, start + step)
        states = student[tokens].to(product_dtype)
        residual = states.to(dtype, copy=True) if factors is None else projected(states, factors, dtype)
        if bias is not None:
            residual.add_(bias)
        residual.sub_(teacher[tokens])
        if real is not None:
            residual.masked_fill_(~real[tokens, None], 0.0)
        total += torch.linalg.vector_norm(residual, dim=1).double().square().sum()
        if by_bias is not None:
            by_bias += residual.sum(dim=0)
        outgoing = residual.to(product_dtype)
        if by_states is not None:
            by_states[tokens] = residual if factors is None else projected(outgoing, factors.t(), dtype)
        if by_weight is not None:
            by_weight += projected(outgoing.t(), states.t(), dtype)
    return total, HiddenGradients(by_states, by_weight, by_bias)


def projected(states: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Return states (T, H) · weightᵀ (H, H') in `dtype`, multiplied in the dtype of the operands."""
    if states.device.type == "cpu":
        return torch.mm(states, weight.t()).to(dtype)
    return wide_matmul(states, weight.t(), dtype)
