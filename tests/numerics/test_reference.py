"""The definition of the losses against figures worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.support import numerics
from tinybert_ds.errors import ConfigError
from tinybert_ds.losses import attention_score_loss, hidden_state_loss, regression_loss, soft_cross_entropy

# One row of two tokens, one head. Student scores (head size 1, scaling 0.5) [[1.5, 2], [3, 4]], teacher scores
# (head size 2, scaling 1) [[2, 1], [1, 3]]: differences [[-0.5, 1], [2, 1]].
QUERY, KEY = [[1.0], [2.0]], [[3.0], [4.0]]
TEACHER_QUERY, TEACHER_KEY = [[1.0, 0.0], [0.0, 1.0]], [[2.0, 1.0], [1.0, 3.0]]


def two_tokens(mask: list[int], dtype: torch.dtype = torch.float64, **options) -> tuple[Tensor, Tensor]:
    """Return the loss of the example above and the gradient of its student queries, (2,)."""
    query, key, teacher_query, teacher_key = (
        torch.tensor(value, dtype=dtype)[None, None] for value in (QUERY, KEY, TEACHER_QUERY, TEACHER_KEY)
    )
    query.requires_grad_()
    arguments = {"student_scaling": 0.5, "teacher_scaling": 1.0, "backend": "reference", **options}
    loss = attention_score_loss(query, key, teacher_query, teacher_key, torch.tensor([mask]), **arguments)
    return loss, torch.autograd.grad(loss, query)[0].flatten()


@pytest.mark.parametrize("padding", ["valid", "reference"])
def test_attention_loss_of_full_rows_is_the_mean_squared_score_difference(padding):
    loss, gradient = two_tokens([1, 1], padding=padding)
    assert loss.item() == (0.25 + 1 + 4 + 1) / 4
    # 2·0.5·(difference · keys) / 4
    assert gradient.tolist() == [(-0.5 * 3 + 1 * 4) / 4, (2 * 3 + 1 * 4) / 4]


def test_valid_padding_counts_pairs_of_real_tokens_only():
    loss, gradient = two_tokens([1, 0], padding="valid")
    assert loss.item() == 0.25
    assert gradient.tolist() == [-1.5, 0.0]


def test_reference_padding_counts_padded_queries_and_divides_by_all_pairs():
    loss, gradient = two_tokens([1, 0], padding="reference")
    assert loss.item() == (0.25 + 4) / 4
    assert gradient.tolist() == [-0.5 * 3 / 4, 2 * 3 / 4]


@pytest.mark.parametrize("backend", ["reference", "tiled", "gram"])
@pytest.mark.parametrize(("score", "counted"), [(-99.0, -99.0), (-100.0, 0.0), (-101.0, 0.0), (-99.5, -99.5)])
def test_reference_padding_turns_scores_of_minus_100_and_less_into_0_on_either_side(score, counted, backend):
    one = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    mask = torch.ones(1, 1, dtype=torch.int64)
    options = {"student_scaling": 1.0, "teacher_scaling": 1.0, "padding": "reference", "backend": backend}
    student = (one * score).requires_grad_()
    loss = attention_score_loss(student, one, one * 2, one, mask, **options)
    assert loss.item() == pytest.approx((counted - 2) ** 2)
    assert torch.autograd.grad(loss, student)[0].item() == pytest.approx(2 * (counted - 2) if counted else 0.0)
    assert attention_score_loss(one * 2, one, one * score, one, mask, **options).item() == pytest.approx(
        (counted - 2) ** 2
    )


@pytest.mark.parametrize("backend", ["reference", "tiled", "gram"])
def test_valid_padding_keeps_scores_below_minus_100(backend):
    one = torch.ones(1, 1, 1, 1)
    options = {"student_scaling": 1.0, "teacher_scaling": 1.0, "backend": backend}
    loss = attention_score_loss(one * -200, one, one, one, torch.ones(1, 1), **options)
    assert loss.item() == pytest.approx(201**2)


@pytest.mark.parametrize("padding", ["valid", "reference"])
def test_attention_loss_is_the_sum_written_as_loops(padding):
    case = numerics.attention_case(heads=3, length=4, head_sizes=(2, 3), lengths=(3, 0))
    loss = case.loss(padding=padding, backend="reference")
    assert loss.item() == pytest.approx(numerics.attention_loss_by_loops(case, padding), rel=1e-12)


@pytest.mark.parametrize("backend", ["reference", "chunked"])
@pytest.mark.parametrize("padding", ["valid", "reference"])
def test_hidden_loss_projects_with_weight_and_bias_and_counts_as_its_padding_says(padding, backend):
    student = torch.tensor([[[1.0, 2.0], [5.0, 6.0]]], requires_grad=True)
    teacher = torch.tensor([[[1.0, 0.0, 4.0], [0.0, 0.0, 0.0]]])
    weight = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], requires_grad=True)
    bias = torch.tensor([0.5, 0.0, 0.0], requires_grad=True)
    mask = torch.tensor([[1, 0]])
    loss = hidden_state_loss(student, teacher, weight, bias, mask, padding=padding, backend=backend)
    # Residuals: real token (0.5, 2, -1), padded token (5.5, 6, 11).
    real, padded = 0.25 + 4 + 1, 5.5**2 + 36 + 121
    assert loss.item() == pytest.approx(real / 3 if padding == "valid" else (real + padded) / 6)
    loss.backward()
    factor, extra = (2 / 3, 0) if padding == "valid" else (2 / 6, 1)
    expected_bias = [factor * (0.5 + extra * 5.5), factor * (2 + extra * 6), factor * (-1 + extra * 11)]
    assert bias.grad.tolist() == pytest.approx(expected_bias)
    assert student.grad[0, 0].tolist() == pytest.approx([factor * (0.5 - 1), factor * (2 - 1)])
    assert weight.grad[1].tolist() == pytest.approx(
        [factor * (2 * 1 + extra * 6 * 5), factor * (2 * 2 + extra * 6 * 6)]
    )


@pytest.mark.parametrize("backend", ["reference", "chunked"])
def test_hidden_loss_without_projection_compares_the_states_themselves(backend):
    states = torch.tensor([[[1.0, 2.0]]])
    loss = hidden_state_loss(states, states + 3, None, None, torch.ones(1, 1), backend=backend)
    assert loss.item() == pytest.approx(9.0)


def test_soft_cross_entropy_is_a_mean_over_rows_and_classes():
    student = torch.log(torch.tensor([[0.5, 0.5], [0.25, 0.75]]))
    teacher = torch.log(torch.tensor([[0.9, 0.1], [0.5, 0.5]]))
    expected = -(math.log(0.5) + 0.5 * (math.log(0.25) + math.log(0.75))) / 4
    assert soft_cross_entropy(student, teacher).item() == pytest.approx(expected, rel=1e-6)


def test_temperature_divides_both_logits_and_does_not_scale_the_loss():
    student = 2 * torch.log(torch.tensor([[0.5, 0.5], [0.25, 0.75]]))
    teacher = 2 * torch.log(torch.tensor([[0.9, 0.1], [0.5, 0.5]]))
    expected = -(math.log(0.5) + 0.5 * (math.log(0.25) + math.log(0.75))) / 4
    loss = soft_cross_entropy(student, teacher, temperature=2.0)
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_regression_loss_pairs_scores_of_both_shapes():
    student = torch.tensor([[1.0], [4.0]])
    assert regression_loss(student, torch.tensor([0.0, 2.0])).item() == (1 + 4) / 2
    assert regression_loss(student, torch.tensor([[0], [2]])).item() == (1 + 4) / 2


def test_two_uneven_micro_batches_with_shared_denominators_sum_to_the_loss_of_the_whole_batch():
    student, teacher = torch.randn(3, 4), torch.randn(3, 4)
    whole = soft_cross_entropy(student, teacher)
    parts = [soft_cross_entropy(student[rows], teacher[rows], denominator=12) for rows in (slice(0, 1), slice(1, 3))]
    assert sum(parts).item() == pytest.approx(whole.item(), rel=1e-6)
    whole = regression_loss(student[:, 0], teacher[:, 0])
    parts = [regression_loss(student[rows, 0], teacher[rows, 0], denominator=3) for rows in (slice(0, 1), slice(1, 3))]
    assert sum(parts).item() == pytest.approx(whole.item(), rel=1e-6)


@pytest.mark.parametrize("denominator", [math.inf, 0.0])
def test_losses_and_gradients_are_exactly_0_when_nothing_is_counted(denominator):
    scores = torch.randn(3, 4, requires_grad=True)
    for loss in (
        soft_cross_entropy(scores, torch.randn(3, 4), denominator=denominator),
        regression_loss(scores[:, 0], torch.randn(3), denominator=denominator),
    ):
        assert loss.item() == 0
        assert not torch.autograd.grad(loss, scores)[0].any()


def test_a_head_count_mismatch_names_both_figures_and_the_setting_to_change():
    student, teacher = torch.randn(1, 4, 3, 2), torch.randn(1, 12, 3, 2)
    with pytest.raises(ConfigError, match=r"4 attention heads and the teacher 12.*num_attention_heads"):
        attention_score_loss(
            student, student, teacher, teacher, torch.ones(1, 3), student_scaling=1.0, teacher_scaling=1.0
        )


def test_widths_that_no_projection_joins_are_refused_with_the_flag_that_helps():
    with pytest.raises(ConfigError, match=r"2 wide and the teacher 3.*--projection"):
        hidden_state_loss(torch.randn(1, 1, 2), torch.randn(1, 1, 3), None, None, torch.ones(1, 1))
    with pytest.raises(ConfigError, match=r"must be \(3, 2\)"):
        hidden_state_loss(torch.randn(1, 1, 2), torch.randn(1, 1, 3), torch.randn(2, 3), None, torch.ones(1, 1))


def test_class_counts_temperatures_and_options_that_cannot_be_are_refused():
    with pytest.raises(ConfigError, match="2 classes and the teacher 3"):
        soft_cross_entropy(torch.randn(1, 2), torch.randn(1, 3))
    for temperature in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ConfigError, match="temperature"):
            soft_cross_entropy(torch.randn(1, 2), torch.randn(1, 2), temperature=temperature)
    hidden = torch.randn(1, 1, 2)
    with pytest.raises(ConfigError, match=r"padding='none' is not known; choose one of valid, reference"):
        hidden_state_loss(hidden, hidden, None, None, torch.ones(1, 1), padding="none")
    with pytest.raises(ConfigError, match=r"backend='fast' is not known; choose one of auto, "):
        hidden_state_loss(hidden, hidden, None, None, torch.ones(1, 1), backend="fast")


def test_tensors_of_two_batches_are_a_broken_invariant():
    with pytest.raises(AssertionError, match="hidden states are of a batch of"):
        hidden_state_loss(torch.randn(1, 2, 2), torch.randn(1, 3, 2), None, None, torch.ones(1, 2))
    with pytest.raises(AssertionError, match="attention_mask has shape"):
        hidden_state_loss(torch.randn(1, 2, 2), torch.randn(1, 2, 2), None, None, torch.ones(1, 3))
    with pytest.raises(AssertionError, match="one output"):
        regression_loss(torch.randn(2, 2), torch.randn(2))
