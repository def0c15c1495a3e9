"""The yardstick's own arithmetic: what stages compute, how students are judged, and the tables."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tests.benchmarks.quality_compute import Shape, forward_flops, label_step, layer_step, prediction_step, steps_within
from tests.benchmarks.quality_inputs import Example, divide
from tests.benchmarks.quality_judge import judge
from tests.benchmarks.quality_tables import Result, paired, standard_error, tables

STUDENT, TEACHER = Shape(2, 8, 16, 2), Shape(3, 16, 32, 2)


def test_a_forward_pass_is_two_operations_for_each_weight_and_four_for_each_width_and_token_of_a_row():
    weights = 2 * (4 * 8 * 8 + 2 * 8 * 16)
    assert forward_flops(STUDENT, tokens=10, length=5) == 10 * (2 * weights + 2 * 4 * 5 * 8)


def test_a_step_that_learns_of_a_teacher_pays_for_the_teachers_forward_pass_and_for_its_losses():
    labels, predictions = label_step(STUDENT, 10, 5), prediction_step(TEACHER, STUDENT, 10, 5)
    assert labels == 3 * forward_flops(STUDENT, 10, 5)
    assert predictions - labels == forward_flops(TEACHER, 10, 5)
    projections = 3 * 3 * 2 * 8 * 16  # three states, forward and both gradients
    scores = 2 * 2 * (8 * 4**2 + 4 * 8**2 + 8 * 4 * 8)  # two layers of two heads of 4 and 8
    assert layer_step(TEACHER, STUDENT, 10, 5) - predictions == 10 * (projections + scores)


def test_a_budget_pays_whole_steps_of_each_stage_in_its_shares():
    assert steps_within(100.0, [3.0, 7.0], [1.0, 3.0]) == [8, 10]


def test_a_classifier_is_judged_by_its_labels_and_by_what_its_teacher_says_of_other_rows():
    logits = np.log(np.array([[0.9, 0.1], [0.2, 0.8]], dtype=np.float32))
    teacher = np.log(np.array([[0.5, 0.5], [0.1, 0.9]], dtype=np.float32))
    answers = np.log(np.array([[0.25, 0.75], [0.1, 0.9]], dtype=np.float32))
    found = judge(logits, [0.0, 0.0], answers, teacher)
    assert found.score == 0.5
    assert found.divergence == pytest.approx((0.5 * math.log(2) + 0.5 * math.log(2 / 3)) / 2, rel=1e-5)
    assert found.equal == 0.5  # the first row is a tie, which goes to the first class


def test_scores_are_judged_by_their_order_and_by_the_error_that_is_left():
    teacher = np.array([[0.0], [1.0], [2.0], [3.0]], dtype=np.float32)
    found = judge(teacher, [1.0, 2.0, 3.0, 5.0], teacher + 1, teacher)
    assert (found.score, found.equal) == (pytest.approx(1.0), pytest.approx(1.0))
    assert found.divergence == pytest.approx(1 / 1.25)


def test_a_student_that_says_the_same_of_all_rows_has_no_correlation():
    teacher = np.array([[0.0], [1.0], [2.0]], dtype=np.float32)
    found = judge(np.full_like(teacher, 2.5), [1.0, 2.0, 3.0], np.full_like(teacher, 2.5), teacher)
    assert (found.score, found.equal) == (0.0, 0.0)


def test_rows_of_one_group_are_in_one_split_and_no_text_is_in_two():
    rows = [Example((f"text {number // 2}",), "a", f"group {number // 10}") for number in range(400)]
    splits = divide(rows, dev=0.2, test=0.3)
    groups = [{row.group for row in split} for split in splits.values()]
    assert sum(map(len, splits.values())) == 200
    assert sum(map(len, groups)) == len(set.union(*groups)) == 40
    assert len(splits["train"]) > len(splits["test"]) > 0


def result(task, arm, seed, score, divergence):
    return Result(task, arm, seed, score, divergence, 0.9, 10, 5.0, 6.0)


def test_arms_are_compared_on_the_same_tasks_and_seeds():
    found = [
        *(result("plots", "one", seed, 0.8, 0.2) for seed in (0, 1)),
        *(result("plots", "two", seed, 0.82 + seed / 100, 0.1) for seed in (0, 1)),
        result("topics", "two", 0, 0.1, 5.0),
    ]
    assert [other.seed for _, other in paired(found, "two", "one")] == [0, 1]
    text = tables(found, {"plots": 0.9, "topics": 0.95})
    assert "### plots, teacher 90.0" in text
    assert "| two | one | 2 | 2 | +2.50 | 0.50 |  | 0.50 | 1.00 |" in text
    assert "| two | 2 | 3 | 46.2 | 46.2 | 90.0 |" in text  # (82.5 + 10) / 2 of (90 + 95) / 2
    assert standard_error([1.0, 3.0]) == 1.0
    text = tables([*found, result("topics", "one", 0, 0.055, 5.0)], {"plots": 0.9, "topics": 0.95})
    assert "| two | one | 3 | 3 | +3.17 | 0.73 | 1.00 |" in text  # 2, 3 and 4.5; of the tasks 2.5 and 4.5
