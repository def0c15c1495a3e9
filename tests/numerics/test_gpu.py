"""The fused losses on a GPU, where half-precision operands are multiplied as they are. The CPU tests cover the rest."""

from __future__ import annotations

import math

import pytest
import torch

from tests.support.numerics import attention_case, mask_of, relative_error
from tests.support.relations import kl_gradient_tolerance, kl_value_tolerance, relation_case
from tinybert_ds.losses import hidden_state_loss

pytestmark = pytest.mark.gpu

DTYPES = {torch.float32: 0.0, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}


@pytest.mark.parametrize("rho", [1.0, 1e-3])
@pytest.mark.parametrize("padding", ["valid", "reference"])
@pytest.mark.parametrize(
    ("dtype", "backend"),
    [(dtype, backend) for dtype in DTYPES for backend in ("tiled", "gram", "auto")]
    + [(torch.bfloat16, "triton"), (torch.float16, "triton")],
)
def test_attention_loss_and_gradients_are_those_of_float64_on_the_cpu(dtype, backend, padding, rho):
    case = attention_case(heads=12, length=128, head_sizes=(26, 64), lengths=(128, 50, 0), rho=rho).to(dtype)
    exact = case.to(torch.float64).loss_and_gradients(3e4, padding=padding, backend="reference")
    moved = case._replace(**{name: getattr(case, name).detach().cuda() for name in case._fields[:5]}).to(dtype)
    found = moved.loss_and_gradients(3e4, padding=padding, backend=backend)
    tolerance = 1e-5 / math.sqrt(rho) + DTYPES[dtype]
    assert relative_error(found[0].cpu(), exact[0]) <= 2e-4
    assert relative_error([gradient.cpu() for gradient in found[1:]], exact[1:]) <= tolerance


@pytest.mark.parametrize("distance", [2.0, 0.1])
@pytest.mark.parametrize("padding", ["valid", "reference"])
@pytest.mark.parametrize(
    ("dtype", "backend"),
    [(dtype, backend) for dtype in DTYPES for backend in ("tiled", "auto")]
    + [(torch.bfloat16, "triton"), (torch.float16, "triton")],
)
def test_kl_of_relations_and_its_gradient_are_those_of_float64_on_the_cpu(dtype, backend, padding, distance):
    shape = {"relation_heads": 24, "widths": (312, 768), "length": 300, "lengths": (300, 50, 0), "heads": (12, 12)}
    case = relation_case(**shape, distance=distance).to(dtype)
    expected, expected_gradient = case.to(torch.float64).loss_and_gradients(3e4, padding=padding, backend="reference")
    moved = case._replace(**{name: getattr(case, name).detach().cuda() for name in case._fields[:3]}).to(dtype)
    loss, gradient = moved.loss_and_gradients(3e4, padding=padding, backend=backend)
    kl, largest = expected.item(), case.largest_score()
    # A GPU's exp() is off by up to two bits more than a CPU's.
    assert relative_error(loss.cpu(), expected) <= 4 * kl_value_tolerance(torch.float32, kl, largest)
    tolerance = 4 * kl_gradient_tolerance(torch.float32, kl, largest) + DTYPES[dtype]
    assert relative_error(gradient.cpu(), expected_gradient) <= tolerance


@pytest.mark.parametrize(
    ("dtype", "backend"),
    [(dtype, backend) for dtype in DTYPES for backend in ("chunked", "auto")]
    + [(torch.bfloat16, "triton"), (torch.float16, "triton")],
)
def test_hidden_loss_and_gradients_are_those_of_float64_on_the_cpu(dtype, backend):
    generator = torch.Generator().manual_seed(0)
    shapes = ((3, 50, 312), (3, 50, 768), (768, 312), (768,))
    student, teacher, weight, bias = (torch.randn(shape, generator=generator).to(dtype) for shape in shapes)
    results = []
    for device, chosen, form in (("cpu", torch.float64, "reference"), ("cuda", dtype, backend)):
        inputs = [tensor.to(device, chosen).requires_grad_() for tensor in (student, weight, bias)]
        mask = mask_of((50, 20, 0), 50).to(device)
        loss = hidden_state_loss(inputs[0], teacher.to(device, chosen), inputs[1], inputs[2], mask, backend=form)
        results.append([loss, *torch.autograd.grad(loss * 3e4, inputs)])
    for exact, found in zip(*results, strict=True):
        assert relative_error(found.cpu(), exact) <= 2e-5 + 2 * DTYPES[dtype]
