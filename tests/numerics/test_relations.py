"""The relation loss: its definition, its accuracy, padding, denominators, memory, and what autograd sees."""

from __future__ import annotations

import logging
import math

import pytest
import torch

from tests.support.numerics import LOSS_SCALE, AllocationLog, relative_error
from tests.support.relations import (
    kl_by_loops,
    kl_gradient_tolerance,
    kl_value_tolerance,
    relation_case,
)
from tinybert_ds.errors import ConfigError
from tinybert_ds.losses import (
    attention_score_loss,
    backends,
    gradients_only,
    relation_loss,
    relation_tiles,
    relations,
    workspace,
)
from tinybert_ds.losses.relation_heads import relation_problem

SHAPES = {
    "one token": {"relation_heads": 2, "widths": (8, 16), "length": 1, "lengths": (1, 1)},
    "odd, padded, an empty row": {"relation_heads": 3, "widths": (39, 96), "length": 37, "lengths": (37, 11, 0)},
    "wider student": {"relation_heads": 2, "widths": (64, 32), "length": 65, "lengths": (65, 2), "heads": (4, 1)},
    "three query blocks": {"relation_heads": 4, "widths": (32, 64), "length": 150, "lengths": (150,), "heads": (2, 8)},
}
BACKENDS = ["reference", "tiled"]
TABLE = [
    ("scores", backend, padding) for backend in ("reference", "tiled", "gram") for padding in ("valid", "reference")
] + [("kl", backend, padding) for backend in BACKENDS for padding in ("valid", "reference")]


def small_case(**changes):
    """Return a case of a full, a padded and an empty row with heads of their own."""
    shape = {"relation_heads": 4, "widths": (24, 32), "length": 12, "lengths": (12, 5, 0), "heads": (3, 8)}
    return relation_case(**{**shape, **changes})


def assert_same(found, expected, tolerance=1e-12):
    for one, other in zip(found, expected, strict=True):
        assert relative_error(one, other) <= tolerance


# Two tokens, one relation head of width 1. Student X = (0, √ln 3): scores [[0, 0], [0, ln 3]], relations
# [[1/2, 1/2], [1/4, 3/4]]. Teacher X = (0, 0): every relation 1/2.


@pytest.mark.parametrize("backend", ["reference", "tiled", "auto"])
def test_the_kl_form_is_the_mean_over_rows_of_the_divergence_from_the_teacher(backend):
    root = math.sqrt(math.log(3))
    student = torch.tensor([0.0, root], dtype=torch.float64).view(1, 1, 2, 1).requires_grad_()
    teacher = torch.zeros(1, 1, 2, 1)
    loss = relation_loss(student, teacher, torch.ones(1, 2), relation_heads=1, form="kl", backend=backend)
    assert loss.item() == pytest.approx(0.5 * math.log(4 / 3) / 2)
    (gradient,) = torch.autograd.grad(loss, student)
    # Of row 2 and its two scores, X_2·X_1 and X_2·X_2, times Q − P = −1/4 and 1/4, over 2 rows.
    assert gradient.flatten().tolist() == pytest.approx([-root / 4 / 2, 2 * root / 4 / 2])


@pytest.mark.parametrize("backend", ["reference", "tiled", "gram", "auto"])
def test_the_score_form_is_the_mean_squared_difference_and_a_vector_counts_as_query_and_as_key(backend):
    student = torch.tensor([[1.0, 0.0, 1.0, 0.0], [2.0, 0.0, 0.0, 0.0]]).double().view(1, 1, 2, 4).requires_grad_()
    teacher = torch.zeros(1, 2, 2, 1)
    loss = relation_loss(student, teacher, torch.ones(1, 2), relation_heads=1, form="scores", backend=backend)
    # Products [[2, 2], [2, 4]] over √4: squares 1 + 1 + 1 + 4, over 4 pairs.
    assert loss.item() == pytest.approx(7 / 4)
    (gradient,) = torch.autograd.grad(loss, student)
    # By a score: 2·score/4; by X_1: 2·(1·X_1 + 1·X_2)·(2/4)/√4.
    assert gradient[0, 0, 0].tolist() == pytest.approx([1.5, 0.0, 0.5, 0.0])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("padding", ["valid", "reference"])
def test_the_kl_form_is_the_sum_written_as_loops(padding, backend):
    case = small_case(length=4, lengths=(4, 3, 0))
    assert case.loss(padding=padding, backend=backend).item() == pytest.approx(kl_by_loops(case, padding), rel=1e-12)


