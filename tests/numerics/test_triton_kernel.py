"""The Triton attention loss, interpreted on a CPU: the accuracy contract, the published cut-off, layouts and needs."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tests.support import interpreted_kernel
from tests.support.numerics import (
    LOSS_SCALE,
    AttentionCase,
    attention_case,
    gradient_tolerance,
    kappa_of,
    relative_error,
    value_tolerance,
)

pytest.importorskip("triton", reason="needs triton: pip install triton")

SHAPES = {
    "one token": {"heads": 2, "length": 1, "head_sizes": (4, 8), "lengths": (1, 1)},
    "odd, padded, an empty row": {"heads": 2, "length": 37, "head_sizes": (26, 64), "lengths": (37, 11, 0)},
    "wider student": {"heads": 1, "length": 65, "head_sizes": (64, 16), "lengths": (65, 2)},
    "both widest": {"heads": 1, "length": 70, "head_sizes": (64, 64), "lengths": (64,)},
    "widest teacher": {"heads": 1, "length": 40, "head_sizes": (26, 128), "lengths": (40, 9)},
    "few long rows, in parts": {"heads": 1, "length": 530, "head_sizes": (26, 64), "lengths": (530, 290)},
}
IN_PARTS = {
    "few long rows": SHAPES["few long rows, in parts"],
    "many": {"heads": 2, "length": 30, "head_sizes": (4, 6), "lengths": (30, 12)},
}
DTYPES = {
    "bfloat16": (torch.bfloat16, torch.bfloat16),
    "float16": (torch.float16, torch.float16),
}


@pytest.fixture(scope="module")
def compute():
    """Return `interpreted_kernel.compute` in the process that interprets."""
    with interpreted_kernel.start() as worker:
        yield lambda *args, **options: worker.submit(interpreted_kernel.compute, *args, **options).result()


def convert(case, student_dtype, teacher_dtype):
    """Return the case with each model's tensors in a dtype of its own."""
    teacher = {name: getattr(case, name).to(teacher_dtype) for name in ("teacher_query", "teacher_key")}
    return case.to(student_dtype)._replace(**teacher)


def expect(case, padding, upstream=1.0):
    """Return the loss and gradients of a case as the definition gives them in float64."""
    return case.to(torch.float64).loss_and_gradients(upstream, padding=padding, backend="reference")


@pytest.mark.parametrize("rho", [1.0, 1e-5])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("padding", ["valid", "reference"])
@pytest.mark.parametrize("dtypes", DTYPES)
def test_value_and_gradients_stay_within_the_tolerances(dtypes, padding, shape, rho, compute):
    case = convert(attention_case(**SHAPES[shape], rho=rho), *DTYPES[dtypes])
    exact = case.to(torch.float64)
    expected, *expected_gradients = expect(case, padding, LOSS_SCALE)
    found = compute(case, upstream=LOSS_SCALE, padding=padding)

    dtype = case.student_query.dtype
    assert found.loss.dtype is torch.float32
    assert [gradient.dtype for gradient in found.gradients] == [dtype, dtype]
    kappa = kappa_of(exact, padding, expected.item())
    assert relative_error(found.loss, expected) <= value_tolerance(torch.float32, kappa)
    true_rho = expected.item() / exact.teacher_power(padding)
    for gradient, expected_gradient in zip(found.gradients, expected_gradients, strict=True):
        assert relative_error(gradient, expected_gradient) <= gradient_tolerance(dtype, true_rho)
    assert found.forms in ((), ("tiled",))  # the value may be taken again, the gradient is the kernel's


