"""The fused attention loss: the published cut-off, denominators, memory, and what autograd sees."""

from __future__ import annotations

import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.support.numerics import AllocationLog, attention_case, relative_error
from tinybert_ds.losses import attention, gradients_only, workspace
from tinybert_ds.losses.attention_chunks import chunk_shape, column_scales, loaded_chunks, no_score_reaches_cutoff
from tinybert_ds.losses.reference import Problem

FUSED = ["tiled", "gram"]


def assert_same(found, expected, tolerance=1e-12):
    for one, other in zip(found, expected, strict=True):
        assert relative_error(one, other) <= tolerance


def problem_of(case, padding: str) -> Problem:
    student, teacher = (case.student_query, case.student_key), (case.teacher_query, case.teacher_key)
    return Problem(student, teacher, case.attention_mask.bool(), *case.scalings.values(), padding)


@pytest.mark.parametrize("backend", FUSED)
@pytest.mark.parametrize("padding", ["valid", "reference"])
@pytest.mark.parametrize("loud_heads", [(), (1,), (0, 1, 2)])
def test_scores_of_minus_100_and_less_are_cut_as_published_in_reference_padding_only(loud_heads, padding, backend):
    case = attention_case(heads=3, length=150, head_sizes=(8, 12), lengths=(150, 60, 0))
    loud = torch.ones(1, 3, 1, 1, dtype=torch.float64)
    loud[:, list(loud_heads)] = 12.0
    for tensor in case[:4]:
        tensor.mul_(loud)
    case = case.to(torch.float64)
    scores = case.student_query @ case.student_key.transpose(-1, -2) * case.student_scaling
    assert bool((scores <= -100).any()) == bool(loud_heads)
    expected = case.loss_and_gradients(padding=padding, backend="reference")
    assert_same(case.loss_and_gradients(padding=padding, backend=backend), expected)


@pytest.mark.parametrize("side", ["student", "teacher"])
def test_a_cut_score_of_one_side_leaves_the_other_side_counted(side):
    case = attention_case(heads=1, length=20, head_sizes=(4, 4), lengths=(20,))
    getattr(case, f"{side}_query").mul_(100.0)
    case = case.to(torch.float64)
    expected = case.loss_and_gradients(padding="reference", backend="reference")
    assert_same(case.loss_and_gradients(padding="reference", backend="gram"), expected)


@pytest.mark.parametrize("width", [1.0, 3.0, 5.0, 20.0])
def test_the_proof_that_no_score_is_cut_is_right_where_it_is_given(width):
    case = attention_case(heads=2, length=40, head_sizes=(8, 8), lengths=(40, 10))
    for tensor in case[:4]:
        tensor.mul_(width)
    problem = problem_of(case, "reference")
    (chunk,) = loaded_chunks(problem, torch.float64)
    proved = no_score_reaches_cutoff(chunk.operands, 8, column_scales(problem, torch.float64))
    queries, keys = chunk.operands
    lowest = min(
        (queries[..., part] @ keys[..., part].transpose(-1, -2) * 8**-0.5).min() for part in (slice(8), slice(8, 16))
    )
    assert proved == (width <= 3)
    assert not proved or lowest > -100


def test_only_the_heads_that_may_hold_a_cut_score_lose_the_closed_form(monkeypatch):
    monkeypatch.setattr(workspace, "CPU_BYTES_PER_THREAD", 1)  # a chunk for each head
    tiled, calls = attention.tiled_terms, []
    monkeypatch.setattr(attention, "tiled_terms", lambda *args, **options: calls.append(1) or tiled(*args, **options))
    case = attention_case(heads=5, length=20, head_sizes=(4, 4), lengths=(20,)).to(torch.float64)
    case.teacher_query[:, 3].mul_(100.0)
    case.loss(padding="reference", backend="gram")
    assert len(calls) == 1


