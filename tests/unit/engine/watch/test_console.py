import logging
import warnings
from pathlib import Path

import pytest

from tinybert_ds.engine.watch.console import duration, set_up_console, step_line, summary_table, time_shares

CLOCK = {"seconds": 125.0, "samples_per_second": 41.26, "tokens_per_second": 12345.6, "step_seconds": 0.25}
SHARES = {"data_share": 0.02, "teacher_share": 0.5, "student_share": 0.4, "communication_share": 0.11}


@pytest.fixture
def shown(capsys):
    """The lines on standard error so far; loggers are as before afterwards."""
    loggers = [logging.getLogger(name) for name in (None, "tinybert_ds")]
    before = [(logger, logger.level, logger.handlers[:]) for logger in loggers]

    def lines() -> list[str]:
        return capsys.readouterr().err.splitlines()

    with warnings.catch_warnings():
        yield lines
    logging.captureWarnings(False)
    for logger, level, handlers in before:
        logger.setLevel(level)
        logger.handlers[:] = handlers


def test_a_line_tells_progress_losses_speed_and_time_left():
    values = {"loss": 2.5, "attention_loss": 0.5, "attention_loss/layer_1": 0.5, "hidden_loss": 2.0}
    values |= {"learning_rate": 4.5e-05, "grad_norm": 1.0}
    assert step_line(50, 1000, values, CLOCK, 125.4) == (
        "step   50/1000 (5%)  loss 2.5 (attention 0.5, hidden 2)  lr 4.5e-05  41.3 samples/s  12,346 tokens/s  "
        "2:05 min left"
    )


def test_a_single_loss_is_not_told_twice():
    line = step_line(1, 2, {"loss": 2.5, "prediction_loss": 2.5, "learning_rate": 0.1}, CLOCK, 0)
    assert "loss 2.5  lr" in line


def test_a_step_that_was_left_out_for_a_non_finite_loss_has_a_line_too():
    line = step_line(1, 2, {"hidden_loss": 2.5, "learning_rate": 0.1, "skipped_steps": 1}, CLOCK, 0)
    assert line.startswith("step 1/2 (50%)  loss not finite, step left out  lr 0.1  41.3 samples/s")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.7, "1:00 min"), (61, "1:01 min"), (3 * 3600 + 7 * 60 + 5, "3:07:05 h")]
)
def test_times_are_told_in_the_largest_unit_they_fill(seconds, text):
    assert duration(seconds) == text


def test_the_rest_of_the_time_is_called_other_and_communication_is_not_counted_twice():
    expected = "data 2%, teacher 50%, student 40%, other 8%; communication, inside these, 11%"
    assert time_shares(SHARES) == expected


def test_the_summary_has_metrics_throughput_shares_and_the_place_of_the_model():
    results = {"eval_accuracy": 0.91234}
    table = summary_table("fine-tuning", Path("out/x"), results, CLOCK | SHARES, steps=(0, 500))
    assert table.splitlines() == [
        "fine-tuning is finished",
        "  eval_accuracy  0.9123",
        "  steps          500",
        "  time           2:05 min",
        "  throughput     41.3 samples/s, 12,346 tokens/s, 0.25 s a step",
        "  time shares    data 2%, teacher 50%, student 40%, other 8%; communication, inside these, 11%",
        "  model          out/x",
    ]


def test_the_summary_of_a_launch_that_had_nothing_left_to_train_says_so_by_its_steps():
    table = summary_table("fine-tuning", Path("out"), {}, {}, steps=(500, 500))
    assert "500, 500 of them in earlier launches" in table
    assert "none: nothing was evaluated" in table


def test_the_level_decides_what_the_first_rank_shows(shown):
    set_up_console("warning", is_main=True)
    logging.getLogger("tinybert_ds.x").info("progress")
    logging.getLogger("tinybert_ds.x").warning("look out")
    logging.getLogger("elsewhere").info("chatter")
    logging.getLogger("elsewhere").warning("theirs")
    assert shown() == ["look out", "theirs"]


def test_other_ranks_show_errors_only(shown):
    set_up_console("debug", is_main=False)
    for name in ("tinybert_ds.x", "elsewhere"):
        logging.getLogger(name).warning("look out")
        logging.getLogger(name).error("broken")
    warnings.warn("no matter", UserWarning, stacklevel=1)
    assert shown() == ["broken", "broken"]
