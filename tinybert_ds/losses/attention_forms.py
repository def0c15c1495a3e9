"""The attention loss of one chunk and its gradient, in closed form (gram) and by blocks of scores (tiled).

n heads, L positions, D head size; d = D_student + D_teacher. With A and B (L, d) as in `attention_chunks`, the loss is
Σ (A·Bᵀ)² = ⟨AᵀA, BᵀB⟩, whose gradients are A·BᵀB and B·AᵀA: no score is ever formed, at a cost of O(L·d²).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tinybert_ds.losses.attention_chunks import QUERY_BLOCK
from tinybert_ds.losses.reference import CUTOFF_SCORE
from tinybert_ds.losses.workspace import wide_matmul


class ChunkTerms(NamedTuple):
    """What a chunk adds to the loss."""

    sums: Tensor | None  # (3,) float64: Σ student², −2·Σ student·teacher, Σ teacher²; their sum is the loss
    gradients: Tensor | None  # (2, n, L, D_student): by student query and key, times the coefficient


def gram_terms(
    operands: Tensor, student_head: int, scales: Tensor, coefficient: Tensor, *, need_value: bool, need_gradient: bool
) -> ChunkTerms:
    """Return the loss and gradients of a chunk from the d x d Gram matrices of its operands.

    Args:
        operands: (2, n, L, d) unscaled; float32, float64, or a half precision on which products are split.
        student_head: D_student, the first columns of the operands.
        scales: (d,) as `Problem.scales`, float32 or float64.
        coefficient: scalar, 2 / denominator.
        need_value: False leaves out the products of the teacher's columns with each other, which no gradient needs.
    """
    _, heads, length, width = operands.shape
    flat = operands.reshape(2 * heads, length, width)
    gram = wide_matmul(flat.transpose(1, 2), flat if need_value else flat[:, :, :student_head], scales.dtype)
    sums = None
    if need_value:
        products = (gram[:heads] * gram[heads:]).sum(dim=0, dtype=torch.float64) * torch.outer(scales, scales).double()
        student, teacher = products[:student_head], products[student_head:]
        sums = torch.stack(
            [student[:, :student_head].sum(), 2 * student[:, student_head:].sum(), teacher[:, student_head:].sum()]
        )
    if not need_gradient:
        return ChunkTerms(sums, None)
    factors = gram[:, :, :student_head] * (coefficient * scales[0] * scales)[:, None]
    # Queries are multiplied by the Gram matrix of the keys, and keys by that of the queries.
    factors = factors.view(2, heads, width, student_head).flip(0).view(2 * heads, width, student_head)
    return ChunkTerms(sums, split_product(flat, factors).view(2, heads, length, student_head))


def tiled_terms(
    operands: Tensor,
    student_head: int,
    scales: Tensor,
    coefficient: Tensor,
    *,
    cutoff: bool,
    need_value: bool,
    need_gradient: bool,
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
    gradients = queries.new_zeros(2, heads, length, student_head) if need_gradient else None
    total = torch.zeros((), dtype=torch.float64, device=queries.device)
    for start in range(0, length, QUERY_BLOCK):
        block = queries[:, start : start + QUERY_BLOCK]
        difference = scratch[: heads * block.shape[1] * length].view(heads, block.shape[1], length)
        cut = None
        if cutoff:
            cut = cut_difference(block, keys, student_head, difference)
        else:
            torch.bmm(block, keys.transpose(1, 2), out=difference)
        if need_value:
            total += torch.linalg.vector_norm(difference, dim=-1).double().square().sum()
        if gradients is not None:
            if cut is not None:
                difference.masked_fill_(cut, 0.0)
            torch.bmm(difference, keys[:, :, :student_head], out=gradients[0, :, start : start + QUERY_BLOCK])
            gradients[1].baddbmm_(difference.transpose(1, 2), block[:, :, :student_head])
    if gradients is not None:
        gradients[0].mul_(coefficient * scales[0])
        gradients[1].mul_(coefficient)
    return ChunkTerms(torch.stack([total * 0, total * 0, total]) if need_value else None, gradients)


def cut_difference(block: Tensor, keys: Tensor, student_head: int, difference: Tensor) -> Tensor:
    """Write score differences with scores ≤ −100 taken as 0, and return where the student's were (bool, as them)."""
    torch.bmm(block[:, :, :student_head], keys[:, :, :student_head].transpose(1, 2), out=difference)
    cut = difference <= CUTOFF_SCORE
    difference.masked_fill_(cut, 0.0)
    negative_teacher = torch.bmm(block[:, :, student_head:], keys[:, :, student_head:].transpose(1, 2))
    difference.add_(negative_teacher.masked_fill_(negative_teacher >= -CUTOFF_SCORE, 0.0))
    return cut


def split_product(operand: Tensor, factors: Tensor) -> Tensor:
    """Return operand (n, L, d) · factors (n, d, D) in the factors' dtype without rounding these to half precision.

    A half-precision operand is multiplied by the factors' high and low part: rounded to their high part alone, the
    terms that nearly cancel in the gradient of a good student would leave 100 times the error.
    """
    if operand.dtype == factors.dtype:
        return torch.bmm(operand, factors)
    # float16 ends at 65504 and at 6e-8; powers of two, so that nothing is rounded here.
    exponent = torch.frexp(factors.abs().amax(dim=(1, 2), keepdim=True)).exponent - 10
    factors = torch.ldexp(factors, -exponent)
    high = factors.to(operand.dtype)
    low = (factors - high.to(factors.dtype)).to(operand.dtype)
    product = wide_matmul(operand, high, factors.dtype) + wide_matmul(operand, low, factors.dtype)
    return torch.ldexp(product, exponent)