@pytest.mark.parametrize("backend", FUSED)
@pytest.mark.parametrize("padding", ["valid", "reference"])
@pytest.mark.parametrize("budget", [1, 30_000, 60_000, 200_000])
def test_the_result_does_not_depend_on_how_heads_and_rows_are_cut_into_chunks(budget, padding, backend, monkeypatch):
    case = attention_case(heads=3, length=40, head_sizes=(8, 12), lengths=(40, 7, 0, 23, 40)).to(torch.float64)
    expected = case.loss_and_gradients(padding=padding, backend="reference")
    monkeypatch.setattr(workspace, "CPU_BYTES_PER_THREAD", budget)
    assert_same(case.loss_and_gradients(padding=padding, backend=backend), expected)


def test_a_chunk_takes_heads_of_one_row_first_and_further_rows_only_whole():
    assert chunk_shape(4, 12, 100, 50) == (1, 1)
    assert chunk_shape(4, 12, 100, 599) == (1, 5)
    assert chunk_shape(4, 12, 100, 1200) == (1, 12)
    assert chunk_shape(4, 12, 100, 2500) == (2, 12)
    assert chunk_shape(4, 12, 100, 10**9) == (4, 12)


@pytest.mark.parametrize("backend", [*FUSED, "reference"])
def test_a_mask_with_holes_counts_exactly_its_real_tokens(backend):
    case = attention_case(heads=2, length=9, head_sizes=(4, 6), lengths=(9,)).to(torch.float64)
    kept = torch.tensor([1, 2, 5, 8])
    case = case._replace(attention_mask=torch.zeros(1, 9, dtype=torch.int64).index_fill(1, kept, 1))
    short = case._replace(
        **{name: getattr(case, name)[:, :, kept] for name in case._fields[:4]}, attention_mask=torch.ones(1, 4)
    )
    loss, *gradients = case.loss_and_gradients(backend=backend)
    expected = short.loss(backend="reference")
    expected_gradients = torch.autograd.grad(expected, (case.student_query, case.student_key))
    assert_same([loss, *gradients], [expected, *expected_gradients])


@pytest.mark.parametrize("backend", FUSED)
def test_what_padded_positions_hold_does_not_matter_in_valid_padding(backend):
    case = attention_case(heads=2, length=12, head_sizes=(4, 6), lengths=(5, 12, 0)).to(torch.float64)
    expected = case.loss_and_gradients(backend=backend)
    padded = ~case.attention_mask.bool()[:, None, :, None]
    spoiled = [tensor.detach().masked_fill(padded, math.nan) for tensor in case[:4]]
    case = case._replace(**dict(zip(case._fields, spoiled, strict=False))).to(torch.float64)
    assert_same(case.loss_and_gradients(backend=backend), expected, tolerance=0)


@pytest.mark.parametrize("backend", ["reference", *FUSED])
@pytest.mark.parametrize("padding", ["valid", "reference"])
def test_micro_batches_of_one_denominator_add_up_to_the_batch(padding, backend):
    case = attention_case(heads=2, length=10, head_sizes=(4, 6), lengths=(10, 3, 7)).to(torch.float64)
    count = 2 * (100 + 9 + 49 if padding == "valid" else 3 * 100)
    expected = case.loss_and_gradients(padding=padding, backend="reference")
    parts = [
        case.rows(rows).loss(padding=padding, backend=backend, denominator=count) for rows in (slice(1), slice(1, 3))
    ]
    gradients = torch.autograd.grad(sum(parts), (case.student_query, case.student_key))
    assert_same([sum(parts), *gradients], expected)


@pytest.mark.parametrize("backend", ["reference", *FUSED])
@pytest.mark.parametrize("padding", ["valid", "reference"])
@pytest.mark.parametrize("denominator", [math.inf, 0.0])
def test_a_denominator_of_infinity_or_0_gives_a_loss_and_gradients_of_exactly_0(denominator, padding, backend):
    case = attention_case(heads=2, length=10, head_sizes=(4, 6), lengths=(10, 3)).to(torch.float32)
    loss, *gradients = case.loss_and_gradients(padding=padding, backend=backend, denominator=denominator)
    assert loss.item() == 0
    assert not any(gradient.any() for gradient in gradients)


