"""The hidden-state loss without projected states: the choice of its form, its value, its gradient.

T tokens (B·S), H hidden size. In chunks of tokens each chunk is projected, compared and multiplied back before the next
one, so that neither projected states nor residuals of the whole batch exist. On a GPU one kernel leaves the residuals
in half precision (see `triton_hidden`), and the gradients are two products of them. (A form by Gram matrices loses the
value to cancellation.)
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from tinybert_ds.hardware import bfloat16_operands, multiplies_fast
from tinybert_ds.losses import reference
from tinybert_ds.losses.backends import WITHOUT_TRITON, announce, triton_is_installed
from tinybert_ds.losses.precomputed import attach_gradients, needs_of
from tinybert_ds.losses.workspace import wide_matmul, workspace_bytes

NAME, PLAIN_FORM = "hidden", "chunked"


class HiddenGradients(NamedTuple):
    """Half of the gradients of the sum of squares; None for what is not differentiated or not there."""

    states: Tensor | None  # (T, H_student)
    weight: Tensor | None  # (H_teacher, H_student)
    bias: Tensor | None  # (H_teacher,)


def fused_loss(
    student_hidden: Tensor,
    teacher_hidden: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    real: Tensor,
    *,
    form: str,
    padding: str,
    denominator: float | None,
) -> Tensor:
    """Return the hidden-state loss with its gradients, by form "chunked" or "triton".

    Arguments as in `tinybert_ds.losses`, real (B, S) bool.
    """
    projection = [parameter for parameter in (weight, bias) if parameter is not None]
    dtype = reference.compute_dtype(student_hidden, teacher_hidden, *projection)
    count = partial(reference.hidden_count, real, teacher_hidden.shape[2], padding)
    coefficient = reference.share(2.0, denominator, count, like=real, dtype=dtype)
    needed = gradients_needed(student_hidden, weight, bias)
    need_value = needs_of(student_hidden, *projection).value
    states, targets = student_hidden.flatten(0, 1), teacher_hidden.flatten(0, 1)
    counted = real.flatten() if padding == "valid" else None
    with torch.no_grad():
        if form == "triton":
            assert weight is not None
            total, gradients = triton_terms(
                states, targets, weight, bias, counted, needed=needed, need_value=need_value
            )
        else:
            how = {"dtype": dtype, "product_dtype": hidden_product_dtype(student_hidden, dtype)}
            total, gradients = hidden_terms(
                states, targets, weight, bias, counted, **how, needed=needed, need_value=need_value
            )
            for gradient in gradients:
                if gradient is not None:
                    gradient.mul_(coefficient)
        value = torch.zeros_like(coefficient) if total is None else reference.divide(total, denominator, count)
        value = value.to(dtype)
    pairs = [
        (tensor, gradient.view(tensor.shape))
        for tensor, gradient in zip((student_hidden, weight, bias), gradients, strict=True)
        if tensor is not None and gradient is not None
    ]
    factor = coefficient if form == "triton" else None
    if not pairs:
        return value
    inputs, found = zip(*pairs, strict=True)
    return attach_gradients(value, inputs, found, factor)


def triton_terms(
    student: Tensor,
    teacher: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    real: Tensor | None,
    *,
    needed: tuple[bool, ...],
    need_value: bool,
) -> tuple[Tensor | None, HiddenGradients]:
    """Return what `hidden_terms` returns, from one launch and a product for each gradient; arguments as there.

    The states' gradient is bfloat16 if these are, or else float32: float16 has not the range.
    """
    from tinybert_ds.losses import triton_hidden  # noqa: PLC0415 - optional, and a second to import

    by_states, by_weight, by_bias = needed
    residuals, bias_sums, squares = triton_hidden.launch(
        *(student, teacher, weight, bias, real),
        need_value=need_value,
        need_residuals=by_states or by_weight,
        need_bias=by_bias,
    )
    states_dtype = torch.bfloat16 if student.dtype is torch.bfloat16 else torch.float32
    gradients = HiddenGradients(
        wide_matmul(residuals, weight, states_dtype) if residuals is not None and by_states else None,
        wide_matmul(residuals.t(), student, torch.float32) if residuals is not None and by_weight else None,
        None if bias_sums is None else bias_sums.sum(dim=0),
    )
    return None if squares is None else squares.sum(), gradients


def choose_form(student: Tensor, teacher: Tensor, weight: Tensor | None, bias: Tensor | None) -> str:
    """Return the form for the problem: the Triton kernel where it can take it, else chunks."""
    if student.device.type == "cpu":
        return PLAIN_FORM
    sizes = f"hidden loss, widths {student.shape[2]} and {teacher.shape[2]}"
    if refusal := triton_refusal(student, teacher, weight, bias):
        announce(f"{sizes}: chunks by matrix products, no Triton kernel: {refusal}")
        return PLAIN_FORM
    announce(f"{sizes}: residuals in one launch (triton)")
    return "triton"


def triton_refusal(student: Tensor, teacher: Tensor, weight: Tensor | None, bias: Tensor | None) -> str | None:
    """Return why the Triton kernel cannot take the problem, None where it can."""
    if not triton_is_installed():
        return WITHOUT_TRITON
    from tinybert_ds.losses import triton_hidden  # noqa: PLC0415 - optional, and a second to import

    return triton_hidden.refusal(student, teacher, weight, bias)


def gradients_needed(*tensors: Tensor | None) -> tuple[bool, ...]:
    """Return for each tensor whether it is there and differentiated."""
    return tuple(torch.is_grad_enabled() and tensor is not None and tensor.requires_grad for tensor in tensors)


def hidden_product_dtype(student_hidden: Tensor, compute_dtype: torch.dtype) -> torch.dtype:
    """Return what states, weights and residuals are multiplied in: the states' own dtype if the machine gains by that.

    States are exact in it, weights are split where they are not, and every product is added up in the compute dtype:
    residuals, and with them the value, are those of the compute dtype. Only for the gradients are residuals rounded,
    which costs what rounding the gradient costs.
    """
    own = student_hidden.dtype
    gains = compute_dtype is torch.float32 and multiplies_fast(own, student_hidden.device)
    return own if gains else compute_dtype


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
    need_value: bool = True,
) -> tuple[Tensor | None, HiddenGradients]:
    """Return the sum of squared residuals (float64), None where it is not needed, and half of its gradients.

    Args:
        student, teacher: (T, H_student), (T, H_teacher).
        real: (T,) bool, the tokens that count; None for all.
        dtype: residuals, sums and gradients are of this dtype, float32 or float64.
        product_dtype: operands of products are rounded to this dtype; the products are of `dtype`.
        needed: which gradients to take: by the states, the weight, the bias.
    """
    on_cpu = student.device.type == "cpu"
    operand_dtype = dtype if on_cpu else product_dtype
    factors = [] if weight is None else exact_parts(weight, product_dtype, operand_dtype)
    shapes = (student.shape, None if weight is None else weight.shape, None if bias is None else bias.shape)
    by_states, by_weight, by_bias = (
        student.new_zeros(shape, dtype=dtype) if wanted and shape is not None else None
        for wanted, shape in zip(needed, shapes, strict=True)
    )
    total = torch.zeros((), dtype=torch.float64, device=student.device) if need_value else None
    step = max(1, workspace_bytes(student.device) // (teacher.shape[1] * dtype.itemsize))
    with bfloat16_operands() if on_cpu and product_dtype is torch.bfloat16 else nullcontext():
        for start in range(0, len(student), step):
            tokens = slice(start, start + step)
            states = student[tokens].to(operand_dtype)
            residual = projected(states, factors, dtype) if factors else states.to(dtype, copy=True)
            if bias is not None:
                residual.add_(bias)
            residual.sub_(teacher[tokens])
            if real is not None:
                residual.masked_fill_(~real[tokens, None], 0.0)
            if total is not None:
                total += torch.linalg.vector_norm(residual, dim=1).double().square().sum()
            if by_bias is not None:
                by_bias += residual.sum(dim=0)
            outgoing = residual.to(operand_dtype)
            if by_states is not None:
                by_states[tokens] = wide_matmul(outgoing, factors[0], dtype) if factors else residual
            if by_weight is not None:
                by_weight += wide_matmul(outgoing.t(), states, dtype)
    return total, HiddenGradients(by_states, by_weight, by_bias)


def exact_parts(weight: Tensor, product_dtype: torch.dtype, dtype: torch.dtype) -> list[Tensor]:
    """Return the weight rounded to the product dtype and, where that is not all of it, what is left; both in `dtype`.

    float32 weights of bfloat16 states, under autocast, would otherwise leave the rounding in every residual.
    """
    high = weight.to(product_dtype)
    if torch.promote_types(weight.dtype, product_dtype) == product_dtype:
        return [high.to(dtype)]
    low = (weight - high).to(product_dtype)
    return [high.to(dtype), low.to(dtype)]


def projected(states: Tensor, factors: list[Tensor], dtype: torch.dtype) -> Tensor:
    """Return states (T, H) times the sum of the factors (H', H), transposed, in `dtype`."""
    product = wide_matmul(states, factors[0].t(), dtype)
    for factor in factors[1:]:
        product += wide_matmul(states, factor.t(), dtype)
    return product
