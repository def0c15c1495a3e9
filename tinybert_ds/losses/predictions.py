"""The losses of predictions: a row is a few numbers, so that they are computed as they are defined.

B batch rows, C classes. What all losses share, `denominator` too, is said in `tinybert_ds.losses`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from tinybert_ds.losses import checks
from tinybert_ds.losses.reference import compute_dtype, divide


def soft_cross_entropy(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float = 1.0,
    denominator: float | None = None,
    row_weights: Tensor | None = None,
) -> Tensor:
    """Return −softmax(teacher/T)·log_softmax(student/T), a mean over rows and classes (arXiv 1909.10351, eq. 10).

    Args:
        student_logits, teacher_logits: (B, C).
        temperature: T; the loss is not multiplied by its square, as published.
        denominator: the own count is B·C.
        row_weights: (B,) what each row's term is multiplied by; None: 1.

    Raises:
        ConfigError: the class counts differ, or the temperature is not above 0.
    """
    with _compared(student_logits, teacher_logits, denominator, temperature) as (student, teacher):
        target = F.softmax(teacher / temperature, dim=-1)
        terms = -(target * F.log_softmax(student / temperature, dim=-1))
        return divide(_weighed(terms, row_weights).sum(), denominator, terms.numel)


def logit_divergence(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float = 1.0,
    denominator: float | None = None,
    row_weights: Tensor | None = None,
) -> Tensor:
    """Return T²·KL(softmax(teacher/T) ‖ softmax(student/T)), a mean over rows (arXiv 1503.02531, section 2).

    Arguments and errors are those of `soft_cross_entropy`, the own count is B.
    """
    with _compared(student_logits, teacher_logits, denominator, temperature) as (student, teacher):
        target = F.log_softmax(teacher / temperature, dim=-1)
        terms = target.exp() * (target - F.log_softmax(student / temperature, dim=-1)) * temperature**2
        return divide(_weighed(terms, row_weights).sum(), denominator, lambda: len(student))


def logit_error(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    denominator: float | None = None,
    row_weights: Tensor | None = None,
) -> Tensor:
    """Return the mean squared difference of logits; arguments and errors are those of `soft_cross_entropy`."""
    with _compared(student_logits, teacher_logits, denominator) as (student, teacher):
        terms = (student - teacher).square()
        return divide(_weighed(terms, row_weights).sum(), denominator, terms.numel)


def soft_binary_cross_entropy(
    student_logits: Tensor, teacher_logits: Tensor, *, temperature: float = 1.0, denominator: float | None = None
) -> Tensor:
    """Return −p·log σ(student/T) − (1 − p)·log(1 − σ(student/T)), p = σ(teacher/T), a mean over rows and labels.

    Each label has a sigmoid of its own; arguments and errors are those of `soft_cross_entropy`.
    """
    with _compared(student_logits, teacher_logits, denominator, temperature) as (student, teacher):
        target = torch.sigmoid(teacher / temperature)
        total = F.binary_cross_entropy_with_logits(student / temperature, target, reduction="sum")
        return divide(total, denominator, student.numel)


def regression_loss(student_scores: Tensor, target_scores: Tensor, *, denominator: float | None = None) -> Tensor:
    """Return the mean squared difference of scores, for tasks whose label is a number.

    Args:
        student_scores, target_scores: (B,) or (B, 1), not necessarily alike.
        denominator: the own count is B.
    """
    checks.check_denominator(denominator)
    for scores in (student_scores, target_scores):
        assert scores.dim() == 1 or (scores.dim() == 2 and scores.shape[1] == 1), (
            f"scores have shape {tuple(scores.shape)}; expected (B,) or (B, 1): a regression model has one output"
        )
    assert student_scores.shape[0] == target_scores.shape[0], (
        f"{student_scores.shape[0]} scores of the student and {target_scores.shape[0]} targets are of two batches"
    )
    with torch.amp.autocast(student_scores.device.type, enabled=False):
        dtype = compute_dtype(student_scores, target_scores)
        difference = student_scores.to(dtype).reshape(-1) - target_scores.detach().to(dtype).reshape(-1)
        return divide(difference.square().sum(), denominator, difference.numel)


@contextmanager
def _compared(
    student: Tensor, teacher: Tensor, denominator: float | None, temperature: float = 1.0
) -> Iterator[tuple[Tensor, Tensor]]:
    """Check a loss's arguments and give both logits (B, C) in the dtype that it is computed in, autocast off."""
    checks.check_denominator(denominator)
    checks.check_logits(student, teacher, temperature)
    dtype = compute_dtype(student, teacher)
    with torch.amp.autocast(student.device.type, enabled=False):
        yield student.to(dtype), teacher.detach().to(dtype)


def _weighed(terms: Tensor, row_weights: Tensor | None) -> Tensor:
    """Return terms (B, C) times the weights (B,) of their rows."""
    return terms if row_weights is None else terms * row_weights.detach().to(terms.dtype)[:, None]