@pytest.mark.parametrize("backend", ["reference", *FUSED])
def test_a_batch_of_padding_only_has_a_loss_and_gradients_of_exactly_0(backend):
    case = attention_case(heads=2, length=6, head_sizes=(4, 6), lengths=(0, 0)).to(torch.float32)
    for padding in ("valid", "reference"):
        loss, *gradients = case.loss_and_gradients(padding=padding, backend=backend)
        assert loss.item() == 0
        assert not any(gradient.any() for gradient in gradients)


@pytest.mark.parametrize("backend", ["reference", *FUSED, "auto"])
@pytest.mark.parametrize(("rows", "length"), [(0, 6), (2, 0)])
def test_no_rows_or_no_positions_have_a_loss_of_0_and_empty_gradients(rows, length, backend):
    case = attention_case(heads=2, length=6, head_sizes=(4, 6), lengths=(6, 3))
    case = case._replace(**{name: getattr(case, name)[:rows, :, :length] for name in case._fields[:4]})
    case = case._replace(attention_mask=case.attention_mask[:rows, :length]).to(torch.float32)
    for padding in ("valid", "reference"):
        loss, *gradients = case.loss_and_gradients(padding=padding, backend=backend)
        assert loss.item() == 0
        assert [gradient.shape for gradient in gradients] == [(rows, 2, length, 4)] * 2


@pytest.mark.parametrize("backend", ["reference", *FUSED])
def test_where_only_gradients_are_asked_for_they_are_the_same_and_a_loss_without_any_keeps_its_value(backend):
    case = attention_case(heads=2, length=30, head_sizes=(4, 6), lengths=(30, 12)).to(torch.float64)
    loss, *expected = case.loss_and_gradients(backend=backend)
    with gradients_only():
        value, *gradients = case.loss_and_gradients(backend=backend)
        with torch.no_grad():
            assert case.loss(backend=backend).item() == pytest.approx(loss.item())
    assert value.item() == (loss.item() if backend == "reference" else 0)
    assert_same(gradients, expected)


@pytest.mark.parametrize(("backend", "factor"), [("gram", (4 * 96 * 32 + 4 * 64**2) * 96), ("tiled", 2 * 96 * 96**2)])
def test_evaluation_multiplies_nothing_for_gradients(backend, factor):
    case = attention_case(heads=3, length=96, head_sizes=(26, 64), lengths=(96,)).to(torch.float32)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        case.loss(backend=backend)
    assert counter.get_total_flops() == 3 * factor


@pytest.mark.parametrize("backend", FUSED)
def test_no_tensor_of_sequence_length_squared_is_ever_allocated(backend):
    length, heads = 2048, 2
    case = attention_case(heads=heads, length=length, head_sizes=(26, 64), lengths=(length,), rho=1e-5)
    case = case.to(torch.float32)
    with AllocationLog() as log:
        case.loss_and_gradients(backend=backend)  # ρ is small: the value is taken again, too
    assert max(log.sizes) < length**2 / 2
    if backend == "gram":
        case = case._replace(teacher_query=case.teacher_query + 1)
        with AllocationLog() as log:
            case.loss_and_gradients(backend=backend)
        assert max(log.sizes) <= heads * 2 * length * (32 + 64)


def test_the_allocation_log_sees_the_score_matrices_of_the_reference():
    case = attention_case(heads=1, length=64, head_sizes=(4, 4), lengths=(64,)).to(torch.float32)
    with AllocationLog() as log:
        case.loss_and_gradients(backend="reference")
    assert max(log.sizes) == 64**2


@pytest.mark.parametrize("backend", FUSED)
def test_gradients_can_be_taken_twice_and_the_loss_used_twice(backend):
    case = attention_case(heads=2, length=9, head_sizes=(4, 6), lengths=(9,)).to(torch.float64)
    inputs = (case.student_query, case.student_key)
    loss = case.loss(backend=backend)
    first = torch.autograd.grad(loss, inputs, retain_graph=True)
    assert_same(torch.autograd.grad(2 * loss + loss.square(), inputs), [(2 + 2 * loss) * one for one in first])


@pytest.mark.parametrize("backend", FUSED)
def test_gradients_that_a_leaf_keeps_add_up_over_backward_passes(backend):
    case = attention_case(heads=2, length=9, head_sizes=(4, 6), lengths=(9,)).to(torch.float64)
    _, expected, _ = case.loss_and_gradients(backend="reference")
    loss = case.loss(backend=backend)
    for passes in (1, 2, 3):
        loss.backward(retain_graph=True)
        assert_same([case.student_query.grad], [passes * expected])


