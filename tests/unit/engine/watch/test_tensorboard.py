import re
import subprocess
import sys

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

from tinybert_ds.engine.watch.tensorboard import RunStart, TensorBoard, arguments_table, hyper_parameters, layout, tag
from tinybert_ds.engine.watch.trackers import open_trackers

VALUES = {"loss": 3.0, "attention_loss": 1.0, "attention_loss/layer_1": 1.0, "hidden_loss/state_0": 2.0}


@pytest.mark.parametrize(
    ("name", "shown_as"),
    [
        ("loss", "1_health/loss"),
        ("learning_rate", "1_health/learning_rate"),
        ("samples_per_second", "1_health/samples_per_second"),
        ("eval_accuracy", "1_health/eval_accuracy"),
        ("teacher_share", "2_time/teacher_share"),
        ("step_seconds", "2_time/step_seconds"),
        ("hidden_loss/state_3", "3_layers/hidden_loss/state_3"),
        ("epoch", "4_place/epoch"),
    ],
)
def test_each_figure_stands_on_its_page(name, shown_as):
    assert tag(name) == shown_as


def test_the_charts_of_the_layout_hold_the_figures_that_are_written():
    names = [*VALUES, "learning_rate", "grad_norm", "eval_loss"]
    pages = layout(names)
    assert list(pages) == ["Health", "Where the time goes", "Layers"]

    def drawn(page, chart):
        kind, patterns = pages[page][chart]
        assert kind == "Multiline"
        return [name for name in names if any(re.match(pattern, tag(name)) for pattern in patterns)]

    assert drawn("Health", "losses") == ["loss", "attention_loss"]
    assert drawn("Health", "evaluation") == ["eval_loss"]
    assert drawn("Layers", "attention loss") == ["attention_loss/layer_1"]
    assert drawn("Layers", "hidden loss") == ["hidden_loss/state_0"]


def test_a_stage_without_layers_has_no_page_for_them():
    assert "Layers" not in layout(["loss", "prediction_loss"])


def test_hyper_parameters_that_are_not_set_are_not_shown():
    learning = {"learning_rate": 1e-3, "max_steps": None, "from_scratch": False, "layer_map": (0, 2)}
    found = hyper_parameters(learning, {"world_size": 2})
    assert found == {"learning_rate": 1e-3, "layer_map": "(0, 2)", "world_size": 2}


def test_a_bar_in_an_argument_does_not_break_the_table():
    assert arguments_table({"b": None, "a": "x|y"}).splitlines()[-1] == "| a | x\\|y |"


def test_events_hold_scalars_arguments_layout_and_hyper_parameters_with_their_results(tmp_path):
    board = TensorBoard(tmp_path, start_step=0)
    learning = {"learning_rate": 1e-3, "seed": 7}
    board.describe(
        RunStart({**learning, "log_level": "info"}, learning, {"zero_optimization": {"stage": 2}}, world_size=2)
    )
    for step in (1, 2):
        board.scalars(step, {**VALUES, "grad_norm": None} if step == 1 else VALUES)
    board.finish(2, {"eval_accuracy": 0.75})
    board.close()
    events = EventAccumulator(str(tmp_path), size_guidance={"scalars": 0, "tensors": 0}).Reload()
    assert [(event.step, event.value) for event in events.Scalars("1_health/loss")] == [(1, 3.0), (2, 3.0)]
    assert events.Scalars("5_final/accuracy")[0].value == 0.75
    tags = events.Tags()
    assert "1_health/grad_norm" not in tags["scalars"]
    text = events.Tensors("run/arguments/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "| seed | 7 |" in text
    assert "custom_scalars__config__" in tags["tensors"]
    start = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    parameters = plugin_data_pb2.HParamsPluginData.FromString(start).session_start_info.hparams
    assert {name: value.number_value for name, value in parameters.items()} == {
        "learning_rate": 1e-3,
        "seed": 7,
        "world_size": 2,
        "zero_stage": 2,
    }


def test_a_resumed_run_hides_what_came_after_the_step_it_goes_on_from(tmp_path):
    first = TensorBoard(tmp_path, start_step=0)
    for step in (1, 2, 3):
        first.scalars(step, {"loss": float(step)})
    first.close()
    second = TensorBoard(tmp_path, start_step=1)
    second.scalars(2, {"loss": 20.0})
    second.close()
    events = EventAccumulator(str(tmp_path), size_guidance={"scalars": 0}).Reload()
    assert [(event.step, event.value) for event in events.Scalars("1_health/loss")] == [(1, 1.0), (2, 20.0)]


FULL_DISK = """
import resource, sys
from pathlib import Path
from tinybert_ds.engine.watch.tensorboard import RunStart
from tinybert_ds.engine.watch.trackers import open_trackers
limit = int(sys.argv[2])
if not limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
(board,), other = (open_trackers(["tensorboard"], Path(sys.argv[1]) / name, start_step=0) for name in "ab")
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
for step in range(200):
    board.scalars(step, {"loss": 1.0, "learning_rate": 0.1})
    board.flush()
board.describe(RunStart({"seed": 1}, {"seed": 1}, {}, 1))
board.finish(200, {"eval_accuracy": 0.5})
board.close()
print("went on")
"""


@pytest.mark.parametrize("limit", [0, 4000])
def test_a_disk_that_is_full_ends_the_events_with_a_warning_and_not_the_run(tmp_path, limit):
    words = [sys.executable, "-c", FULL_DISK, str(tmp_path), str(limit)]
    finished = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (finished.returncode, finished.stdout) == (0, "went on\n")
    assert finished.stderr.count("TensorBoard's events are no longer written") == (1 if limit else 2)
    assert "Traceback" not in finished.stderr


def test_a_file_in_the_place_of_the_events_directory_ends_no_run(tmp_path, caplog):
    (tmp_path / "tensorboard").touch()
    (board,) = open_trackers(["tensorboard"], tmp_path, start_step=0)
    board.scalars(1, VALUES)
    assert "tensorboard' cannot be read or written: File exists" in caplog.text
