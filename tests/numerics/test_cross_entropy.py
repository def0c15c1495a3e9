"""The chunked soft cross-entropy against the reference in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.support.numerics import AllocationLog, relative_error
from tinybert_ds import losses
from tinybert_ds.losses import soft_cross_entropy, workspace

ROUNDING = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}


def logits(rows: int = 23, classes: int = 301, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Return student logits that want a gradient and teacher logits, (rows, classes)."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = 3 * torch.randn(2, rows, classes, generator=generator, dtype=torch.float64)
    return student.to(dtype).requires_grad_(), teacher.to(dtype)


def loss_and_gradient(student: Tensor, teacher: Tensor, upstream: float = 1.0, **options) -> tuple[Tensor, Tensor]:
    loss = soft_cross_entropy(student, teacher, **options)
    return loss, torch.autograd.grad(loss * upstream, student)[0]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("dtype", ROUNDING)
def test_value_and_gradient_are_those_of_the_reference(dtype, temperature, monkeypatch):
    monkeypatch.setattr(workspace, "CPU_BYTES_PER_THREAD", 301 * 4 * 2 * 5)  # several chunks, the last one short
    student, teacher = logits(dtype=dtype)
    exact = loss_and_gradient(
        student.detach().double().requires_grad_(), teacher.double(), 3e4, temperature=temperature, backend="reference"
    )
    loss, gradient = loss_and_gradient(student, teacher, 3e4, temperature=temperature, backend="chunked")
    assert loss.dtype is (torch.float64 if dtype is torch.float64 else torch.float32)
    assert gradient.dtype is dtype
    assert relative_error(loss, exact[0]) <= (1e-13 if dtype is torch.float64 else 1e-6)
    assert relative_error(gradient, exact[1]) <= ROUNDING[dtype]


def test_logits_of_any_size_neither_overflow_nor_underflow():
    student = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    teacher = torch.tensor([[-1e4, 0.0, 1e4]])
    loss, gradient = loss_and_gradient(student, teacher, backend="chunked")
    assert loss.item() == pytest.approx(1e4 / 3)
    assert gradient.tolist() == [pytest.approx([1 / 3, 0.0, -1 / 3])]


def test_nothing_of_the_size_of_the_logits_is_made_but_their_gradient(monkeypatch):
    monkeypatch.setattr(workspace, "CPU_BYTES_PER_THREAD", 301 * 4 * 2 * 5)
    student, teacher = logits(dtype=torch.float32)
    with AllocationLog() as log:
        loss = soft_cross_entropy(student, teacher, backend="chunked")
    assert max(log.sizes) <= 301 * 5
    with AllocationLog() as log:
        loss.backward()
    assert [size for size in log.sizes if size > 301 * 5] == [student.numel()]


def test_auto_keeps_the_plain_form_for_classifiers_and_takes_chunks_for_vocabularies(monkeypatch):
    chosen = []
    chunked = losses.cross_entropy.chunked_soft_cross_entropy
    monkeypatch.setattr(
        losses.cross_entropy,
        "chunked_soft_cross_entropy",
        lambda *args, **options: chosen.append("chunked") or chunked(*args, **options),
    )
    soft_cross_entropy(*logits(32, 3))
    assert chosen == []
    soft_cross_entropy(*logits(16, 30522, torch.float32))
    assert chosen == ["chunked"]


@pytest.mark.parametrize("backend", ["reference", "chunked"])
def test_a_denominator_of_infinity_gives_a_loss_and_gradient_of_exactly_0(backend):
    loss, gradient = loss_and_gradient(*logits(), backend=backend, denominator=math.inf)
    assert loss.item() == 0
    assert not gradient.any()


def test_uneven_micro_batches_of_one_denominator_add_up_to_the_batch():
    student, teacher = logits()
    exact = loss_and_gradient(student, teacher, backend="reference")
    total = sum(
        soft_cross_entropy(student[rows], teacher[rows], backend="chunked", denominator=student.numel())
        for rows in (slice(4), slice(4, 23))
    )
    assert relative_error(total, exact[0]) <= 1e-13
    assert relative_error(torch.autograd.grad(total, student)[0], exact[1]) <= 1e-12


def test_gradients_can_be_taken_twice():
    student, teacher = logits()
    loss = soft_cross_entropy(student, teacher, backend="chunked")
    first = torch.autograd.grad(loss, student, retain_graph=True)
    assert relative_error(torch.autograd.grad(loss, student), first) == 0


def test_logits_that_are_not_contiguous_and_autocast_outside_change_nothing():
    student, teacher = logits(dtype=torch.float32)
    expected = loss_and_gradient(student, teacher, backend="chunked")
    turned = student.detach().t().contiguous().t().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = loss_and_gradient(turned, teacher, backend="chunked")
    assert relative_error(found[0], expected[0]) <= 1e-6
    assert relative_error(found[1], expected[1]) <= 1e-6
