"""The distillation losses, and the one place where it is decided which implementation computes them.

B batch rows, S sequence length, A attention heads, D head size, H hidden size, C classes, R relation
heads.

What all of them share: the result is a float32 scalar (float64 if an input is float64); the inputs' dtypes may differ
and each gradient has its input's dtype; gradients flow to the student side and the projection only; autocast is off
inside. `denominator` is what the sum of all terms is divided by: None for the call's own count, otherwise the global
batch's count / (world_size · gradient_accumulation_steps), a number or a scalar tensor of it, so that any number of
ranks and micro-batches gives the gradients of one. A denominator of 0 or infinity gives a loss and gradients of
exactly 0.

Half-precision inputs are taken as exact numbers, on every machine: nothing is rounded to half precision before models
are compared, so that the value is that of float32 even where a student is close to its teacher. (Rounding projected
states to bfloat16 first would bury a difference of 1/1000.) Gradients may be off by what rounding them to their
input's dtype costs. Matrices are multiplied in half precision only where the machine adds up in float32 and returns
that.
"""

from __future__ import annotations

from functools import partial
from types import ModuleType

import torch
from torch import Tensor

from tinybert_ds.errors import ConfigError
from tinybert_ds.losses import attention, checks, hidden, reference, relations
from tinybert_ds.losses.precomputed import gradients_only, gradients_suffice
from tinybert_ds.losses.predictions import (
    logit_divergence,
    logit_error,
    regression_loss,
    soft_binary_cross_entropy,
    soft_cross_entropy,
)
from tinybert_ds.losses.reference import Problem
from tinybert_ds.losses.relation_heads import choose_relation_heads, relation_problem

__all__ = [
    "attention_score_loss",
    "choose_relation_heads",
    "gradients_only",
    "gradients_suffice",
    "hidden_state_loss",
    "logit_divergence",
    "logit_error",
    "regression_loss",
    "relation_loss",
    "soft_binary_cross_entropy",
    "soft_cross_entropy",
]

ATTENTION_BACKENDS = ("auto", "reference", "tiled", "gram", "triton")
RELATION_FORMS = ("scores", "kl")
KL_BACKENDS = ("auto", "reference", "tiled", "triton")
HIDDEN_BACKENDS = ("auto", "reference", "chunked", "triton")


def attention_score_loss(
    student_query: Tensor,
    student_key: Tensor,
    teacher_query: Tensor,
    teacher_key: Tensor,
    attention_mask: Tensor,
    *,
    student_scaling: float,
    teacher_scaling: float,
    padding: str = "valid",
    backend: str = "auto",
    denominator: float | None = None,
) -> Tensor:
    """Return the mean squared difference of the two models' pre-softmax attention scores (arXiv 1909.10351, eq. 7).

    Args:
        student_query, student_key: (B, A, S, D_student), unscaled, as captured from the attention function.
        teacher_query, teacher_key: (B, A, S, D_teacher), unscaled.
        attention_mask: (B, S), 1 = real token.
        student_scaling, teacher_scaling: score = query · keyᵀ · scaling.
        padding: "valid" counts pairs of real tokens, own count A·Σlen²; "reference" is the published normalisation:
            padded keys add nothing, padded queries count, scores ≤ −100 become 0, own count B·A·S².
        backend: "auto", or one of "gram" (closed form), "tiled" (blocks of scores), "triton" (the closed form in one
            launch on a GPU) and "reference" (whole scores).

    Raises:
        ConfigError: the head counts differ, `padding` or `backend` is not known, or "triton" was asked for and cannot
            take these tensors ("auto" then takes the next best and logs why).
    """
    checks.check_option("padding", padding, checks.PADDINGS)
    checks.check_option("backend", backend, ATTENTION_BACKENDS)
    checks.check_denominator(denominator)
    checks.check_attention(student_query, student_key, teacher_query, teacher_key, attention_mask)
    problem = Problem(
        (student_query, student_key),
        (teacher_query, teacher_key),
        attention_mask.bool(),
        student_scaling,
        teacher_scaling,
        padding,
    )
    return compared(attention, problem, backend=backend, denominator=denominator)


def compared(kind: ModuleType, problem: Problem, *, backend: str, denominator: float | None) -> Tensor:
    """Return the loss of a checked problem, of attention scores or of relations by KL; `kind` computes it."""
    form = form_of(kind, backend, problem)
    compute = kind.definition if form == "reference" else partial(kind.fused_loss, form=form)
    with torch.amp.autocast(problem.real.device.type, enabled=False):
        loss: Tensor = compute(problem, denominator=denominator)
    return loss


