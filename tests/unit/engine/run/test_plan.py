from types import SimpleNamespace

import pytest

from tinybert_ds.engine.run.plan import Plan, count_steps, locate
from tinybert_ds.engine.student import learning_rate_factor


def source(*steps):
    """A source whose epochs have so many steps; the last number holds for all later epochs."""
    return SimpleNamespace(steps_in_epoch=lambda epoch: steps[min(epoch, len(steps) - 1)])


@pytest.mark.parametrize(
    ("step", "place"), [(0, (0, 0)), (4, (0, 4)), (5, (1, 0)), (7, (1, 2)), (8, (2, 0)), (12, (3, 0))]
)
def test_a_step_is_located_in_epochs_of_different_lengths(step, place):
    assert locate(source(5, 3, 4), step) == place


@pytest.mark.parametrize(
    ("max_steps", "num_epochs", "expected"), [(7, 3.0, 7), (None, 2.0, 8), (None, 2.5, 10), (None, 0.01, 1)]
)
def test_the_steps_of_a_run_are_counted_from_its_epochs(max_steps, num_epochs, expected):
    assert count_steps(source(5, 3, 4), max_steps=max_steps, num_epochs=num_epochs) == expected


def test_what_happens_at_intervals_also_happens_at_the_end():
    plan = Plan(total_steps=10, logging_steps=4, checkpoint_steps=5, evaluation_steps=None, accumulation=1, seed=0)
    assert [step for step in range(1, 11) if plan.is_due(4, step)] == [4, 8, 10]
    assert not plan.is_due(None, 10)


def test_the_learning_rate_rises_linearly_and_falls_linearly():
    factors = [learning_rate_factor(s, total_steps=8, warmup_steps=4, schedule="linear") for s in range(9)]
    assert factors == [0.25, 0.5, 0.75, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0]


def test_a_constant_learning_rate_stays_at_its_peak():
    factors = [learning_rate_factor(s, total_steps=4, warmup_steps=0, schedule="constant") for s in range(4)]
    assert factors == [1.0] * 4


def test_a_cosine_falls_slowly_then_fast_then_slowly():
    factors = [learning_rate_factor(s, total_steps=6, warmup_steps=2, schedule="cosine") for s in range(7)]
    assert factors == pytest.approx([0.5, 1.0, 1.0, 0.853553, 0.5, 0.146447, 0.0], abs=1e-6)


def test_a_stable_rate_falls_over_the_last_fifth_of_the_steps():
    factors = [
        learning_rate_factor(s, total_steps=20, warmup_steps=2, schedule="warmup_stable_decay") for s in range(21)
    ]
    assert factors == pytest.approx([0.5, *[1.0] * 16, 0.75, 0.5, 0.25, 0.0])
