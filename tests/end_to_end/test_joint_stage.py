"""Layers and predictions distilled in one stage, as a command."""

from __future__ import annotations

import json

import pytest
from safetensors.torch import load_file

from tests.support.runs import read_metrics, run_ranks

TASK = ("--task_name", "sst-2", "--train_batch_size", 16, "--logging_steps", 1)


@pytest.fixture(scope="module")
def joint(inputs, tmp_path_factory):
    """Return the arguments of a joint stage from a fine-tuned teacher, and the run's directory."""
    folder = tmp_path_factory.mktemp("joint")
    data = ["--data_dir", inputs / "task", *TASK[:2]]
    words = ["--model", inputs / "teacher", *data, *TASK[2:], "--learning_rate", 3e-3, "--max_steps", 40]
    run_ranks("finetune", [*words, "--output_dir", folder / "teacher"], log=folder / "teacher_log").check()
    models = ["--teacher_model", folder / "teacher", "--student_model", inputs / "student"]
    run_ranks("inherit", [*models, *data, "--output_dir", folder / "start"], log=folder / "start_log").check()
    words = ["--joint", *models[:3], folder / "start", *data, *TASK[2:], "--learning_rate", 1e-3]
    words += ["--label_weight", 0.5, "--prediction_loss", "mse", "--loss_balance", "variance"]
    words += ["--max_steps", 4, "--eval_step", 2, "--save_steps", 2, "--teacher_dtype", "fp32"]
    run_ranks("task_distill", [*words, "--output_dir", folder / "out"], log=folder / "log").check()
    return words, folder / "out"


def test_each_step_learns_layers_and_predictions_and_the_best_student_by_the_metric_is_kept(joint):
    _, directory = joint
    line = read_metrics(directory)[0]
    variances = json.loads((directory / "run.json").read_text())["loss_variances"]
    layers = sum(line[name] / variance for name, variance in variances.items())
    assert line["loss"] == pytest.approx(layers + line["prediction_loss"] + 0.5 * line["label_loss"], rel=1e-5)
    assert "eval_accuracy" in json.loads((directory / "eval_results.json").read_text())
    assert set(load_file(directory / "projections.safetensors")) >= {"0.weight", "2.weight"}


def test_two_ranks_learn_what_one_does(joint, tmp_path):
    words, directory = joint
    words = [*words, "--output_dir", tmp_path / "out"]
    run_ranks("task_distill", words, world_size=2, log=tmp_path / "log").check()
    pairs = zip(read_metrics(tmp_path / "out"), read_metrics(directory), strict=True)
    steps = [(found, expected) for found, expected in pairs if "loss" in expected]
    for found, expected in steps:
        for name in ("loss", "prediction_loss", "label_loss", "hidden_loss", "attention_loss"):
            assert found[name] == pytest.approx(expected[name], rel=2e-5, abs=1e-8)