@pytest.mark.parametrize("padding", ["valid", "reference"])
def test_a_student_and_a_teacher_of_two_half_precisions_stay_within_the_tolerances(padding, compute):
    case = convert(attention_case(**SHAPES["odd, padded, an empty row"], rho=1e-3), torch.bfloat16, torch.float16)
    expected, *expected_gradients = expect(case, padding, LOSS_SCALE)
    found = compute(case, upstream=LOSS_SCALE, padding=padding)
    exact = case.to(torch.float64)
    kappa = kappa_of(exact, padding, expected.item())
    assert relative_error(found.loss, expected) <= value_tolerance(torch.float32, kappa)
    tolerance = gradient_tolerance(torch.bfloat16, expected.item() / exact.teacher_power(padding))
    for gradient, expected_gradient in zip(found.gradients, expected_gradients, strict=True):
        assert relative_error(gradient, expected_gradient) <= tolerance


@pytest.mark.parametrize("value", [True, False])
@pytest.mark.parametrize("padding", ["valid", "reference"])
@pytest.mark.parametrize("head_sizes", [(26, 64), (40, 64), (20, 100)], ids=str)
def test_what_hopper_takes_at_a_time_gives_the_same_within_the_tolerances(head_sizes, padding, value, compute):
    case = attention_case(heads=2, length=70, head_sizes=head_sizes, lengths=(70, 33, 0)).to(torch.bfloat16)
    expected, *expected_gradients = expect(case, padding)
    found = compute(case, padding=padding, value=value, capability=(9, 0))
    if value:
        assert relative_error(found.loss, expected) <= 1e-5
    assert relative_error(found.gradients, expected_gradients) <= gradient_tolerance(torch.bfloat16, 1.0)


@pytest.mark.parametrize(("rho", "forms"), [(1.0, ()), (1e-5, ("tiled",))])
def test_the_value_is_taken_again_from_tiles_only_where_it_has_cancelled(rho, forms, compute):
    case = attention_case(heads=2, length=40, head_sizes=(8, 8), lengths=(40,), rho=rho).to(torch.float16)
    assert compute(case).forms == forms


@pytest.mark.parametrize("loud", [(), (1,)])
def test_scores_of_minus_100_and_less_are_cut_as_published_in_reference_padding(loud, compute):
    case = attention_case(heads=3, length=50, head_sizes=(8, 12), lengths=(50, 20, 0))
    for tensor in case[:4]:
        tensor[:, list(loud)] *= 12.0
    case = case.to(torch.bfloat16)
    found = compute(case, padding="reference")
    assert found.forms == (("gram",) if loud else ())
    expected, *expected_gradients = expect(case, "reference")
    assert relative_error(found.loss, expected) <= 1e-5
    assert relative_error(found.gradients, expected_gradients) <= gradient_tolerance(torch.bfloat16, 1.0)


@pytest.mark.parametrize("padding", ["valid", "reference"])
@pytest.mark.parametrize("shape", IN_PARTS)
def test_where_only_gradients_are_asked_for_they_are_the_same(shape, padding, compute):
    case = attention_case(**IN_PARTS[shape]).to(torch.bfloat16)
    with_value = compute(case, padding=padding)
    without = compute(case, padding=padding, value=False)
    assert without.loss.item() == 0
    assert relative_error(without.gradients, with_value.gradients) == 0


@pytest.mark.parametrize("dtypes", DTYPES)
def test_gradients_are_rounded_once_after_what_they_are_multiplied_by(dtypes, compute):
    case = convert(attention_case(**SHAPES["odd, padded, an empty row"], rho=1.0), *DTYPES[dtypes])
    upstream = LOSS_SCALE * (1 + 2.0**-8 - 2.0**-12)  # more bits than bfloat16 has
    _, *exact = expect(case, "valid", upstream)
    found = compute(case, upstream=upstream, value=False)
    for gradient, other, right in zip(found.gradients, compute(case, upstream=upstream).gradients, exact, strict=True):
        assert torch.equal(gradient, other)
        assert relative_error(gradient, right) <= 1.01 * relative_error(right.to(gradient.dtype), right) + 1e-5


@pytest.mark.parametrize("padding", ["valid", "reference"])
@pytest.mark.parametrize("shape", IN_PARTS)
def test_the_value_is_the_same_where_no_gradient_is_asked_for(shape, padding, compute):
    case = attention_case(**IN_PARTS[shape]).to(torch.bfloat16)
    assert compute(case, padding=padding, gradients=False).loss == compute(case, padding=padding).loss