@pytest.mark.parametrize("backend", ["reference", "tiled", "gram"])
def test_as_many_relation_heads_as_attention_heads_are_these(backend):
    case = small_case(widths=(12, 28), heads=(4, 4)).to(torch.float64)
    loss, gradient = case.loss_and_gradients(form="scores", backend=backend)
    query, key = (case.student.detach().clone().requires_grad_() for _ in range(2))
    scalings = {"student_scaling": 3**-0.5, "teacher_scaling": 7**-0.5}
    expected = attention_score_loss(
        query, key, case.teacher, case.teacher, case.attention_mask, **scalings, backend="reference"
    )
    by_role = torch.autograd.grad(expected, (query, key))
    assert_same([loss, gradient], [expected, sum(by_role)])


@pytest.mark.parametrize(("form", "backend", "padding"), TABLE)
@pytest.mark.parametrize("heads", [(1, 1), (2, 4), (6, 16), (12, 32)])
def test_how_the_widths_are_cut_into_attention_heads_does_not_matter(heads, form, backend, padding):
    case = small_case(heads=heads).to(torch.float64)
    expected = small_case(heads=(24, 1)).to(torch.float64)
    options = {"form": form, "backend": backend, "padding": padding}
    loss, gradient = case.loss_and_gradients(**options)
    assert gradient.shape == case.student.shape
    merged = [one.transpose(1, 2).flatten(2) for one in (gradient, expected.loss_and_gradients(**options)[1])]
    assert_same([loss, merged[0]], [expected.loss(**options), merged[1]])


