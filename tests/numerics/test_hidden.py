"""The chunked hidden-state loss against the reference in float64."""

from __future__ import annotations

import logging
import math

import pytest
import torch
from torch import Tensor

from tests.support.hidden import PROJECTIONS, ROUNDING
from tests.support.hidden import hidden_case as case_of
from tests.support.numerics import AllocationLog, mask_of, relative_error
from tinybert_ds.losses import backends, hidden, hidden_state_loss, workspace

LENGTHS, LENGTH = (13, 5, 0), 13
SIZES = (len(LENGTHS), LENGTH, 20, 24)


def hidden_case(projection, rho=1.0, sizes=SIZES):
    """Return a case of the sizes of this file."""
    return case_of(projection, rho, sizes)


def loss_and_gradients(
    case, dtype: torch.dtype, upstream: float = 1.0, lengths: tuple[int, ...] = LENGTHS, **options
) -> list[Tensor]:
    """Return the loss and the gradients by states, weight and bias, where they are, with the inputs in `dtype`."""
    student, teacher, weight, bias = (None if tensor is None else tensor.detach().to(dtype) for tensor in case)
    inputs = [tensor.requires_grad_() for tensor in (student, weight, bias) if tensor is not None]
    loss = hidden_state_loss(student, teacher, weight, bias, mask_of(lengths, student.shape[1]), **options)
    return [loss, *torch.autograd.grad(loss * upstream, inputs)]


@pytest.mark.parametrize("rho", [1.0, 1e-3, 1e-5])
@pytest.mark.parametrize("padding", ["valid", "reference"])
@pytest.mark.parametrize("projection", PROJECTIONS)
@pytest.mark.parametrize("dtype", ROUNDING)
def test_value_and_gradients_are_those_of_the_reference(dtype, projection, padding, rho):
    case = [None if tensor is None else tensor.to(dtype).double() for tensor in hidden_case(projection, rho)]
    expected = loss_and_gradients(case, torch.float64, 3 * 2.0**10, padding=padding, backend="reference")
    found = loss_and_gradients(case, dtype, 3 * 2.0**10, padding=padding, backend="chunked")
    assert found[0].dtype is (torch.float64 if dtype is torch.float64 else torch.float32)
    assert all(gradient.dtype is dtype for gradient in found[1:])
    exactness = 1e-13 if dtype is torch.float64 else 1e-6
    assert relative_error(found[0], expected[0]) <= exactness / math.sqrt(rho)
    for gradient, exact in zip(found[1:], expected[1:], strict=True):
        assert relative_error(gradient, exact) <= exactness / math.sqrt(rho) + ROUNDING[dtype]


@pytest.mark.parametrize("rho", [1.0, 1e-3, 1e-5])
@pytest.mark.parametrize("projection", PROJECTIONS)
@pytest.mark.parametrize("fast", [True, False])
def test_products_in_bfloat16_leave_the_value_exact_and_round_gradients_alone(fast, projection, rho, monkeypatch):
    monkeypatch.setattr(hidden, "multiplies_fast", lambda dtype, device: fast)
    lengths, length = (256, 190), 256  # large enough for the kernels that a CPU has for large products
    case = hidden_case(projection, rho, (2, length, 96, 160))
    case = [None if tensor is None else tensor.bfloat16().double() for tensor in case]
    expected = loss_and_gradients(case, torch.float64, lengths=lengths, backend="reference")
    found = loss_and_gradients(case, torch.bfloat16, lengths=lengths, backend="chunked")
    assert relative_error(found[0], expected[0]) <= 1e-6 / math.sqrt(rho)
    for one, exact in zip(found[1:], expected[1:], strict=True):
        assert relative_error(one, exact) <= ROUNDING[torch.bfloat16]


@pytest.mark.parametrize("rho", [1.0, 1e-3])
@pytest.mark.parametrize("fast", [True, False])
def test_float32_projections_of_bfloat16_states_are_not_rounded_to_these(fast, rho, monkeypatch):
    monkeypatch.setattr(hidden, "multiplies_fast", lambda dtype, device: fast)
    student, teacher, weight, bias = hidden_case("weight and bias", rho, (2, 256, 96, 160))
    case = (student.bfloat16(), teacher.half(), weight.float(), bias.float())
    expected = loss_and_gradients(case, torch.float64, lengths=(256, 190), backend="reference")
    student, teacher, weight, bias = case
    for tensor in (student, weight, bias):
        tensor.requires_grad_()
    loss = hidden_state_loss(*case, mask_of((256, 190), 256))
    found = torch.autograd.grad(loss, (student, weight, bias))
    assert [gradient.dtype for gradient in found] == [torch.bfloat16, torch.float32, torch.float32]
    assert relative_error(loss, expected[0]) <= 2e-6 / math.sqrt(rho)  # 16 bits of the weight; 8 fail by far
    for one, exact in zip(found, expected[1:], strict=True):
        assert relative_error(one, exact) <= ROUNDING[torch.bfloat16]


@pytest.mark.parametrize("padding", ["valid", "reference"])
@pytest.mark.parametrize("budget", [1, 24 * 8 * 5, 24 * 8 * 39])
def test_the_result_does_not_depend_on_the_chunks(budget, padding, monkeypatch):
    case = hidden_case("weight and bias")
    expected = loss_and_gradients(case, torch.float64, padding=padding, backend="reference")
    monkeypatch.setattr(workspace, "CPU_BYTES_PER_THREAD", budget)
    for one, exact in zip(loss_and_gradients(case, torch.float64, padding=padding), expected, strict=True):
        assert relative_error(one, exact) <= 1e-13


