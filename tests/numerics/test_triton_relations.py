"""The Triton kernels of the KL of relations, interpreted on a CPU: accuracy, padding, layouts and needs."""

from __future__ import annotations

import math

import pytest
import torch

from tests.support import interpreted_kernel
from tests.support.numerics import LOSS_SCALE, relative_error
from tests.support.relations import kl_gradient_tolerance, kl_value_tolerance, relation_case

pytest.importorskip("triton", reason="needs triton: pip install triton")

SHAPES = {
    "odd, padded, an empty row": {"relation_heads": 3, "widths": (39, 96), "length": 37, "lengths": (37, 11, 0)},
    "wider student": {"relation_heads": 1, "widths": (64, 16), "length": 65, "lengths": (65, 2), "heads": (4, 1)},
    "both widest": {"relation_heads": 1, "widths": (64, 128), "length": 70, "lengths": (64,)},
}
DTYPES = {
    "bfloat16": (torch.bfloat16, torch.bfloat16),
    "float16 of bfloat16": (torch.float16, torch.bfloat16),
}


@pytest.fixture(scope="module")
def compute():
    """Return `interpreted_kernel.compute` in the process that interprets."""
    with interpreted_kernel.start() as worker:
        yield lambda *args, **options: worker.submit(interpreted_kernel.compute, *args, **options).result()


def expect(case, padding, upstream=1.0):
    """Return the loss and the gradient of a case as the definition gives them in float64."""
    return case.to(torch.float64).loss_and_gradients(upstream, padding=padding, backend="reference")


def small_case():
    """Return a case of a full, a padded and an empty row with heads of their own, in half precision."""
    shape = {"relation_heads": 4, "widths": (24, 32), "length": 30, "lengths": (30, 12, 0), "heads": (3, 8)}
    return relation_case(**shape).to(torch.bfloat16)


@pytest.mark.parametrize("distance", [2.0, 0.03])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("padding", ["valid", "reference"])
@pytest.mark.parametrize("dtypes", DTYPES)
def test_value_and_gradient_stay_within_the_tolerances(dtypes, padding, shape, distance, compute):
    case = relation_case(**SHAPES[shape], distance=distance).to(*DTYPES[dtypes])
    expected, expected_gradient = expect(case, padding, LOSS_SCALE)
    found = compute(case, upstream=LOSS_SCALE, padding=padding)

    assert found.loss.dtype is torch.float32
    (gradient,) = found.gradients
    assert gradient.dtype is DTYPES[dtypes][0]
    kl, largest = expected.item(), case.largest_score()
    assert relative_error(found.loss, expected) <= kl_value_tolerance(torch.float32, kl, largest)
    assert relative_error(gradient, expected_gradient) <= kl_gradient_tolerance(gradient.dtype, kl, largest)


@pytest.mark.parametrize("padding", ["valid", "reference"])
def test_large_scores_neither_overflow_nor_vanish(padding, compute):
    case = relation_case(**SHAPES["odd, padded, an empty row"], size=12.0).to(torch.float16)
    expected, expected_gradient = expect(case, padding)
    found = compute(case, padding=padding)
    kl, largest = expected.item(), case.largest_score()
    assert relative_error(found.loss, expected) <= kl_value_tolerance(torch.float32, kl, largest)
    assert relative_error(found.gradients, [expected_gradient]) <= kl_gradient_tolerance(torch.float16, kl, largest)


@pytest.mark.parametrize("padding", ["valid", "reference"])
def test_value_and_gradient_do_not_depend_on_what_else_is_needed(padding, compute):
    case = small_case()
    both = compute(case, padding=padding)
    without_value = compute(case, padding=padding, value=False)
    assert without_value.loss.item() == 0
    assert relative_error(without_value.gradients, both.gradients) == 0
    assert compute(case, padding=padding, gradients=False).loss == both.loss


@pytest.mark.parametrize("layout", ["heads apart", "cut out of a fused projection"])
def test_the_gradient_is_right_in_every_layout_of_the_vectors(layout, compute):
    case = small_case()
    if layout == "heads apart":
        case = case._replace(student=case.student.detach().contiguous().requires_grad_())
    else:
        merged = case.student.detach().transpose(1, 2)
        fused = torch.stack([merged, merged + 1], dim=2)
        case = case._replace(student=fused[:, :, 0].transpose(1, 2).requires_grad_())
    found = compute(case)
    assert relative_error(found.gradients, [expect(case, "valid")[1]]) <= 2**-8


def test_what_padded_positions_hold_does_not_matter_in_valid_padding(compute):
    case = small_case()
    padded = ~case.attention_mask.bool()[:, None, :, None]
    spoiled = [states.detach().masked_fill(padded, math.nan) for states in case[:2]]
    found = compute(case._replace(student=spoiled[0], teacher=spoiled[1]).to(torch.bfloat16))
    expected = compute(case)
    assert found.loss == expected.loss
    assert relative_error(found.gradients, expected.gradients) == 0


@pytest.mark.parametrize("denominator", [math.inf, 0.0])
def test_a_denominator_of_infinity_or_0_gives_a_loss_and_gradients_of_exactly_0(denominator, compute):
    found = compute(small_case(), denominator=denominator)
    assert found.loss.item() == 0
    assert not found.gradients[0].any()


def test_the_score_form_takes_the_attention_kernel_with_one_tensor_in_both_roles(compute):
    case = small_case()
    found = compute(case, form="scores")
    loss, gradient = case.to(torch.float64).loss_and_gradients(form="scores", backend="reference")
    assert relative_error(found.loss, loss) <= 1e-5
    assert relative_error(found.gradients, [gradient]) <= 2**-8
    assert found.forms == ()
