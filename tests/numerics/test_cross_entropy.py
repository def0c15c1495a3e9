"""The soft cross-entropy: its range, its denominator, its independence of layout and autocast."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.support.numerics import relative_error
from tinybert_ds.losses import soft_cross_entropy


def logits(rows: int = 23, classes: int = 301, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Return student logits that want a gradient and teacher logits, (rows, classes)."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = 3 * torch.randn(2, rows, classes, generator=generator, dtype=torch.float64)
    return student.to(dtype).requires_grad_(), teacher.to(dtype)


def loss_and_gradient(student: Tensor, teacher: Tensor, **options) -> tuple[Tensor, Tensor]:
    loss = soft_cross_entropy(student, teacher, **options)
    return loss, torch.autograd.grad(loss, student)[0]


def test_logits_of_any_size_neither_overflow_nor_underflow():
    student = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    teacher = torch.tensor([[-1e4, 0.0, 1e4]])
    loss, gradient = loss_and_gradient(student, teacher)
    assert loss.item() == pytest.approx(1e4 / 3)
    assert gradient.tolist() == [pytest.approx([1 / 3, 0.0, -1 / 3])]


def test_a_denominator_of_infinity_gives_a_loss_and_gradient_of_exactly_0():
    loss, gradient = loss_and_gradient(*logits(), denominator=math.inf)
    assert loss.item() == 0
    assert not gradient.any()


def test_uneven_micro_batches_of_one_denominator_add_up_to_the_batch():
    student, teacher = logits()
    exact = loss_and_gradient(student, teacher)
    total = sum(
        soft_cross_entropy(student[rows], teacher[rows], denominator=student.numel())
        for rows in (slice(4), slice(4, 23))
    )
    assert relative_error(total, exact[0]) <= 1e-13
    assert relative_error(torch.autograd.grad(total, student)[0], exact[1]) <= 1e-12


def test_logits_that_are_not_contiguous_and_autocast_outside_change_nothing():
    student, teacher = logits(dtype=torch.float32)
    expected = loss_and_gradient(student, teacher)
    turned = student.detach().t().contiguous().t().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = loss_and_gradient(turned, teacher)
    assert relative_error(found[0], expected[0]) <= 1e-6
    assert relative_error(found[1], expected[1]) <= 1e-6
