"""Soft cross-entropy for logits as wide as a vocabulary: no second tensor of their size but the gradient itself.

B rows, C classes. The forward keeps the two models' logits, which autograd would hold anyway, and two figures a row;
the backward makes the gradient from those, some rows at a time.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tinybert_ds.losses import reference
from tinybert_ds.losses.workspace import workspace_bytes


def chunked_soft_cross_entropy(
    student_logits: Tensor, teacher_logits: Tensor, *, temperature: float, denominator: float | None
) -> Tensor:
    """Return the soft cross-entropy of (B, C) logits; arguments as in `tinybert_ds.losses.soft_cross_entropy`."""
    dtype = reference.compute_dtype(student_logits, teacher_logits)
    one = torch.ones((), dtype=dtype, device=student_logits.device)
    factor = reference.divide(one, denominator, student_logits.numel())
    return _ChunkedSoftCrossEntropy.apply(student_logits, teacher_logits.detach(), temperature, factor)


def row_chunks(logits: Tensor, dtype: torch.dtype) -> list[slice]:
    """Return slices of rows whose logits, of both models and in `dtype`, fit the workspace."""
    step = max(1, workspace_bytes(logits.device) // (2 * logits.shape[1] * dtype.itemsize))
    return [slice(start, start + step) for start in range(0, len(logits), step)]


class _ChunkedSoftCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, student_logits: Tensor, teacher_logits: Tensor, temperature: float, factor: Tensor) -> Tensor:
        dtype = factor.dtype
        normalisers = torch.empty(2, len(student_logits), 1, dtype=dtype, device=student_logits.device)
        total = torch.zeros((), dtype=torch.float64, device=student_logits.device)
        for rows in row_chunks(student_logits, dtype):
            student, teacher = (logits[rows].to(dtype) / temperature for logits in (student_logits, teacher_logits))
            normalisers[0, rows] = student.logsumexp(dim=1, keepdim=True)
            normalisers[1, rows] = teacher.logsumexp(dim=1, keepdim=True)
            target = teacher.sub_(normalisers[1, rows]).exp_()
            total -= target.mul_(student.sub_(normalisers[0, rows])).sum(dim=1).double().sum()
        ctx.save_for_backward(student_logits, teacher_logits, normalisers, factor)
        ctx.temperature = temperature
        return total.to(dtype) * factor

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream: Tensor):
        student_logits, teacher_logits, normalisers, factor = ctx.saved_tensors
        gradient = torch.empty_like(student_logits)
        scale = upstream * factor / ctx.temperature
        for rows in row_chunks(student_logits, factor.dtype):
            student, teacher = (
                (logits[rows].to(factor.dtype) / ctx.temperature).sub_(normaliser[rows]).exp_()
                for logits, normaliser in zip((student_logits, teacher_logits), normalisers, strict=True)
            )
            gradient[rows] = student.sub_(teacher).mul_(scale)
        return gradient, None, None, None