@pytest.mark.parametrize("backend", FUSED)
def test_the_gradient_of_one_of_several_uses_of_a_query_leaves_the_others_alone(backend):
    case = attention_case(heads=2, length=9, head_sizes=(4, 6), lengths=(9,)).to(torch.float64)
    _, expected, _ = case.loss_and_gradients(backend="reference")
    base = case.student_query
    query = base * 1.0
    loss = case._replace(student_query=query).loss(backend=backend) + (3 * query).sum()
    for _ in range(2):
        (found,) = torch.autograd.grad(loss, base, retain_graph=True)
        assert_same([found], [expected + 3])


@pytest.mark.parametrize("backend", ["reference", *FUSED])
def test_only_the_side_that_wants_a_gradient_gets_one_and_the_teacher_never(backend):
    case = attention_case(heads=2, length=9, head_sizes=(4, 6), lengths=(9,)).to(torch.float64)
    case = case._replace(student_query=case.student_query.detach())
    teacher = [tensor.requires_grad_() for tensor in (case.teacher_query, case.teacher_key)]
    case.loss(backend=backend).backward()
    assert case.student_key.grad is not None
    assert case.student_query.grad is None
    assert [tensor.grad for tensor in teacher] == [None, None]
    with torch.no_grad():
        assert not case.loss(backend=backend).requires_grad


@pytest.mark.parametrize("backend", ["reference", *FUSED])
def test_autocast_outside_changes_nothing_inside(backend):
    case = attention_case(heads=2, length=20, head_sizes=(4, 6), lengths=(20,)).to(torch.float32)
    expected = case.loss_and_gradients(backend=backend)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = case.loss(backend=backend)
    found = [loss, *torch.autograd.grad(loss, (case.student_query, case.student_key))]
    assert_same(found, expected, tolerance=0)


@pytest.mark.parametrize("backend", ["reference", *FUSED])
def test_dtypes_may_differ_between_the_models_and_each_gradient_has_its_inputs(backend):
    case = attention_case(heads=2, length=20, head_sizes=(4, 6), lengths=(20,)).to(torch.bfloat16)
    teacher = {name: getattr(case, name).to(torch.float16) for name in ("teacher_query", "teacher_key")}
    case = case._replace(**teacher)
    loss, *gradients = case.loss_and_gradients(backend=backend)
    assert loss.dtype is torch.float32
    assert [gradient.dtype for gradient in gradients] == [torch.bfloat16, torch.bfloat16]
    assert_same([loss], [case.to(torch.float64).loss(backend="reference")], tolerance=1e-5)


@pytest.mark.parametrize("backend", FUSED)
def test_gradients_are_laid_out_as_their_inputs(backend):
    # The projections in front of the heads then take them without a copy.
    case = attention_case(heads=2, length=9, head_sizes=(4, 6), lengths=(9, 4))
    student = [tensor.detach().requires_grad_() for tensor in case[:2]]
    case = case._replace(student_query=student[0], student_key=student[1])
    for gradient in case.loss_and_gradients(backend=backend)[1:]:
        assert gradient.stride() == case.student_query.stride()
        assert not gradient.is_contiguous()


@pytest.mark.parametrize("backend", FUSED)
@pytest.mark.parametrize(
    ("inputs", "kept"),
    [(torch.bfloat16, torch.bfloat16), (torch.float16, torch.float32), (torch.float32, torch.float32)],
)
def test_gradients_wait_for_the_backward_pass_in_half_precision_where_that_has_the_range(inputs, kept, backend):
    case = attention_case(heads=2, length=9, head_sizes=(4, 6), lengths=(9, 4)).to(inputs)
    student = [tensor.detach().requires_grad_() for tensor in case[:2]]
    loss = case._replace(student_query=student[0], student_key=student[1]).loss(backend=backend)
    assert [tensor.dtype for tensor in loss.grad_fn.saved_tensors if tensor is not None] == [kept] * 2
