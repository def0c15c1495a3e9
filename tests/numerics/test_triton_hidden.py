"""The Triton kernel of the hidden-state loss, interpreted on a CPU: accuracy, padding, layouts, needs and refusals."""

from __future__ import annotations

import math

import pytest
import torch

from tests.support import interpreted_kernel
from tests.support.hidden import ROUNDING, hidden_case
from tests.support.numerics import mask_of, relative_error
from tinybert_ds.errors import ConfigError
from tinybert_ds.losses import hidden_state_loss

pytest.importorskip("triton", reason="needs triton: pip install triton")

SHAPES = {
    "one token": ((1,), 1, 4, 6),
    "odd, padded, an empty row": ((37, 11, 0), 37, 26, 100),
    "several blocks of tokens and columns": ((70, 33), 70, 72, 140),
    "wider student": ((30, 2), 30, 130, 20),
}
"""Lengths of the rows, S, H_student, H_teacher."""
DTYPES = {
    "bfloat16": (torch.bfloat16, torch.bfloat16),
    "float16": (torch.float16, torch.float16),
    "bfloat16 of float16": (torch.bfloat16, torch.float16),
    "float16 of float32": (torch.float16, torch.float32),
}
"""Of student and projection, and of the teacher."""
UPSTREAM = 3 * 2.0**10
"""No power of two, and not so much that the gradient of a single token leaves float16."""


@pytest.fixture(scope="module")
def compute():
    """Return `interpreted_kernel.compute_hidden` in the process that interprets."""
    with interpreted_kernel.start() as worker:
        yield lambda *args, **options: worker.submit(interpreted_kernel.compute_hidden, *args, **options).result()


def case_of(shape, dtypes, projection="weight and bias", rho=1.0):
    """Return student, teacher, weight and bias in dtypes, those that are trained asking for gradients, and the mask."""
    lengths, *sizes = SHAPES[shape]
    student, teacher, weight, bias = hidden_case(projection, rho, (len(lengths), *sizes))
    trained, given = DTYPES[dtypes]
    tensors = [
        student.to(trained).requires_grad_(),
        teacher.to(given),
        weight.to(trained).requires_grad_(),
        None if bias is None else bias.to(trained).requires_grad_(),
    ]
    return tensors, mask_of(lengths, sizes[0])


def expect(tensors, mask, upstream=1.0, **options):
    """Return the loss and gradients as the definition gives them in float64."""
    wide = [None if tensor is None else tensor.detach().double() for tensor in tensors]
    asking = [tensor is not None and tensor.requires_grad for tensor in tensors]
    inputs = [tensor.requires_grad_() for tensor, asks in zip(wide, asking, strict=True) if asks]
    loss = hidden_state_loss(*wide, mask, backend="reference", **options)
    return [loss, *torch.autograd.grad(loss * upstream, inputs)]


@pytest.mark.parametrize("rho", [1.0, 1e-5])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("padding", ["valid", "reference"])
@pytest.mark.parametrize("dtypes", DTYPES)
def test_value_and_gradients_stay_within_the_tolerances(dtypes, padding, shape, rho, compute):
    tensors, mask = case_of(shape, dtypes, rho=rho)
    expected = expect(tensors, mask, UPSTREAM, padding=padding)
    found = compute(tensors, mask, upstream=UPSTREAM, padding=padding)
    trained = DTYPES[dtypes][0]
    assert found[0].dtype is torch.float32
    assert [gradient.dtype for gradient in found[1:]] == [trained] * 3
    assert relative_error(found[0], expected[0]) <= 1e-6 / math.sqrt(rho)
    for gradient, exact in zip(found[1:], expected[1:], strict=True):
        assert relative_error(gradient, exact) <= 1e-6 / math.sqrt(rho) + ROUNDING[trained]


@pytest.mark.parametrize("shape", SHAPES)
def test_what_hopper_takes_at_a_time_gives_the_same_within_the_tolerances(shape, compute):
    tensors, mask = case_of(shape, "bfloat16")
    expected, found = expect(tensors, mask, UPSTREAM), compute(tensors, mask, upstream=UPSTREAM, capability=(9, 0))
    for one, exact in zip(found, expected, strict=True):
        assert relative_error(one, exact) <= 1e-6 + ROUNDING[torch.bfloat16]


