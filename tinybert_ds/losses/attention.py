"""The attention-score loss without score matrices: the choice of its form, its value, its gradient.

B batch rows, S sequence length, A attention heads, D head size; d = D_student + D_teacher.

Two forms (see `attention_forms`): *gram*, closed, O(S·d²) work; *tiled*, blocks of scores, O(S²·d) work and less of it
for short rows. The gram form's gradient is as good as that of materialised scores; its value is a difference of large
sums when the student is close to its teacher, so it is watched and, where it matters, taken again from tiles. On a GPU
the closed form is one kernel where Triton can take the problem (see `triton_attention`).
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tinybert_ds.hardware import on_cuda, tf32_products
from tinybert_ds.losses import reference
from tinybert_ds.losses.attention_chunks import (
    PROVED_SCORE,
    QUERY_BLOCK,
    column_scales,
    columns_of,
    loaded_chunks,
    no_score_reaches_cutoff,
)
from tinybert_ds.losses.attention_forms import ChunkTerms, gram_terms, tiled_terms
from tinybert_ds.losses.backends import WITHOUT_TRITON, announce, triton_is_installed
from tinybert_ds.losses.precomputed import Needs, attach_gradients, needs_of
from tinybert_ds.losses.reference import CUTOFF_SCORE, Problem

NAME, PLAIN_FORM = "attention", "gram"
definition = reference.attention_score_loss

VALUE_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-13}
"""Relative error of the closed form's value, as estimated, above which the value is taken from tiles."""


def fused_loss(problem: Problem, *, form: str, denominator: float | None) -> Tensor:
    """Return the attention loss with its gradient by the student's query and key.

    Args:
        form: "gram", "tiled" or "triton". Heads in which a score ≤ −100 cannot be excluded under padding="reference"
            are tiled in any case, where the published rule is applied score by score.
    """
    dtype = reference.compute_dtype(*problem.student, *problem.teacher)
    count = partial(reference.token_pair_count, problem.real, problem.student[0].shape[1], problem.padding)
    coefficient = reference.share(2.0, denominator, count, like=problem.real, dtype=dtype)
    needs = needs_of(*problem.student)
    later = form == "triton" and problem.padding == "valid" and needs.gradient
    if later:
        needs = Needs(needs.value, gradient=False)
    with torch.no_grad():
        sums, gradients = terms_of(problem, form, coefficient, needs)
        if sums is None:
            value = torch.zeros_like(coefficient)
        else:
            value = reference.divide(exact_sum(problem, sums, dtype), denominator, count).to(dtype)
    if later:
        return _GradientsLater.apply(value, coefficient, problem, *problem.student)
    return attach_gradients(value, problem.student, gradients) if gradients is not None else value


def terms_of(
    problem: Problem, form: str, coefficient: Tensor, needs: Needs
) -> tuple[Tensor | None, tuple[Tensor, Tensor] | None]:
    """Return what `attention_terms` returns, in any form; None for what is not needed."""
    if not any(needs):
        return None, None
    if form == "triton":
        return triton_terms(problem, coefficient, needs)
    return attention_terms(problem, form, coefficient, needs)


def attention_terms(
    problem: Problem, form: str, coefficient: Tensor, needs: Needs
) -> tuple[Tensor | None, tuple[Tensor, Tensor] | None]:
    """Return the (3,) float64 sums as in `ChunkTerms` and the gradients (B, A, S, D_student).

    These are in the compute dtype; of bfloat16 inputs, whose range is float32's, in bfloat16.
    """
    dtype = coefficient.dtype
    student_head, _ = problem.head_sizes
    student_columns = columns_of(*problem.head_sizes).student
    scales = column_scales(problem, dtype)
    sums = torch.zeros(3, dtype=torch.float64, device=scales.device) if needs.value else None
    query, key = problem.student
    kept = torch.bfloat16 if query.dtype is torch.bfloat16 and dtype is torch.float32 else dtype  # float16 underflows
    gradients = (torch.empty_like(query, dtype=kept), torch.empty_like(key, dtype=kept)) if needs.gradient else None
    on_device = query.device.type != "cpu"  # which is not waited for: the cut-off is applied whatever the scores are
    if on_device and problem.padding == "reference":
        form = "tiled"
    workspace_dtype = operand_dtype(problem, dtype) if form == "gram" else dtype
    tf32 = form == "gram" and workspace_dtype is torch.float32 and exact_in_tf32(problem)
    for rows, heads, operands in loaded_chunks(problem, workspace_dtype, block=QUERY_BLOCK if form == "tiled" else 0):
        cutoff = problem.padding == "reference" and (
            on_device or not no_score_reaches_cutoff(operands, student_columns, scales)
        )
        terms: ChunkTerms
        if cutoff or form == "tiled":
            terms = tiled_terms(operands, student_columns, scales, coefficient, needs, cutoff=cutoff)
        else:
            with tf32_products() if tf32 else nullcontext():
                terms = gram_terms(operands, student_columns, scales, coefficient, needs, tf32=tf32)
        if sums is not None and terms.sums is not None:
            sums += terms.sums
        if gradients is not None and terms.gradients is not None:
            for whole, part in zip(gradients, terms.gradients, strict=True):
                target, length = whole[rows, heads], part.shape[1]
                target[:, :, :length] = part.view(*target.shape[:2], length, student_columns)[..., :student_head]
                target[:, :, length:] = 0.0
    return sums, gradients


