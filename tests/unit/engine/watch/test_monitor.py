import json
import logging
import resource

import pytest
import torch

from tinybert_ds.engine.watch import monitor
from tinybert_ds.engine.watch.clock import add_clocks
from tinybert_ds.engine.watch.monitor import Monitor, Stopwatch
from tinybert_ds.engine.watch.tensorboard import RunStart
from tinybert_ds.errors import CheckpointError


@pytest.fixture
def now(monkeypatch):
    """A clock that stands still until it is told otherwise: now[0]."""
    time = [100.0]
    monkeypatch.setattr(monitor.time, "perf_counter", lambda: time[0])
    return time


def test_a_reading_has_rates_and_shares_since_the_last_one(now):
    watch = Stopwatch(torch.device("cpu"))
    with watch.measure("student"):
        now[0] += 1.0
        with watch.measure("communication"):
            now[0] += 2.0
    watch.count(samples=8, tokens=40)
    watch.count(samples=8, tokens=40)
    watch.carry("all_reduce", 1000)
    now[0] += 1.0
    assert watch.read() == {
        "seconds": 4.0,
        "steps": 2,
        "step_seconds": 2.0,
        "samples_per_second": 4.0,
        "tokens_per_second": 20.0,
        "communicated_bytes_per_step": 500.0,
        "student_share": 0.75,
        "communication_share": 0.5,
    }
    now[0] += 1.0
    assert watch.read()["samples_per_second"] == 0.0


def test_readings_add_up_by_their_seconds_and_steps():
    first = {"seconds": 3.0, "steps": 3, "step_seconds": 1.0, "samples_per_second": 8.0, "save_share": 0.5}
    second = {"seconds": 1.0, "steps": 1, "step_seconds": 1.0, "samples_per_second": 4.0, "data_share": 1.0}
    assert add_clocks(add_clocks({}, first), second) == {
        "seconds": 4.0,
        "steps": 4,
        "step_seconds": 1.0,
        "samples_per_second": 7.0,
        "save_share": 0.375,
        "data_share": 0.25,
    }


def test_a_run_shows_lines_and_its_summary_on_the_first_rank_alone(tmp_path, now, caplog):
    caplog.set_level(logging.INFO, logger="tinybert_ds")
    values = {"loss": 1.0, "learning_rate": 1e-3}
    clock = {"seconds": 2.0, "steps": 2, "step_seconds": 1.0, "samples_per_second": 8.0, "tokens_per_second": 64.0}
    for enabled in (False, True):
        watching = Monitor(tmp_path, enabled=enabled, start_step=2, total_steps=10, title="fine-tuning")
        watching.describe(RunStart({"seed": 1}, {"seed": 1}, {}, world_size=1))
        now[0] += 2.0
        watching.log_step(4, values, clock)
        watching.log_evaluation(4, {"eval_loss": 0.5})
        watching.flush()
        watching.finish({"eval_loss": 0.5})
        if not enabled:
            assert caplog.messages == []
            assert list(tmp_path.iterdir()) == []
    line, evaluation, summary = caplog.messages
    assert line == "step  4/10 (40%)  loss 1  lr 0.001  8.0 samples/s  64 tokens/s  6 s left"  # 1 s a step so far
    assert evaluation == "step 4: eval_loss 0.5000"
    assert "8.0 samples/s, 64 tokens/s, 1 s a step" in summary
    lines = [json.loads(text) for text in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [{"step": 4, **values, "clock": clock}, {"step": 4, "eval_loss": 0.5}]


def test_a_terminal_gets_a_bar_beside_the_lines_and_a_file_does_not(tmp_path, monkeypatch, capsys, caplog):
    for is_terminal in (False, True):
        caplog.set_level(logging.INFO, logger="tinybert_ds")
        monkeypatch.setattr(monitor.sys.stderr, "isatty", lambda answer=is_terminal: answer, raising=False)
        watching = Monitor(tmp_path, enabled=True, start_step=0, total_steps=10, title="fine-tuning")
        watching.advance()
        watching.finish({})
        assert ("fine-tuning:" in capsys.readouterr().err) is is_terminal
    caplog.set_level(logging.WARNING, logger="tinybert_ds")
    Monitor(tmp_path, enabled=True, start_step=0, total_steps=10, title="fine-tuning").finish({})
    assert "fine-tuning:" not in capsys.readouterr().err


def test_a_line_that_does_not_fit_the_disk_names_the_file(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    watched = Monitor(tmp_path, enabled=True, start_step=0, total_steps=2, title="t")
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            watched.log_evaluation(1, {"eval_loss": 0.5})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.filename == str(tmp_path / "metrics.jsonl")


def test_going_on_with_damaged_metrics_names_the_line(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n{"step": 2, "lo\x00ss": }\n{"step": 3}\n')
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl' is damaged in line 2: .* mend or remove that line"):
        Monitor(tmp_path, enabled=True, start_step=1, total_steps=2, title="t")