@pytest.mark.parametrize("rho", [1.0, 1e-3])
def test_an_upstream_gradient_with_many_bits_is_not_rounded_to_bfloat16(rho, compute):
    tensors, mask = case_of("odd, padded, an empty row", "bfloat16", rho=rho)
    upstream = 1 + 2.0**-8 - 2.0**-12  # which bfloat16 has as 1
    found, expected = compute(tensors, mask, upstream=upstream), expect(tensors, mask, upstream)
    for gradient, exact in zip(found[1:], expected[1:], strict=True):
        scale = (gradient.double() * exact).sum() / exact.square().sum()
        assert abs(scale.item() - 1) <= 2.0**-11


@pytest.mark.parametrize("asked", [(0, 2, 3), (0, 2), (0,), (2,), (3,), ()], ids=str)
def test_what_is_asked_for_does_not_depend_on_what_else_is(asked, compute):
    tensors, mask = case_of("odd, padded, an empty row", "bfloat16")
    whole = compute(tensors, mask)
    some = [
        None if tensor is None else tensor.detach().requires_grad_(place in asked)
        for place, tensor in enumerate(tensors)
    ]
    found = compute(some, mask)
    assert found[0] == whole[0]
    places = {0: 1, 2: 2, 3: 3}
    assert len(found) == 1 + len(asked)
    for gradient, place in zip(found[1:], asked, strict=True):
        assert torch.equal(gradient, whole[places[place]])
    if asked:
        without_value = compute(some, mask, value=False)
        assert without_value[0] == 0
        assert all(torch.equal(one, other) for one, other in zip(without_value[1:], found[1:], strict=True))


def test_a_projection_without_bias_and_states_that_are_not_contiguous_are_taken(compute):
    (student, teacher, weight, _), mask = case_of("odd, padded, an empty row", "bfloat16", "weight")
    expected = expect((student, teacher, weight, None), mask)
    turned = [tensor.detach().transpose(1, 2).contiguous().transpose(1, 2) for tensor in (student, teacher)]
    assert not turned[0].is_contiguous()
    found = compute((turned[0].requires_grad_(), turned[1], weight, None), mask)
    for one, exact in zip(found, expected, strict=True):
        assert relative_error(one, exact) <= ROUNDING[torch.bfloat16]


def test_what_padded_positions_hold_does_not_matter_in_valid_padding(compute):
    tensors, mask = case_of("odd, padded, an empty row", "bfloat16")
    padded = ~mask.bool()[:, :, None]
    spoiled = [tensor.detach().masked_fill(padded, 1e3) for tensor in tensors[:2]]
    found = compute([spoiled[0].requires_grad_(), spoiled[1], *tensors[2:]], mask)
    assert all(torch.equal(one, other) for one, other in zip(found, compute(tensors, mask), strict=True))


@pytest.mark.parametrize("denominator", [math.inf, 0.0])
def test_a_denominator_of_infinity_or_0_gives_a_loss_and_gradients_of_exactly_0(denominator, compute):
    tensors, mask = case_of("odd, padded, an empty row", "float16")
    assert not any(tensor.any() for tensor in compute(tensors, mask, denominator=denominator))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"weight": None, "bias": None}, "there is no projection"),
        ({"weight": torch.zeros(8, 8)}, "the projection is torch.float32, the student's states are torch.bfloat16"),
        ({"student": torch.zeros(1, 2, 8)}, "the student's states are not in half precision"),
        ({"teacher": torch.zeros(1, 2, 8).double()}, "float64"),
    ],
    ids=str,
)
def test_what_the_kernel_cannot_take_is_refused_with_the_reason(change, reason, compute):
    half = {"dtype": torch.bfloat16}
    shapes = {"student": (1, 2, 8), "teacher": (1, 2, 8), "weight": (8, 8), "bias": (8,)}
    tensors = {name: torch.zeros(shape, **half) for name, shape in shapes.items()} | change
    with pytest.raises(ConfigError, match=reason) as refused:
        compute(tuple(tensors.values()), torch.ones(1, 2))
    assert "'auto' or 'chunked'" in str(refused.value)


def test_a_cpu_that_does_not_interpret_is_refused():
    tensors, mask = case_of("one token", "bfloat16")
    with pytest.raises(ConfigError, match="it runs on CUDA, not on cpu"):
        hidden_state_loss(*tensors, mask, backend="triton")