@pytest.mark.parametrize("distance", [2.0, 0.3, 0.03])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("padding", ["valid", "reference"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_value_and_gradient_of_the_kl_stay_within_the_tolerances(dtype, padding, backend, shape, distance):
    case = relation_case(**SHAPES[shape], distance=distance).to(dtype)
    exact = case.to(torch.float64)
    expected, expected_gradient = exact.loss_and_gradients(LOSS_SCALE, padding=padding, backend="reference")
    loss, gradient = case.loss_and_gradients(LOSS_SCALE, padding=padding, backend=backend)

    compute_dtype = torch.promote_types(dtype, torch.float32)
    assert loss.dtype is compute_dtype
    assert gradient.dtype is dtype
    if shape == "one token":  # its only relation is that with itself
        assert abs(loss.item()) < 1e-12
        assert gradient.abs().max() / LOSS_SCALE < 1e-7
        return
    kl, largest = expected.item(), exact.largest_score()
    assert relative_error(loss, expected) <= kl_value_tolerance(compute_dtype, kl, largest)
    assert relative_error(gradient, expected_gradient) <= kl_gradient_tolerance(dtype, kl, largest)


@pytest.mark.parametrize("distance", [0.1, 0.01, 0.001])
def test_the_kl_of_a_close_student_is_about_as_good_as_that_of_plain_float32(distance):
    errors = {backend: [] for backend in BACKENDS}
    for seed in range(6):
        shape = {"relation_heads": 4, "widths": (64, 64), "length": 80, "lengths": (80,), "size": 2.0}
        case = relation_case(**shape, distance=distance, seed=seed).to(torch.float32)
        exact = case.to(torch.float64).loss(backend="reference")
        for backend in BACKENDS:
            errors[backend].append(relative_error(case.loss(backend=backend), exact))
    tiled, plain = (sum(errors[backend]) for backend in ("tiled", "reference"))
    assert tiled <= 4 * plain + 6 * 2e-6


@pytest.mark.parametrize("dtypes", [(torch.bfloat16, torch.float16), (torch.float32, torch.bfloat16)])
@pytest.mark.parametrize(("form", "backend", "padding"), TABLE)
def test_models_of_two_dtypes_are_compared_as_exact_numbers(form, backend, padding, dtypes):
    case = small_case(distance=0.3).to(*dtypes)
    options = {"form": form, "padding": padding}
    expected = case.to(torch.float64).loss_and_gradients(LOSS_SCALE, backend="reference", **options)
    with torch.autocast("cpu", torch.bfloat16):
        loss = case.loss(backend=backend, **options)
    (gradient,) = torch.autograd.grad(loss * LOSS_SCALE, case.student)
    assert (loss.dtype, gradient.dtype) == (torch.float32, dtypes[0])
    assert relative_error(loss, expected[0]) <= 1e-5
    assert relative_error(gradient, expected[1]) <= kl_gradient_tolerance(dtypes[0], 0.01, case.largest_score())


@pytest.mark.parametrize("size", [1.0, 4.0, 8.0, 16.0, 30.0])
@pytest.mark.parametrize("padding", ["valid", "reference"])
@pytest.mark.parametrize("side", ["student", "teacher", "both"])
def test_scores_of_any_size_neither_overflow_nor_vanish(side, padding, size):
    case = relation_case(**SHAPES["odd, padded, an empty row"])
    for name in ("student", "teacher"):
        if side in (name, "both"):
            case = case._replace(**{name: getattr(case, name) * size})
    case = case.to(torch.float32)
    exact = case.to(torch.float64)
    expected, expected_gradient = exact.loss_and_gradients(padding=padding, backend="reference")
    loss, gradient = case.loss_and_gradients(padding=padding, backend="tiled")
    kl, largest = expected.item(), exact.largest_score()
    assert relative_error(loss, expected) <= kl_value_tolerance(torch.float32, kl, largest)
    assert relative_error(gradient, expected_gradient) <= kl_gradient_tolerance(torch.float32, kl, largest)


@pytest.mark.parametrize(("size", "bounded"), [(1.0, True), (12.0, False)])
def test_a_row_takes_its_maximum_as_its_shift_only_where_the_token_itself_cannot_be_it(size, bounded):
    case = small_case(size=size).to(torch.float32)
    problem = relation_problem(case.student, case.teacher, case.attention_mask, relation_heads=4, padding="valid")
    with torch.no_grad():
        found = [chunk.bounded for chunk in relation_tiles.relation_chunks(problem, torch.float32)]
    assert found == [bounded]


def test_a_score_of_a_token_with_itself_is_a_shift_that_the_proof_allows_and_no_more():
    # x·y − |x|² is largest at |x| = |y|/2, |y|²/4: the proof must hold there, the width of a head being 1.
    largest = math.sqrt(4 * relation_tiles.LARGEST_GAIN)
    for factor, bounded in ((0.999, True), (1.001, False)):
        states = torch.tensor([largest * factor / 2, largest * factor]).view(1, 1, 2, 1)
        real = torch.ones(1, 2, dtype=torch.bool)
        side = relation_tiles.load_side(states, torch.float32, real, 1.0, "valid")
        assert relation_tiles.is_bounded(side, "valid") is bounded
        tile = torch.empty(1, 2, 2)
        scores = relation_tiles.shifted_scores(side, slice(0, 2), tile, bounded=True)
        assert scores.max().item() == pytest.approx(relation_tiles.LARGEST_GAIN * factor**2)


@pytest.mark.parametrize("padding", ["valid", "reference"])
@pytest.mark.parametrize("budget", [1, 100_000, 300_000, 3_000_000])
def test_the_result_does_not_depend_on_how_heads_and_rows_are_cut_into_chunks(budget, padding, monkeypatch):
    case = small_case(length=70, lengths=(70, 7, 0, 33, 70)).to(torch.float64)
    expected = case.loss_and_gradients(padding=padding, backend="reference")
    monkeypatch.setattr(workspace, "CPU_BYTES_PER_THREAD", budget)
    assert_same(case.loss_and_gradients(padding=padding, backend="tiled"), expected)


@pytest.mark.parametrize(("form", "backend", "padding"), TABLE)
def test_a_mask_with_holes_counts_exactly_its_real_tokens(form, backend, padding):
    case = small_case(length=9, lengths=(9,)).to(torch.float64)
    kept = torch.tensor([1, 2, 5, 8])
    case = case._replace(attention_mask=torch.zeros(1, 9, dtype=torch.int64).index_fill(1, kept, 1))
    short = case._replace(
        student=case.student[:, :, kept], teacher=case.teacher[:, :, kept], attention_mask=torch.ones(1, 4)
    )
    loss, gradient = case.loss_and_gradients(form=form, backend=backend, padding=padding)
    if padding == "valid":
        expected = short.loss(form=form, backend="reference")
        assert_same([loss, gradient], [expected, *torch.autograd.grad(expected, case.student)])
    else:
        assert_same([loss, gradient], case.loss_and_gradients(form=form, backend="reference", padding=padding))


@pytest.mark.parametrize(("form", "backend"), sorted({(form, backend) for form, backend, _ in TABLE}))
def test_what_padded_positions_hold_does_not_matter_in_valid_padding(form, backend):
    case = small_case().to(torch.float64)
    expected = case.loss_and_gradients(form=form, backend=backend)
    padded = ~case.attention_mask.bool()[:, None, :, None]
    spoiled = [states.detach().masked_fill(padded, math.nan) for states in case[:2]]
    case = case._replace(student=spoiled[0], teacher=spoiled[1]).to(torch.float64)
    assert_same(case.loss_and_gradients(form=form, backend=backend), expected, tolerance=1e-15)


@pytest.mark.parametrize(("form", "backend", "padding"), TABLE)
def test_micro_batches_of_one_denominator_add_up_to_the_batch(form, backend, padding):
    case = small_case(lengths=(12, 5, 9)).to(torch.float64)
    counts = {"scores": {"valid": 144 + 25 + 81, "reference": 3 * 144}, "kl": {"valid": 26, "reference": 36}}
    options = {"form": form, "padding": padding}
    expected = case.loss_and_gradients(backend="reference", **options)
    parts = [
        case._replace(**{name: getattr(case, name)[rows] for name in case._fields[:3]}).loss(
            backend=backend, denominator=4 * counts[form][padding], **options
        )
        for rows in (slice(1), slice(1, 3))
    ]
    assert_same([sum(parts), *torch.autograd.grad(sum(parts), case.student)], expected)


@pytest.mark.parametrize(("form", "backend", "padding"), TABLE)
def test_what_counts_nothing_has_a_loss_and_gradients_of_exactly_0(form, backend, padding):
    case = small_case().to(torch.float32)
    options = {"form": form, "backend": backend, "padding": padding}
    padding_only = case._replace(attention_mask=torch.zeros(3, 12))
    for one, denominator in ((case, math.inf), (case, 0.0), (padding_only, None)):
        loss, gradient = one.loss_and_gradients(denominator=denominator, **options)
        assert loss.item() == 0
        assert not gradient.any()


@pytest.mark.parametrize(("form", "backend", "padding"), TABLE)
@pytest.mark.parametrize(("rows", "length"), [(0, 6), (2, 0)])
def test_no_rows_or_no_positions_have_a_loss_of_0_and_empty_gradients(rows, length, form, backend, padding):
    case = small_case()
    case = case._replace(
        student=case.student[:rows, :, :length],
        teacher=case.teacher[:rows, :, :length],
        attention_mask=case.attention_mask[:rows, :length],
    ).to(torch.float32)
    loss, gradient = case.loss_and_gradients(form=form, backend=backend, padding=padding)
    assert loss.item() == 0
    assert gradient.shape == (rows, 3, length, 8)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_student_that_is_its_teacher_has_a_kl_of_0(dtype):
    case = small_case().to(dtype)
    loss, gradient = case._replace(teacher=case.student.detach()).loss_and_gradients(backend="tiled")
    # The exact form would need equal rounding of equal figures, which it has, and log(1).
    assert abs(loss.item()) == 0
    assert not gradient.any()


@pytest.mark.parametrize("padding", ["valid", "reference"])
@pytest.mark.parametrize(("form", "backend"), [("kl", "tiled"), ("scores", "gram")])
def test_where_gradients_suffice_they_are_the_same_and_no_value_is_computed(form, backend, padding):
    case = small_case(length=70, lengths=(70, 3)).to(torch.float64)
    expected_value, expected = case.loss_and_gradients(form=form, backend=backend, padding=padding)
    with gradients_only():
        value, gradient = case.loss_and_gradients(form=form, backend=backend, padding=padding)
        with torch.no_grad():
            evaluated = case.loss(form=form, backend=backend, padding=padding)
    assert_same([gradient, evaluated], [expected, expected_value])
    assert value != expected_value
    if form == "kl":
        assert value.item() == 0


@pytest.mark.parametrize(("form", "backend", "padding"), TABLE)
def test_only_the_student_gets_a_gradient_and_none_without_need(form, backend, padding):
    case = small_case().to(torch.float64)
    case.teacher.requires_grad_()
    options = {"form": form, "backend": backend, "padding": padding}
    loss = case.loss(**options)
    loss.backward(retain_graph=True)
    once = case.student.grad.clone()
    (3 * loss).backward()
    assert_same([case.student.grad], [4 * once])
    assert case.teacher.grad is None
    with torch.no_grad():
        value = case.loss(**options)
    assert not value.requires_grad
    assert_same([value], [loss])


def test_the_gradient_of_one_of_several_uses_of_the_vectors_leaves_the_others_alone():
    case = small_case().to(torch.float64)
    _, expected = case.loss_and_gradients(backend="reference")
    states = case.student * 1.0
    loss = case._replace(student=states).loss(backend="tiled") + (3 * states).sum()
    for _ in range(2):
        (found,) = torch.autograd.grad(loss, case.student, retain_graph=True)
        assert_same([found], [expected + 3])


@pytest.mark.parametrize("padding", ["valid", "reference"])
@pytest.mark.parametrize(("form", "backend"), [("kl", "tiled"), ("scores", "auto")])
def test_memory_grows_as_the_sequence_and_not_as_its_square(form, backend, padding, monkeypatch):
    monkeypatch.setattr(workspace, "CPU_BYTES_PER_THREAD", 1)  # one head at a time: nothing but what is needed
    largest = {}
    for length in (1024, 2048):
        case = small_case(length=length, lengths=(length,)).to(torch.float32)
        with AllocationLog() as log:
            case.loss_and_gradients(form=form, backend=backend, padding=padding)
        largest[length] = max(log.sizes)
    assert largest[2048] == 2 * largest[1024]
    assert largest[2048] <= 4 * relation_tiles.QUERY_BLOCK * 2048


def test_the_allocation_log_sees_the_relations_of_the_reference():
    case = small_case(length=64, lengths=(64,)).to(torch.float32)
    with AllocationLog() as log:
        case.loss_and_gradients(backend="reference")
    assert max(log.sizes) == 4 * 64**2


def test_options_that_cannot_be_are_refused_and_tensors_of_two_batches_are_a_broken_invariant():
    case = small_case()
    with pytest.raises(ConfigError, match="form='values' is not known; choose one of scores, kl"):
        case.loss(form="values")
    with pytest.raises(ConfigError, match="backend='gram' is not known; choose one of auto, reference, tiled, triton"):
        case.loss(backend="gram")
    with pytest.raises(ConfigError, match="padding='none'"):
        case.loss(padding="none")
    with pytest.raises(ConfigError, match=r"backend='triton' cannot compute this .*; use 'auto' or 'tiled'"):
        case.loss(backend="triton")
    with pytest.raises(AssertionError, match="vectors are of a batch of"):
        case._replace(teacher=case.teacher[:1]).loss()
    with pytest.raises(AssertionError, match="attention_mask has shape"):
        case._replace(attention_mask=torch.ones(1, 2)).loss()


@pytest.mark.parametrize(
    ("changes", "dtype", "reason"),
    [
        ({"widths": (65 * 4, 32)}, torch.float16, "relation head of the student is wider than 64"),
        ({"widths": (24, 129 * 4)}, torch.float16, "relation head of the teacher is wider than 128"),
        ({}, torch.float32, "an input is not in half precision"),
        ({}, torch.float16, None),
    ],
)
def test_auto_takes_the_triton_kernels_off_the_cpu_or_says_why_not(changes, dtype, reason, monkeypatch, caplog):
    triton_relations = pytest.importorskip("tinybert_ds.losses.triton_relations", reason="needs triton")
    monkeypatch.setattr(triton_relations, "device_refusal", lambda device: None)
    backends.announce.cache_clear()
    case = small_case(**{"heads": (1, 1), **changes}).to(dtype)
    moved = (tensor.to("meta") for tensor in case[:3])
    problem = relation_problem(*moved, relation_heads=4, padding="valid")
    with caplog.at_level(logging.INFO, logger="tinybert_ds"):
        assert relations.choose_form(problem) == ("tiled" if reason else "triton")
    assert (reason or "two launches (triton)") in caplog.text


def test_auto_without_triton_takes_tiles_and_names_the_install_command(monkeypatch, caplog):
    monkeypatch.setattr(relations, "triton_is_installed", lambda: False)
    backends.announce.cache_clear()
    case = small_case()
    problem = relation_problem(*(one.to("meta") for one in case[:3]), relation_heads=4, padding="valid")
    with caplog.at_level(logging.INFO, logger="tinybert_ds"):
        assert relations.choose_form(problem) == "tiled"
    assert "pip install triton" in caplog.text