def triton_terms(
    problem: Problem, coefficient: Tensor, needs: Needs
) -> tuple[Tensor | None, tuple[Tensor, Tensor] | None]:
    """Return what `attention_terms` returns, from one launch; from chunks where a score ≤ −100 cannot be excluded."""
    from tinybert_ds.losses import triton_attention  # noqa: PLC0415 - optional, and a second to import

    statistics, gradients = triton_attention.launch(problem, coefficient, needs)
    if problem.padding == "reference" and not bool(statistics[3].amax() < PROVED_SCORE):
        return attention_terms(problem, "gram", coefficient, needs)
    return statistics[:3].sum(dim=1) if needs.value else None, gradients


class _GradientsLater(torch.autograd.Function):
    """A loss whose gradients the kernel computes when they are asked for: what they are to be multiplied by is known
    then, so that they are rounded once and none are kept in float32."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, coefficient: Tensor, problem: Problem, query: Tensor, key: Tensor) -> Tensor:
        ctx.save_for_backward(coefficient, query, key, *problem.teacher, problem.real)
        ctx.rest = problem.student_scaling, problem.teacher_scaling, problem.padding
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        from tinybert_ds.losses import triton_attention  # noqa: PLC0415 - optional, and a second to import

        coefficient, query, key, teacher_query, teacher_key, real = ctx.saved_tensors
        problem = Problem((query, key), (teacher_query, teacher_key), real, *ctx.rest)
        needs = Needs(value=False, gradient=True)
        _, gradients = triton_attention.launch(problem, coefficient * upstream, needs, gradient_dtype=query.dtype)
        assert gradients is not None
        return None, None, None, *gradients


def exact_sum(problem: Problem, sums: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the sum of squared differences, taken again from tiles where the closed form has cancelled too far.

    2⁻²⁴·κ, κ being the sum of the terms' sizes over the loss, has bounded every relative error that was measured. What
    is not positive is always taken again; tiles add up squares, so that the result is never below 0.
    """
    total = sums.sum()
    error = torch.finfo(dtype).eps / 2 * sums.abs().sum()
    if bool(error > VALUE_TOLERANCE[dtype] * total):
        zero = total.new_zeros((), dtype=dtype)
        again, _ = attention_terms(problem, "tiled", zero, Needs(value=True, gradient=False))
        assert again is not None
        total = again.sum()
    return total


def operand_dtype(problem: Problem, compute_dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of the closed form's operands: the inputs' own where the device multiplies it into float32."""
    dtypes = {tensor.dtype for tensor in (*problem.student, *problem.teacher)}
    return dtypes.pop() if on_cuda(problem.real.device) and len(dtypes) == 1 else compute_dtype


def exact_in_tf32(problem: Problem) -> bool:
    """Whether the device multiplies in TF32, in which all inputs are exact: half precision in a mixture."""
    dtypes = {tensor.dtype for tensor in (*problem.student, *problem.teacher)}
    return on_cuda(problem.real.device) and dtypes <= {torch.bfloat16, torch.float16}


def choose_form(problem: Problem) -> str:
    """Return the form that takes the least time: on a GPU one launch, on a CPU what multiplies least."""
    sizes = f"attention loss, head sizes {problem.head_sizes[0]} and {problem.head_sizes[1]}"
    if problem.real.device.type == "cpu":
        needs, pays_from = needs_of(*problem.student), partial(gram_pays_from, *problem.head_sizes)
        announce(
            f"{sizes}: closed form (gram) from {pays_from(with_value=False)} tokens on, {pays_from(with_value=True)} "
            "on steps that log the value; tiles below: each where it takes fewer multiply-adds"
        )
        return "gram" if problem.real.shape[1] >= pays_from(with_value=needs.value) else "tiled"
    if problem.padding == "reference":
        announce(
            f"attention loss, padding=reference: blocks of scores (tiled), the cut-off at {CUTOFF_SCORE:g} applied to "
            "each: to ask whether any score reaches it would be to wait for the GPU in every step"
        )
        return "tiled"
    if refusal := triton_refusal(problem):
        announce(f"{sizes}: closed form by matrix products (gram), no Triton kernel: {refusal}")
        return PLAIN_FORM
    announce(f"{sizes}: closed form in one launch (triton)")
    return "triton"


def triton_refusal(problem: Problem) -> str | None:
    """Return why the Triton kernel cannot take the problem, None where it can."""
    if not triton_is_installed():
        return WITHOUT_TRITON
    from tinybert_ds.losses import triton_attention  # noqa: PLC0415 - optional, and a second to import

    return triton_attention.refusal(problem)


def gram_pays_from(student_head: int, teacher_head: int, *, with_value: bool) -> int:
    """Return the sequence length from which the closed form takes fewer multiply-adds than the tiles.

    With p student columns and d columns (see `attention_chunks`), a head of S tokens takes S·4·d·p of them, and
    S·2·(d − p)² more for the value, against S²·(d + 2·p) by tiles.
    """
    student, total = columns_of(student_head, teacher_head)
    gram = 4 * total * student + (2 * (total - student) ** 2 if with_value else 0)
    return math.ceil(gram / (total + 2 * student))
