"""The accuracy contract of the attention loss: every form against float64, over dtypes, paddings, shapes and ρ.

ρ is the loss over the teacher's power: the smaller, the closer the student, the more its loss is a small difference of
large figures. Errors are relative Frobenius norms. κ is the size of the terms that the closed form adds up, over the
loss.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.support.numerics import (
    LOSS_SCALE,
    attention_case,
    gradient_tolerance,
    kappa_of,
    relative_error,
    value_tolerance,
)
from tinybert_ds.losses import attention
from tinybert_ds.losses.attention_chunks import column_scales, columns_of, loaded_chunks
from tinybert_ds.losses.attention_forms import gram_terms, split_product
from tinybert_ds.losses.precomputed import Needs
from tinybert_ds.losses.reference import Problem

SHAPES = {
    "one token": {"heads": 2, "length": 1, "head_sizes": (4, 8), "lengths": (1, 1)},
    "odd, padded, an empty row": {"heads": 3, "length": 37, "head_sizes": (26, 64), "lengths": (37, 11, 0)},
    "wider student": {"heads": 2, "length": 65, "head_sizes": (32, 16), "lengths": (65, 2)},
    "two query blocks": {"heads": 2, "length": 200, "head_sizes": (64, 64), "lengths": (150,)},
}


@pytest.mark.parametrize("rho", [1.0, 1e-3, 1e-5])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("backend", ["reference", "tiled", "gram", "auto"])
@pytest.mark.parametrize("padding", ["valid", "reference"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_value_and_gradients_stay_within_the_tolerances(dtype, padding, backend, shape, rho):
    case = attention_case(**SHAPES[shape], rho=rho).to(dtype)
    exact = case.to(torch.float64)
    expected, *expected_gradients = exact.loss_and_gradients(LOSS_SCALE, padding=padding, backend="reference")
    loss, *gradients = case.loss_and_gradients(LOSS_SCALE, padding=padding, backend=backend)

    assert loss.dtype is (torch.float64 if dtype is torch.float64 else torch.float32)
    assert [gradient.dtype for gradient in gradients] == [dtype, dtype]
    true_rho = expected.item() / exact.teacher_power(padding)
    assert rho / 10 < true_rho < rho * 10
    kappa = kappa_of(exact, padding, expected.item())
    assert relative_error(loss, expected) <= value_tolerance(dtype, kappa)
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        assert relative_error(gradient, expected_gradient) <= gradient_tolerance(dtype, true_rho)


@pytest.mark.parametrize("rho", [1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5])
def test_the_estimate_bounds_the_error_of_a_closed_form_value_that_is_not_taken_again(rho, monkeypatch):
    monkeypatch.setitem(attention.VALUE_TOLERANCE, torch.float32, math.inf)
    for seed in range(3):
        case = attention_case(heads=4, length=48, head_sizes=(16, 24), lengths=(48, 20), rho=rho, seed=seed)
        case = case.to(torch.float32)
        exact = case.to(torch.float64).loss(backend="reference")
        bound = 2.0**-24 * kappa_of(case.to(torch.float64), "valid", exact.item()) + 1e-6
        assert relative_error(case.loss(backend="gram"), exact) <= bound


@pytest.mark.parametrize(("rho", "forms"), [(1.0, ["gram"]), (1e-5, ["gram", "tiled"])])
def test_the_value_is_taken_again_from_tiles_only_where_it_has_cancelled(rho, forms, monkeypatch):
    asked = []
    terms = attention.attention_terms

    def spy(problem, form, coefficient, needs):
        asked.append(form)
        return terms(problem, form, coefficient, needs)

    monkeypatch.setattr(attention, "attention_terms", spy)
    attention_case(heads=2, length=40, head_sizes=(8, 8), lengths=(40,), rho=rho).to(torch.float32).loss(backend="gram")
    assert asked == forms


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_student_that_is_its_teacher_has_a_loss_of_0_and_never_less(dtype):
    for seed in range(5):
        case = attention_case(heads=2, length=33, head_sizes=(8, 8), lengths=(33, 7), seed=seed).to(dtype)
        same = case._replace(teacher_query=case.student_query.detach(), teacher_key=case.student_key.detach())
        for backend in ("gram", "tiled"):
            assert 0.0 <= same.loss(backend=backend).item() < 1e-12


@pytest.mark.parametrize("rho", [1.0, 1e-3, 1e-5])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_operands_lose_nothing_when_the_small_factors_are_split(dtype, rho):
    # On CUDA the closed form multiplies half-precision operands; a CPU takes the same products of the same numbers.
    case = attention_case(heads=3, length=64, head_sizes=(26, 64), lengths=(64, 40), rho=rho).to(dtype)
    exact = case.to(torch.float64)
    expected, *expected_gradients = exact.loss_and_gradients(padding="valid", backend="reference")
    real = case.attention_mask.bool()
    problem = Problem(
        (case.student_query.detach(), case.student_key.detach()),
        (case.teacher_query, case.teacher_key),
        real,
        *case.scalings.values(),
        "valid",
    )
    coefficient = torch.tensor(2.0) / (real.sum(1) ** 2).sum() / 3
    (chunk,) = loaded_chunks(problem, dtype)
    assert chunk.operands.dtype is dtype
    terms = gram_terms(
        chunk.operands,
        columns_of(26, 64).student,
        column_scales(problem, torch.float32),
        coefficient,
        Needs(value=True, gradient=True),
    )
    rho = expected.item() / exact.teacher_power("valid")
    assert terms.gradients.dtype is torch.float32
    for gradient, expected_gradient in zip(terms.gradients, expected_gradients, strict=True):
        assert relative_error(gradient.view(2, 3, 64, 32)[..., :26], expected_gradient) <= 1e-5 / math.sqrt(rho)
    kappa = kappa_of(exact, "valid", expected.item())
    assert relative_error(terms.sums.sum() * coefficient / 2, expected) <= 2.0**-24 * kappa + 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [1e-20, 1.0, 1e12])
def test_split_factors_of_any_size_are_a_hundred_times_better_than_rounded_ones(dtype, size):
    operand = torch.randn(3, 20, 8).to(dtype)
    factors = torch.randn(3, 8, 5) * size
    exact = operand.double() @ factors.double()
    rounded = operand.double() @ factors.div(size).to(dtype).double() * size
    split = torch.empty(3, 20, 5)
    split_product(operand, factors, out=split)
    error = relative_error(split, exact)
    assert error < relative_error(rounded, exact) / 100
    assert error < 2e-5


class ProductLog(TorchDispatchMode):
    """Notes whether all factors of float32 products have no more bits than TF32."""

    def __init__(self):
        super().__init__()
        self.exact = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name.partition("::")[2]
        if name.rstrip("_") in ("bmm", "baddbmm"):
            factors = args[:2] if name == "bmm" else args[1:3]
            self.exact += [not (factor.contiguous().view(torch.int32) & 0x1FFF).any() for factor in factors]
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("rho", [1.0, 1e-5])
def test_half_precisions_in_a_mixture_are_multiplied_in_tf32_without_loss(rho):
    # On CUDA float32 operands of such numbers go through TF32; what has its bits already loses nothing there.
    case = attention_case(heads=2, length=48, head_sizes=(96, 128), lengths=(48, 30), rho=rho)
    case = case._replace(
        **{name: getattr(case, name).to(torch.bfloat16) for name in ("student_query", "student_key")},
        **{name: getattr(case, name).to(torch.float16) for name in ("teacher_query", "teacher_key")},
    )
    expected, *expected_gradients = case.to(torch.float64).loss_and_gradients(padding="valid", backend="reference")
    real = case.attention_mask.bool()
    problem = Problem(case[:2], case[2:4], real, *case.scalings.values(), "valid")
    coefficient = torch.tensor(2.0) / (real.sum(1) ** 2).sum() / 2
    (chunk,) = loaded_chunks(problem, torch.float32)
    needs = Needs(value=True, gradient=True)
    scales = column_scales(problem, torch.float32)
    with ProductLog() as log:
        terms = gram_terms(chunk.operands, 96, scales, coefficient, needs, tf32=True)
    assert len(log.exact) == 2 * (2 + 2 * 2)
    assert all(log.exact)
    for gradient, expected_gradient in zip(terms.gradients, expected_gradients, strict=True):
        assert relative_error(gradient.view(2, 2, 48, 96)[:, :, :48], expected_gradient) <= 1e-5 / math.sqrt(rho)
    kappa = kappa_of(case.to(torch.float64), "valid", expected.item())
    assert relative_error(terms.sums.sum() * coefficient / 2, expected) <= 2.0**-24 * kappa + 1e-6


def test_the_split_of_factors_that_are_all_0_is_0():
    split = torch.ones(1, 4, 2)
    split_product(torch.randn(1, 4, 3).bfloat16(), torch.zeros(1, 3, 2), out=split)
    assert not split.any()