def form_of(kind: ModuleType, backend: str, *inputs: Problem | Tensor | None) -> str:
    """Return the form that computes a loss of these inputs for a `backend`.

    Raises:
        ConfigError: It is "triton", which cannot take them.
    """
    if backend == "triton" and (refusal := kind.triton_refusal(*inputs)):
        raise ConfigError(
            f"backend='triton' cannot compute this {kind.NAME} loss: {refusal}; use 'auto' or {kind.PLAIN_FORM!r}"
        )
    return str(kind.choose_form(*inputs)) if backend == "auto" else backend


def relation_loss(
    student: Tensor,
    teacher: Tensor,
    attention_mask: Tensor,
    *,
    relation_heads: int,
    form: str = "scores",
    padding: str = "valid",
    backend: str = "auto",
    denominator: float | None = None,
) -> Tensor:
    """Return how far the student's tokens are from standing to each other as the teacher's do (arXiv 2012.15828).

    The vectors X of a model, its queries, keys or values of one layer, are cut into R relation heads X_a of width
    d_r = A·D / R; token i stands to token j by X_a,i · X_a,j / √d_r. The models' attention heads need not agree in
    number or size.

    Args:
        student: (B, A_student, S, D_student) as captured; the gradient goes here.
        teacher: (B, A_teacher, S, D_teacher) as captured.
        attention_mask: (B, S), 1 = real token.
        relation_heads: R, a divisor of both models' A·D; `choose_relation_heads` has a default.
        form: "scores" is the mean squared difference of these products, "kl" MiniLMv2's loss (eq. 3 to 5):
            1/(R·rows) · Σ_a Σ_i KL(softmax_j of the teacher's row i ‖ softmax_j of the student's), padding no column.
        padding: "valid" counts real tokens, own count R·Σlen² (scores) or R·Σlen (kl); "reference" also the rows of
            padded tokens: B·R·S² as in `attention_score_loss`, or B·R·S.
        backend: "auto", "reference" (whole relations), for "kl" "tiled" (some query rows at a time, O(S) memory) and
            "triton" (two launches on a GPU), for "scores" those of `attention_score_loss`.

    Raises:
        ConfigError: `relation_heads` does not divide both widths, `form`, `padding` or `backend` is not known, or
            "triton" was asked for and cannot take these tensors.
    """
    checks.check_option("form", form, RELATION_FORMS)
    checks.check_option("padding", padding, checks.PADDINGS)
    checks.check_option("backend", backend, ATTENTION_BACKENDS if form == "scores" else KL_BACKENDS)
    checks.check_denominator(denominator)
    checks.check_relations(student, teacher, attention_mask, relation_heads)
    problem = relation_problem(student, teacher, attention_mask, relation_heads=relation_heads, padding=padding)
    return compared(attention if form == "scores" else relations, problem, backend=backend, denominator=denominator)


def hidden_state_loss(
    student_hidden: Tensor,
    teacher_hidden: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    attention_mask: Tensor,
    *,
    padding: str = "valid",
    backend: str = "auto",
    denominator: float | None = None,
) -> Tensor:
    """Return the mean squared difference of projected student states and teacher states (arXiv 1909.10351, eq. 8, 9).

    Args:
        student_hidden: (B, S, H_student).
        teacher_hidden: (B, S, H_teacher).
        weight: (H_teacher, H_student), or None where the widths agree and nothing is projected.
        bias: (H_teacher,) or None.
        attention_mask: (B, S), 1 = real token.
        padding: "valid" counts real tokens, own count Σlen·H_teacher; "reference" all positions, B·S·H_teacher.
        backend: "auto", or one of "chunked" (residuals of some tokens at a time), "triton" (residuals of all in one
            launch on a GPU, in half precision) and "reference" (projected states).

    Raises:
        ConfigError: widths and projection do not fit, `padding` or `backend` is not known, or "triton" was asked for
            and cannot take these tensors.
    """
    checks.check_option("padding", padding, checks.PADDINGS)
    checks.check_option("backend", backend, HIDDEN_BACKENDS)
    checks.check_denominator(denominator)
    checks.check_hidden(student_hidden, teacher_hidden, weight, bias, attention_mask)
    tensors = (student_hidden, teacher_hidden, weight, bias)
    chosen = form_of(hidden, backend, *tensors)
    compute = reference.hidden_state_loss if chosen == "reference" else partial(hidden.fused_loss, form=chosen)
    with torch.amp.autocast(student_hidden.device.type, enabled=False):
        return compute(*tensors, attention_mask.bool(), padding=padding, denominator=denominator)
