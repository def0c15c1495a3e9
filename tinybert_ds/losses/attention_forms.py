"""The attention loss of one chunk and its gradient, in closed form (gram) and by blocks of scores (tiled).

n heads, L positions, p student columns, d columns. With A and B (L, d) as in `attention_chunks`, the loss is
Σ (A·Bᵀ)² = ⟨AᵀA, BᵀB⟩, whose gradients are A·BᵀB and B·AᵀA: no score is ever formed, at a cost of O(L·d²).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tinybert_ds.losses.attention_chunks import QUERY_BLOCK
from tinybert_ds.losses.precomputed import Needs
from tinybert_ds.losses.reference import CUTOFF_SCORE
from tinybert_ds.losses.workspace import wide_matmul


class ChunkTerms(NamedTuple):
    """What a chunk adds to the loss."""

    sums: Tensor | None  # (3,) float64: Σ student², −2·Σ student·teacher, Σ teacher²; their sum is the loss
    gradients: Tensor | None  # (2, n, L, p): by student query and key, times the coefficient


def gram_terms(
    operands: Tensor,
    student_columns: int,
    scales: Tensor,
    coefficient: Tensor,
    needs: Needs,
    *,
    tf32: bool = False,
) -> ChunkTerms:
    """Return the loss and gradients of a chunk from the Gram matrices of its operands.

    Args:
        operands: (2, n, L, d) unscaled; float32, float64, or a half precision on which products are split.
        student_columns: p, the first columns of the operands.
        scales: (d,) as `column_scales`, float32 or float64.
        coefficient: scalar, 2 / denominator.
        needs: without the value the products of the teacher's columns with each other are left out.
        tf32: products are in TF32 (`hardware.tf32_products`), in which the operands, float32, are exact.
    """
    _, heads, length, width = operands.shape
    flat = operands.reshape(2 * heads, length, width)
    student, teacher = flat[:, :, :student_columns], flat[:, :, student_columns:]
    gram = wide_matmul(student.transpose(1, 2), flat, scales.dtype)  # (2n, p, d); its other rows follow by symmetry
    sums = None
    if needs.value:
        own = paired_sums(gram) * scales[0].double() * scales.double()
        other = paired_sums(wide_matmul(teacher.transpose(1, 2), teacher, scales.dtype)) * scales[-1].double().square()
        sums = torch.stack([own[:student_columns].sum(), 2 * own[student_columns:].sum(), other.sum()])
    if not needs.gradient:
        return ChunkTerms(sums, None)
    # Queries are multiplied by the Gram matrix of the keys, and keys by that of the queries.
    factors = gram.mul_(coefficient * scales[0] * scales).transpose(1, 2).view(2, heads, width, student_columns)
    gradients = flat.new_empty(2, heads, length, student_columns, dtype=scales.dtype)
    for side in (0, 1):
        split_product(operands[side], factors[1 - side], out=gradients[side], tf32=tf32)
    return ChunkTerms(sums, gradients)


def paired_sums(gram: Tensor) -> Tensor:
    """Return (d,) float64: the products of the queries' and the keys' Gram matrices (2n, p, d), summed but for d."""
    queries, keys = gram.chunk(2)
    return (queries * keys).sum(dim=0).sum(dim=0, dtype=torch.float64)


def tiled_terms(
    operands: Tensor, student_columns: int, scales: Tensor, coefficient: Tensor, needs: Needs, *, cutoff: bool
) -> ChunkTerms:
    """Return the loss and gradients of a chunk from blocks of score differences; overwrites the operands.

    Arguments as `gram_terms`, and:
        cutoff: apply the published rule that scores ≤ −100 become 0, on each side for itself.

    The sums are (0, 0, loss): nothing cancels here.
    """
    operands = operands.to(scales.dtype)
    queries, keys = operands[0].mul_(scales), operands[1]
    heads, length, _ = queries.shape
    scratch = queries.new_empty(heads * min(length, QUERY_BLOCK) * length)
    gradients = queries.new_empty(2, heads, length, student_columns) if needs.gradient else None
    total = torch.zeros((), dtype=torch.float64, device=queries.device)
    for start in range(0, length, QUERY_BLOCK):
        rows = slice(start, start + QUERY_BLOCK)
        block = queries[:, rows]
        difference = scratch[: heads * block.shape[1] * length].view(heads, block.shape[1], length)
        cut = None
        if cutoff:
            cut = cut_difference(block, keys, student_columns, difference)
        else:
            torch.bmm(block, keys.transpose(1, 2), out=difference)
        if needs.value:
            total += torch.linalg.vector_norm(difference, dim=-1).double().square().sum()
        if gradients is not None:
            if cut is not None:
                difference.masked_fill_(cut, 0.0)
            add_product(gradients[0, :, rows], difference, keys[:, :, :student_columns], first=True)
            student = block[:, :, :student_columns]
            add_product(gradients[1], difference.transpose(1, 2), student, first=start == 0)
    if gradients is not None:  # on the device, which is not waited for
        gradients[0].mul_(coefficient * scales[0])
        gradients[1].mul_(coefficient)
    return ChunkTerms(torch.stack([total * 0, total * 0, total]) if needs.value else None, gradients)


def add_product(target: Tensor, left: Tensor, right: Tensor, *, first: bool) -> None:
    """Add left · right to a batch of matrices, or write it there."""
    torch.baddbmm(target, left, right, beta=0 if first else 1, out=target)


def cut_difference(block: Tensor, keys: Tensor, student_columns: int, difference: Tensor) -> Tensor:
    """Write score differences with scores ≤ −100 taken as 0, and return where the student's were (bool, as them)."""
    torch.bmm(block[:, :, :student_columns], keys[:, :, :student_columns].transpose(1, 2), out=difference)
    cut = difference <= CUTOFF_SCORE
    difference.masked_fill_(cut, 0.0)
    negative_teacher = torch.bmm(block[:, :, student_columns:], keys[:, :, student_columns:].transpose(1, 2))
    difference.add_(negative_teacher.masked_fill_(negative_teacher >= -CUTOFF_SCORE, 0.0))
    return cut


def to_tf32(values: Tensor) -> Tensor:
    """Drop the 13 bits of mantissa that TF32 has not from float32 numbers."""
    return (values.view(torch.int32) & -8192).view(torch.float32)


def split_product(operand: Tensor, factors: Tensor, *, out: Tensor, tf32: bool = False) -> None:
    """Write operand (n, L, d) · factors (n, d, p) in the factors' dtype without rounding these to what is multiplied.

    A half-precision operand, or one in TF32, is multiplied by the factors' high and low part: rounded to their high
    part alone, the terms that nearly cancel in the gradient of a good student would leave 100 times the error.
    """
    if tf32:
        high = to_tf32(factors)
        torch.bmm(operand, high, out=out)
        out.baddbmm_(operand, to_tf32(factors - high))
        return
    if operand.dtype == factors.dtype:
        torch.bmm(operand, factors, out=out)
        return
    # float16 ends at 65504 and at 6e-8; powers of two, so that nothing is rounded here.
    exponent = torch.frexp(factors.abs().amax(dim=(1, 2), keepdim=True)).exponent - 10
    factors = torch.ldexp(factors, -exponent)
    high = factors.to(operand.dtype)
    low = (factors - high.to(factors.dtype)).to(operand.dtype)
    product = wide_matmul(operand, high, factors.dtype) + wide_matmul(operand, low, factors.dtype)
    torch.ldexp(product, exponent, out=out)
