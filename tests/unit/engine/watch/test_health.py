import math
from types import SimpleNamespace

import pytest
import torch

from tinybert_ds.engine.loop import evaluate, examine
from tinybert_ds.engine.ranks.process_group import World
from tinybert_ds.engine.watch.health import TEACHER, Health, require_finite, skipped_step
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
def test_a_teacher_with_non_finite_output_is_named_before_what_follows_from_it():
    health = watched((4, "gradient norm", math.nan), (4, "loss", math.nan), (4, TEACHER, math.nan))
    with pytest.raises(TrainingError, match=r"the teacher's output at step 4 is nan\. .*--teacher_dtype") as caught:
        health.require_finite_so_far(last_good)
    assert "learning_rate" not in str(caught.value)


def run_with(teacher_check, **engine_values) -> SimpleNamespace:
    """Return a student's run at step 4 whose module has noted this of its teacher."""
    values = {"fp16": False, "applied": True, "scale": 1.0, **engine_values}
    module = SimpleNamespace(teacher_check=torch.tensor(teacher_check))
    return SimpleNamespace(
        engine=SimpleNamespace(**vars(engine(**values)), module=module, eval=lambda: None, train=lambda: None),
        state=SimpleNamespace(step=4),
        checkpoints=SimpleNamespace(last_good=last_good),
        health=Health(torch.device("cpu")),
        evaluate=lambda: {"eval_loss": math.nan},
        score=None,
    )


@pytest.mark.usefixtures("one_rank_group")
@pytest.mark.parametrize("values", [{}, {"fp16": True, "applied": False}])
def test_a_step_with_an_overflowing_teacher_ends_the_run_with_advice_about_the_teacher(values):
    terms = {"loss": torch.tensor(math.nan), "grad_norm": torch.tensor(math.nan)}
    with pytest.raises(TrainingError, match="--teacher_dtype"):
        examine([run_with(math.nan, **values)], [terms], looked_at=True)
    with pytest.raises(TrainingError, match="--learning_rate"):
        examine([run_with(0.0, **values)], [terms], looked_at=True)


@pytest.mark.usefixtures("one_rank_group")
def test_a_batch_that_the_loss_scaler_left_out_is_not_held_against_the_teacher_later():
    run = run_with(math.nan, fp16=True, applied=False, scale=1024.0)
    terms = {"loss": torch.tensor(1.0)}
    examine([run], [terms], looked_at=True)
    run.engine.was_step_applied = lambda: True
    examine([run], [terms], looked_at=True)


@pytest.mark.usefixtures("one_rank_group")
def test_an_evaluation_with_an_overflowing_teacher_names_the_teacher():
    with pytest.raises(TrainingError, match="--teacher_dtype"):
        evaluate(run_with(math.nan), World(0, 1, 0, torch.device("cpu")))
    with pytest.raises(TrainingError, match=r"eval_loss at step 4 is nan.*--learning_rate"):
        evaluate(run_with(0.0), World(0, 1, 0, torch.device("cpu")))


@pytest.mark.usefixtures("one_rank_group")
def test_finite_numbers_pass_and_so_does_nothing_at_all():
    watched().require_finite_so_far(last_good)
    watched((1, "loss", 0.0), (2, "loss", -1e300)).require_finite_so_far(last_good)


def test_a_non_finite_evaluation_is_named():
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
