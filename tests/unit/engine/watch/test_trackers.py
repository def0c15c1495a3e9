"""Trackers beside TensorBoard, each through its own package where that is installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from importlib.util import find_spec
from types import ModuleType, SimpleNamespace

import pytest

from tinybert_ds.arguments import FinetuneArguments
from tinybert_ds.engine.watch import trackers
from tinybert_ds.engine.watch.monitor import Monitor
from tinybert_ds.engine.watch.tensorboard import RunStart
from tinybert_ds.engine.watch.trackers import RUN_NAMES_FILE, Guarded, open_trackers, run_name

VALUES = {"loss": 3.5, "attention_loss/layer_1": 1.25, "grad_norm": None}
TAGS = ("1_health/loss", "3_layers/attention_loss/layer_1")


def watch(directory, names, step, *, start_step=0, finish=False):
    """Let a run begin or go on, log one step and end."""
    directory.mkdir(exist_ok=True)
    for tracker in open_trackers(names, directory, start_step=start_step):
        tracker.describe(RunStart({"seed": 7, "log_level": "info"}, {"seed": 7}, {}, 2))
        tracker.scalars(step, VALUES)
        tracker.flush()
        if finish:
            tracker.finish(step, {"eval_accuracy": 0.75})
        tracker.close()


def test_wandb_offline_has_the_names_of_tensorboard_and_a_resumed_run_is_the_same_one(tmp_path, monkeypatch, caplog):
    pytest.importorskip("wandb", reason="needs the extra wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    out = tmp_path / "student"
    watch(out, ["wandb"], 1)
    watch(out, ["wandb"], 2, start_step=1, finish=True)
    name = json.loads((out / RUN_NAMES_FILE).read_text())["wandb"]
    folders = list((out / "wandb").glob("offline-run-*"))
    assert [folder.name.endswith(name) for folder in folders] == [True, True]

    def written():  # its own process writes the files, a little later
        return sorted((folder / f"run-{name}.wandb").read_bytes() for folder in folders)

    deadline = time.monotonic() + 60
    while not all(TAGS[0].encode() in content for content in written()) and time.monotonic() < deadline:
        time.sleep(0.2)
    contents = written()
    assert [tag for tag in TAGS for content in contents if tag.encode() not in content] == []
    assert not any(b"grad_norm" in content for content in contents)
    assert sum(b"5_final/accuracy" in content for content in contents) == 1
    assert "gets no more figures" not in caplog.text


def test_mlflow_s_file_store_has_the_names_of_tensorboard_and_a_resumed_run_is_the_same_one(tmp_path, monkeypatch):
    tracking = pytest.importorskip("mlflow.tracking", reason="needs mlflow or mlflow-skinny")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    out = tmp_path / "student"
    watch(out, ["mlflow"], 1)
    watch(out, ["mlflow"], 2, start_step=1, finish=True)
    client = tracking.MlflowClient(tracking_uri=(out / "mlruns").as_uri())
    (run,) = client.search_runs([client.get_experiment_by_name(trackers.PROJECT).experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params == {"seed": "7", "world_size": "2"}
    assert [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, TAGS[0])] == [(1, 3.5), (2, 3.5)]
    assert run.data.metrics["5_final/accuracy"] == 0.75


def test_trackio_s_data_base_has_the_names_of_tensorboard_and_a_resumed_run_is_the_same_one(tmp_path):
    """In a process of its own: where the data base is, is read when the package is imported."""
    if find_spec("trackio") is None:
        pytest.skip("needs trackio")
    code = (
        "import json, sys; from pathlib import Path; sys.path[:] = json.loads(sys.argv[2])\n"
        "from tests.unit.engine.watch.test_trackers import watch\n"
        "run = Path(sys.argv[1])\n"
        "watch(run, ['trackio'], 1); watch(run, ['trackio'], 2, start_step=1, finish=True)\n"
        "from trackio.sqlite_storage import SQLiteStorage as store\n"
        "names = store.get_runs('tinybert-ds')\n"
        "print(json.dumps([[store.get_logs('tinybert-ds', name), store.get_run_config('tinybert-ds', name)] "
        "for name in names]))\n"
    )
    argv = [sys.executable, "-c", code, str(tmp_path / "student"), json.dumps(sys.path)]
    environment = {**os.environ, "TRACKIO_DIR": str(tmp_path / "base")}
    done = subprocess.run(argv, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    ((logs, config),) = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("[[")))
    assert [(log["step"], log[TAGS[0]], log[TAGS[1]]) for log in logs[:2]] == [(1, 3.5, 1.25), (2, 3.5, 1.25)]
    assert logs[2]["5_final/accuracy"] == 0.75
    assert (config["seed"], config["world_size"]) == (7, 2)


@pytest.fixture
def trackio(monkeypatch):
    """A stand-in with the calls that the package documents."""
    calls = []
    run = SimpleNamespace(
        config={}, log=lambda values, step: calls.append((step, values)), finish=lambda: calls.append("end")
    )

    def init(**named):
        calls.append(named)
        return run

    module = ModuleType("trackio")
    module.init = init
    monkeypatch.setitem(sys.modules, "trackio", module)
    return calls


def test_trackio_is_called_with_the_names_of_tensorboard_and_a_resumed_run_is_the_same_one(tmp_path, trackio):
    out = tmp_path / "student"
    watch(out, ["trackio"], 1)
    watch(out, ["trackio"], 2, start_step=1, finish=True)
    first, one, _, second, two, final, end = trackio
    assert (
        first == second == {"project": "tinybert-ds", "name": f"student-{run_name(out, 'trackio')}", "resume": "allow"}
    )
    assert one == (1, {TAGS[0]: 3.5, TAGS[1]: 1.25})
    assert two == (2, {TAGS[0]: 3.5, TAGS[1]: 1.25})
    assert (final, end) == ((2, {"5_final/accuracy": 0.75}), "end")


@pytest.mark.parametrize("failing", ["make", "describe", "scalars", "finish", "flush", "close"])
def test_a_tracker_that_fails_is_given_up_with_one_warning_and_the_run_goes_on(caplog, failing):
    called = []

    def method(name):
        def call(*words):
            called.append(name)
            if name == failing:
                raise RuntimeError("the server is gone\nand more")

        return call

    def make():
        method("make")()
        return SimpleNamespace(**{name: method(name) for name in ("describe", "scalars", "finish", "flush", "close")})

    tracker = Guarded("wandb gets no more figures", make)
    tracker.describe(RunStart({}, {}, {}, 1))
    tracker.scalars(1, {})
    tracker.flush()
    tracker.finish(1, {})
    tracker.close()
    (warning,) = caplog.messages
    assert warning.startswith("wandb gets no more figures (RuntimeError: the server is gone); the run goes on")
    assert called[-1] == failing


def test_only_the_first_rank_tracks_and_tensorboard_is_the_default(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "tinybert_ds.engine.watch.monitor.open_trackers", lambda names, *rest, **named: asked.append(names) or []
    )
    for enabled in (False, True):
        Monitor(tmp_path, enabled=enabled, start_step=0, total_steps=1, title="t", report_to=["wandb"]).finish({})
    assert asked == [["wandb"]]
    Monitor(tmp_path, enabled=True, start_step=0, total_steps=1, title="t").finish({})
    assert asked[1] == ("tensorboard",)


def test_a_tracker_that_is_not_installed_is_a_mistake_of_the_command_line(monkeypatch):
    arguments = FinetuneArguments(
        model="m", data_dir="d", task_name="rte", output_dir="o", report_to=["wandb", "mlflow"]
    )
    monkeypatch.setattr("tinybert_ds.arguments.training.is_importable", lambda name: False)
    (problem,) = arguments.problems()
    assert problem.startswith("--report_to wandb mlflow: not installed; pip install wandb mlflow")