@pytest.mark.parametrize("layout", ["as SDPA hands it out", "contiguous", "cut out of a fused projection"])
def test_gradients_are_right_and_laid_out_as_their_inputs_in_every_layout(layout, compute):
    case = attention_case(heads=2, length=33, head_sizes=(8, 6), lengths=(33, 4))
    if layout == "contiguous":
        case = case._replace(**{name: getattr(case, name).contiguous() for name in case._fields[:4]})
    elif layout != "as SDPA hands it out":
        for model in ("student", "teacher"):
            names = (f"{model}_query", f"{model}_key")
            fused = torch.stack([getattr(case, name).transpose(1, 2) for name in names], dim=2)
            case = case._replace(**{name: fused[:, :, part].transpose(1, 2) for part, name in enumerate(names)})
    query, key, teacher_query, teacher_key = (tensor.detach().bfloat16() for tensor in case[:4])
    case = AttentionCase(query.requires_grad_(), key.requires_grad_(), teacher_query, teacher_key, *case[4:])
    found = compute(case)
    assert relative_error(found.gradients, expect(case, "valid")[1:]) <= gradient_tolerance(torch.bfloat16, 1.0)
    for gradient, tensor in zip(found.gradients, (query, key), strict=True):
        assert gradient.stride() == torch.empty_like(tensor).stride()


def test_what_padded_positions_hold_does_not_matter_in_valid_padding(compute):
    case = attention_case(heads=2, length=12, head_sizes=(4, 6), lengths=(5, 12, 0)).to(torch.bfloat16)
    padded = ~case.attention_mask.bool()[:, None, :, None]
    spoiled = [tensor.detach().masked_fill(padded, math.nan) for tensor in case[:4]]
    spoiled_case = case._replace(**dict(zip(case._fields, spoiled, strict=False))).to(torch.bfloat16)
    found, expected = compute(spoiled_case), compute(case)
    assert found.loss == expected.loss
    assert relative_error(found.gradients, expected.gradients) == 0


@pytest.mark.parametrize("denominator", [math.inf, 0.0])
def test_a_denominator_of_infinity_or_0_gives_a_loss_and_gradients_of_exactly_0(denominator, compute):
    case = attention_case(heads=2, length=10, head_sizes=(4, 6), lengths=(10, 3)).to(torch.bfloat16)
    found = compute(case, denominator=denominator)
    assert found.loss.item() == 0
    assert not any(gradient.any() for gradient in found.gradients)


def test_the_emulated_tensor_cores_keep_ten_bits_of_mantissa():
    exact = torch.arange(-(2**11) + 1, 2**11, dtype=torch.float16)  # 11 significant bits: all that float16 has
    assert np.array_equal(interpreted_kernel.to_tf32(exact.float().numpy()), exact.numpy())
    assert interpreted_kernel.to_tf32(np.float32([1 + 2.0**-10, 1 + 2.0**-11, 1 + 2.0**-12])).tolist() == [
        1 + 2.0**-10,
        1 + 2.0**-10,
        1.0,
    ]


def test_positions_are_parted_only_where_heads_are_few_and_long():
    parts_of = pytest.importorskip("tinybert_ds.losses.triton_attention").parts_of
    assert [parts_of(256 * 12, 128), parts_of(12, 511), parts_of(0, 8192)] == [1, 1, 1]
    assert [parts_of(12, 8192), parts_of(8 * 12, 2048), parts_of(1, 530)] == [22, 2, 2]


@pytest.mark.parametrize(
    ("strides", "unit"),
    [((39936, 26, 312), 2), ((98304, 64, 768), 8), ((24, 12, 4), 4), ((9, 3, 1), 1), ((0, 4, 8), 4)],
)
def test_strides_are_taken_over_the_largest_power_of_two_that_they_share(strides, unit):
    assert pytest.importorskip("tinybert_ds.losses.triton_attention").unit_of(strides) == unit