def test_projected_states_are_never_held_whole(monkeypatch):
    monkeypatch.setattr(workspace, "CPU_BYTES_PER_THREAD", 24 * 4 * 5)
    student, teacher, weight, bias = (tensor.float() for tensor in hidden_case("weight and bias"))
    weight.requires_grad_()
    held = {}
    for backend in ("chunked", "reference"):
        with AllocationLog() as log:
            hidden_state_loss(student, teacher, weight, bias, mask_of(LENGTHS, LENGTH), backend=backend).backward()
        held[backend] = teacher.numel() in log.sizes
    assert held == {"chunked": False, "reference": True}


@pytest.mark.parametrize("backend", ["reference", "chunked"])
@pytest.mark.parametrize("padding", ["valid", "reference"])
def test_a_denominator_of_infinity_gives_a_loss_and_gradients_of_exactly_0(padding, backend):
    found = loss_and_gradients(
        hidden_case("weight and bias"), torch.float32, padding=padding, backend=backend, denominator=math.inf
    )
    assert not any(tensor.any() for tensor in found)


@pytest.mark.parametrize("backend", ["reference", "chunked"])
def test_a_batch_of_padding_only_has_a_loss_and_gradients_of_exactly_0_in_valid_padding(backend):
    student, teacher, weight, bias = hidden_case("weight and bias")
    for tensor in (student, weight, bias):
        tensor.requires_grad_()
    nothing = torch.zeros(len(LENGTHS), LENGTH)
    loss = hidden_state_loss(student, teacher, weight, bias, nothing, backend=backend)
    assert loss.item() == 0
    assert not any(gradient.any() for gradient in torch.autograd.grad(loss, (student, weight, bias)))


@pytest.mark.parametrize("padding", ["valid", "reference"])
def test_micro_batches_of_one_denominator_add_up_to_the_batch(padding):
    student, teacher, weight, bias = hidden_case("weight and bias")
    weight.requires_grad_()
    mask = mask_of(LENGTHS, LENGTH)
    count = 24 * (sum(LENGTHS) if padding == "valid" else mask.numel())
    whole = hidden_state_loss(student, teacher, weight, bias, mask, padding=padding, backend="reference")
    parts = sum(
        hidden_state_loss(student[rows], teacher[rows], weight, bias, mask[rows], padding=padding, denominator=count)
        for rows in (slice(1), slice(1, 3))
    )
    assert relative_error(parts, whole) <= 1e-13
    assert relative_error(torch.autograd.grad(parts, weight), torch.autograd.grad(whole, weight)) <= 1e-13


def test_one_projection_used_for_several_states_gathers_all_their_gradients():
    student, teacher, weight, bias = hidden_case("weight and bias")
    mask = mask_of(LENGTHS, LENGTH)
    gradients = []
    for backend in ("reference", "chunked"):
        shared = weight.clone().requires_grad_()
        pairs = ((student, teacher), (student.flip(0), teacher))
        sum(hidden_state_loss(*pair, shared, bias, mask, backend=backend) for pair in pairs).backward()
        gradients.append(shared.grad)
    assert relative_error(gradients[1], gradients[0]) <= 1e-13


def test_states_that_are_not_contiguous_and_autocast_outside_change_nothing():
    case = hidden_case("weight and bias")
    expected = loss_and_gradients(case, torch.float32)
    student, teacher = (tensor.transpose(0, 1).contiguous().transpose(0, 1) for tensor in case[:2])
    assert not student.is_contiguous()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = loss_and_gradients((student, teacher, *case[2:]), torch.float32)
    for one, exact in zip(found, expected, strict=True):
        assert relative_error(one, exact) == 0


@pytest.mark.parametrize(("dtype", "form"), [(torch.float16, "triton"), (torch.float32, "chunked")])
def test_auto_takes_the_triton_kernel_off_the_cpu_or_says_why_not(dtype, form, monkeypatch, caplog):
    triton_hidden = pytest.importorskip("tinybert_ds.losses.triton_hidden", reason="needs triton")
    monkeypatch.setattr(triton_hidden, "device_refusal", lambda device: None)
    backends.announce.cache_clear()
    case = [tensor.to("meta", dtype) for tensor in hidden_case("weight and bias")]
    with caplog.at_level(logging.INFO, logger="tinybert_ds"):
        assert {hidden.choose_form(*case) for _ in range(2)} == {form}
    (message,) = caplog.messages
    assert ("in one launch" if form == "triton" else "states are not in half precision") in message


def test_frozen_projections_and_teachers_get_no_gradient():
    student, teacher, weight, bias = hidden_case("weight and bias")
    student.requires_grad_()
    teacher.requires_grad_()
    hidden_state_loss(student, teacher, weight, bias, mask_of(LENGTHS, LENGTH)).backward()
    assert student.grad is not None
    assert teacher.grad is None
    assert weight.grad is None
    with torch.no_grad():
        assert not hidden_state_loss(student, teacher, weight, bias, mask_of(LENGTHS, LENGTH)).requires_grad
