import math
from types import SimpleNamespace

import pytest
import torch

from tinybert_ds.engine.watch.health import Health, require_finite, skipped_step
from tinybert_ds.errors import TrainingError


def last_good():
    return "The last good checkpoint is step-00000007"


def watched(*numbers):
    health = Health(torch.device("cpu"))
    for step, name, value in numbers:
        health.watch(step, name, value)
    return health


@pytest.mark.usefixtures("one_rank_group")
def test_the_first_number_that_was_none_is_named_whatever_came_after_it():
    health = watched(
        (1, "gradient norm", torch.tensor(2.0)),
        (2, "loss", 1.0),
        (3, "gradient norm", torch.tensor(math.inf)),
        (4, "loss", math.nan),
        (4, "gradient norm", math.nan),
        (5, "gradient norm", 1.0),
    )
    with pytest.raises(TrainingError, match=r"the gradient norm at step 3 is inf\..*step-00000007"):
        health.require_finite_so_far(last_good)


@pytest.mark.usefixtures("one_rank_group")
def test_finite_numbers_pass_and_so_does_nothing_at_all():
    watched().require_finite_so_far(last_good)
    watched((1, "loss", 0.0), (2, "loss", -1e300)).require_finite_so_far(last_good)


def test_an_evaluation_that_gives_no_number_is_named():
    require_finite({"eval_loss": 1.0}, 9, last_good)
    with pytest.raises(TrainingError, match=r"eval_hidden_loss at step 9 is nan\..*step-00000007"):
        require_finite({"eval_loss": 1.0, "eval_hidden_loss": math.nan}, 9, last_good)


def engine(*, fp16, applied, scale, dynamic=True):
    return SimpleNamespace(
        fp16_enabled=lambda: fp16,
        was_step_applied=lambda: applied,
        dynamic_loss_scale=lambda: dynamic,
        skipped_steps=5,
        optimizer=SimpleNamespace(loss_scale=scale),
        _config=SimpleNamespace(float16_config=SimpleNamespace(min_loss_scale=1)),
    )


def test_a_step_that_the_loss_scaler_left_out_is_fine_until_the_scale_is_at_its_minimum():
    assert skipped_step(engine(fp16=True, applied=False, scale=1024.0), 3, last_good)
    assert not skipped_step(engine(fp16=True, applied=True, scale=1.0), 3, last_good)
    assert not skipped_step(engine(fp16=False, applied=False, scale=1.0), 3, last_good)
    assert skipped_step(engine(fp16=True, applied=False, scale=1.0, dynamic=False), 3, last_good)
    with pytest.raises(TrainingError, match=r"loss scale has fallen to its minimum, 1, at step 3, after 5 skipped"):
        skipped_step(engine(fp16=True, applied=False, scale=1.0), 3, last_good)
