import json

import pytest

from tests.support.run_records import write_run
from tinybert_ds.errors import ConfigError
from tinybert_ds.report.runs import read_runs
from tinybert_ds.report.tables import arguments, metrics, overview, throughput


def cells(table):
    return dict(table.rows)


def test_curves_come_from_steps_their_clock_and_evaluations(tmp_path):
    (run,) = read_runs([write_run(tmp_path / "a")])
    assert run.curve("loss")[:2] == [(1, 2.0), (2, 1.0)]
    assert run.curve("samples_per_second")[-1] == (6, 60.0)
    assert run.curve("eval_accuracy") == [(3, 1 - 1 / 3), (6, 0.5)]
    assert run.curve("grad_norm") == []
    assert {"step", "clock", "seconds"}.isdisjoint(run.names())


def test_a_value_that_is_no_number_and_a_last_line_half_written_leave_no_point(tmp_path):
    path = write_run(tmp_path / "a", steps=2) / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 3, "loss": NaN}\n{"step": 4, "lo')
    (run,) = read_runs([tmp_path / "a"])
    assert run.curve("loss") == [(1, 2.0), (2, 1.0)]
    assert run.state == "stopped or running, at step 3"


def test_a_step_that_fp16_has_left_out_and_that_has_no_loss_is_no_evaluation(tmp_path):
    path = write_run(tmp_path / "a", steps=3) / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 4, "learning_rate": 1.0, "skipped_steps": 1}\n')
    (run,) = read_runs([tmp_path / "a"])
    assert run.state == "stopped or running, at step 4"
    assert run.results == {"eval_accuracy": 0.5}


def test_a_directory_of_runs_stands_for_them_and_each_is_named_and_read_once(tmp_path):
    for name in ("b", "a"):
        write_run(tmp_path / "runs" / name)
    found = read_runs([tmp_path / "runs", tmp_path / "runs" / "a"])
    assert [run.name for run in found] == ["a", "b"]


def test_directories_without_a_run_are_named_together(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"(?s)empty holds no run.*gone is not a directory"):
        read_runs([tmp_path / "empty", tmp_path / "gone"])


def test_a_damaged_record_is_named(tmp_path):
    (write_run(tmp_path / "a") / "run.json").write_text(json.dumps({"mine": 1}))
    with pytest.raises(ConfigError, match=r"a/run\.json' is damaged, or not of this program: identity: Field required"):
        read_runs([tmp_path / "a"])
    (write_run(tmp_path / "b") / "metrics.jsonl").write_text('{"step": 1}\n{}}\n')
    with pytest.raises(ConfigError, match=r"metrics\.jsonl' is damaged in line 2"):
        read_runs([tmp_path / "b"])


def test_damaged_runs_among_others_are_named_and_left_out(tmp_path, caplog):
    for name in ("a", "b", "c"):
        write_run(tmp_path / name)
    (tmp_path / "b" / "run.json").write_text("{")
    (tmp_path / "c" / "metrics.jsonl").write_text('{"step": "x"}\n')
    assert [run.name for run in read_runs([tmp_path])] == ["a"]
    assert [line.split("'")[1] for line in caplog.messages if line.startswith("left out: ")] == [
        str(tmp_path / "b" / "run.json"),
        str(tmp_path / "c" / "metrics.jsonl"),
    ]


def test_metrics_that_cannot_be_read_are_not_taken_for_none(tmp_path):
    path = write_run(tmp_path / "a") / "metrics.jsonl"
    path.unlink()
    path.symlink_to(path.name)
    with pytest.raises(ConfigError, match=r"metrics\.jsonl' cannot be read or written: Too many levels of symbolic"):
        read_runs([tmp_path / "a"])


def test_figures_beyond_all_sense_leave_no_point_and_a_clock_without_seconds_no_rate(tmp_path):
    path = write_run(tmp_path / "a", steps=2) / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 3, "loss": 1e308, "clock": {"seconds": 0.0, "steps": 0}}\n')
    path.write_text(path.read_text() + '{"step": 4, "loss": -1e308, "clock": {"seconds": 3.0}}\n')
    (run,) = read_runs([tmp_path / "a"])
    assert run.curve("loss") == [(1, 2.0), (2, 1.0)]
    assert run.clock["steps"] == 2


def test_the_tables_tell_state_metrics_and_speed(tmp_path):
    write_run(tmp_path / "done", finished={"eval_accuracy": 0.625}, from_steps=(0, 2, 4))
    write_run(tmp_path / "under_way", steps=3)
    runs = read_runs([tmp_path / "done", tmp_path / "under_way"])
    told = cells(overview(runs))
    assert told["state"] == ["finished at step 6", "stopped or running, at step 3"]
    assert told["gone on with from step"] == ["2, 4", "never"]
    assert told["ZeRO stage"] == ["2", "2"]
    told = cells(metrics(runs))
    assert told["eval_accuracy, final"] == ["0.6250", "0.5000"]
    assert told["eval_accuracy, highest on the way"] == ["0.6667 at step 3", "0.5000 at step 3"]
    assert told["training loss, last logged"] == ["0.3333", "0.6667"]
    told = cells(throughput(runs))
    assert told["samples/s"] == ["35.0", "20.0"]  # the mean over the seconds of all lines
    assert told["student, share of the time"] == ["75.0%", "75.0%"]
    assert told["other, share of the time"] == ["25.0%", "25.0%"]
    assert told["MiB communicated a step"] == ["1.00", "1.00"]


def test_arguments_that_differ_come_first_and_one_that_a_stage_does_not_have_does_not_differ(tmp_path):
    write_run(tmp_path / "a", arguments={"z": 1, "temperature": 2.0})
    write_run(tmp_path / "b", arguments={"z": 2})
    table = arguments(read_runs([tmp_path / "a", tmp_path / "b"]))
    assert table.rows == [("z", ["1", "2"]), ("learning_rate", ["0.001", "0.001"]), ("temperature", ["2.0", ""])]
    assert table.differing == {"z"}
