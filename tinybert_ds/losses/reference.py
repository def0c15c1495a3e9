"""The distillation losses written as they are defined: eager, whole score matrices, any dtype. The truth for the rest.

B batch rows, S sequence length, A attention heads, D head size, H hidden size. (Those of predictions, which have one
form only, are in `predictions`.)

Everything is computed in the widest dtype among the inputs and float32, and only the student side and the projection
receive gradients. A denominator of None is the call's own count; one of 0 or infinity gives a loss and gradients of 0.
Source: arXiv 1909.10351v5, equations 7 to 9, and the normalisation of the published code of 2019-2020;
relations: arXiv 2012.15828.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

MASKED_SCORE = -10000.0
"""What the published models add to the scores of padded keys."""
CUTOFF_SCORE = -100.0
"""Scores at or below this become 0 under padding="reference", in the published code's way of finding padded keys."""


class Problem(NamedTuple):
    """What the attention loss compares; as in `tinybert_ds.losses.attention_score_loss`."""

    student: tuple[Tensor, Tensor]  # query, key (B, A, S, D_student)
    teacher: tuple[Tensor, Tensor]  # query, key (B, A, S, D_teacher)
    real: Tensor  # (B, S) bool
    student_scaling: float
    teacher_scaling: float
    padding: str

    @property
    def head_sizes(self) -> tuple[int, int]:
        """D_student and D_teacher."""
        return self.student[0].shape[3], self.teacher[0].shape[3]


def attention_score_loss(problem: Problem, *, denominator: float | None) -> Tensor:
    """Squared differences of pre-softmax attention scores (B, A, S, S) over the denominator.

    "valid" counts pairs of real tokens. "reference" is the published rule: −10000 on padded keys, scores ≤ −100 become
    0 on each side, everything is counted, padded queries with their real scores.
    """
    dtype = compute_dtype(*problem.student, *problem.teacher)
    padded = ~problem.real

    def scores(query: Tensor, key: Tensor, scaling: float) -> Tensor:
        query, key = query.to(dtype), key.to(dtype)
        if problem.padding == "valid":
            nothing = padded[:, None, :, None]
            return query.masked_fill(nothing, 0.0) @ key.masked_fill(nothing, 0.0).transpose(-1, -2) * scaling
        masked = query @ key.transpose(-1, -2) * scaling + padded[:, None, None, :].to(dtype) * MASKED_SCORE
        return torch.where(masked <= CUTOFF_SCORE, torch.zeros_like(masked), masked)

    teacher_query, teacher_key = problem.teacher
    teacher = scores(teacher_query.detach(), teacher_key.detach(), problem.teacher_scaling)
    difference = scores(*problem.student, problem.student_scaling) - teacher
    count = partial(token_pair_count, problem.real, problem.student[0].shape[1], problem.padding)
    return divide(difference.square().sum(), denominator, count)


def relation_kl_loss(problem: Problem, *, denominator: float | None) -> Tensor:
    """KL(teacher ‖ student) of softmaxed relations (B, R, S, S), summed over query rows (arXiv 2012.15828, eq. 3 to 5).

    A problem whose query and key are one tensor. Padded keys are no columns of a relation. "valid" counts the rows of
    real tokens, "reference" all of them but those of a text without any real token.
    """
    student, teacher = problem.student[0], problem.teacher[0].detach()
    dtype = compute_dtype(student, teacher)
    padded = ~problem.real[:, None, None, :]
    counted = (
        problem.real if problem.padding == "valid" else problem.real.any(dim=1, keepdim=True).expand_as(problem.real)
    )
    left_out = padded | ~counted[:, None, :, None]

    def log_relation(states: Tensor, scaling: float) -> Tensor:
        states = states.to(dtype)
        if problem.padding == "valid":
            states = states.masked_fill(padded.transpose(2, 3), 0.0)
        scores = states @ states.transpose(-1, -2) * scaling
        return F.log_softmax(scores.masked_fill(padded, torch.finfo(dtype).min), dim=-1)

    target = log_relation(teacher, problem.teacher_scaling)
    terms = target.exp() * (target - log_relation(student, problem.student_scaling))
    count = partial(relation_row_count, problem.real, student.shape[1], problem.padding)
    return divide(terms.masked_fill(left_out, 0.0).sum(), denominator, count)


def hidden_state_loss(
    student_hidden: Tensor,
    teacher_hidden: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    attention_mask: Tensor,
    *,
    padding: str,
    denominator: float | None,
) -> Tensor:
    """Squared differences of projected student and teacher states; arguments as in `tinybert_ds.losses`."""
    projection = [parameter for parameter in (weight, bias) if parameter is not None]
    dtype = compute_dtype(student_hidden, teacher_hidden, *projection)
    real = attention_mask.bool()
    projected = student_hidden.to(dtype)
    if weight is not None:
        projected = F.linear(projected, weight.to(dtype), None if bias is None else bias.to(dtype))
    difference = projected - teacher_hidden.detach().to(dtype)
    if padding == "valid":
        difference = difference.masked_fill(~real[:, :, None], 0.0)
    count = partial(hidden_count, real, teacher_hidden.shape[2], padding)
    return divide(difference.square().sum(), denominator, count)


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """Return the widest dtype among the tensors and float32; float32 for integer targets."""
    # Not by torch.promote_types, which is an operator: a step would call it forty times.
    return torch.float64 if any(tensor.dtype is torch.float64 for tensor in tensors) else torch.float32


def token_pair_count(real: Tensor, heads: int, padding: str) -> float | Tensor:
    """Return A·Σlen² (valid; a tensor, so that no GPU is waited for) or B·A·S² (reference) for a bool mask (B, S)."""
    if padding == "valid":
        return real.sum(dim=1).double().square().sum() * heads
    return float(real.numel() * real.shape[1] * heads)


def relation_row_count(real: Tensor, heads: int, padding: str) -> float | Tensor:
    """Return R·Σlen (valid; a tensor) or B·R·S (reference) for a bool mask (B, S)."""
    if padding == "valid":
        return real.sum().double() * heads
    return float(real.numel() * heads)


def hidden_count(real: Tensor, teacher_width: int, padding: str) -> float | Tensor:
    """Return Σlen·H_teacher (valid) or B·S·H_teacher (reference) for a boolean mask (B, S)."""
    if padding == "valid":
        return real.sum().double() * teacher_width
    return float(real.numel() * teacher_width)


Count = Callable[[], float | Tensor]
"""A call's own count, asked for only where no denominator is given: a GPU would be launched on for nothing."""


def divide(total: Tensor, denominator: float | None, own_count: Count) -> Tensor:
    """Return the sum over its denominator, in the sum's dtype; 0 where that is 0 or infinite."""
    count = own_count() if denominator is None else denominator
    if isinstance(count, Tensor):
        return (total / torch.where(count == 0, math.inf, count)).to(total.dtype)
    return total / (math.inf if count == 0 else count)


def share(number: float, denominator: float | None, own_count: Count, *, like: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a number over its denominator as a scalar tensor on the device of `like`; see `divide`."""
    if denominator is None or isinstance(denominator, Tensor):
        return divide(like.new_full((), number, dtype=torch.float64), denominator, own_count).to(dtype)
    return like.new_full((), number / denominator if denominator else 0.0, dtype=dtype)
