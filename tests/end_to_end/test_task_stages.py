"""The stages of task distillation as commands, from a teacher's fine-tuning to the evaluation of a student."""

from __future__ import annotations

import json
import random
import signal
from functools import partial

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tests.support.configs import zero_config
from tests.support.models import WORDS, model_directory, published_directory
from tests.support.runs import exit_codes, read_metrics, run_ranks, start_ranks
from tests.support.sabotage import die_replacing, die_writing_checkpoint

TASK = ("--task_name", "sst-2", "--train_batch_size", 16, "--logging_steps", 1)


@pytest.fixture(scope="module")
def teacher(inputs, tmp_path_factory):
    """Fine-tune the tiny teacher on the sentiment task; return the run's directory."""
    folder = tmp_path_factory.mktemp("teacher")
    words = ["--model", inputs / "teacher", "--data_dir", inputs / "task", *TASK, "--learning_rate", 3e-3]
    words += ["--max_steps", 60, "--eval_step", 20, "--output_dir", folder / "out"]
    run_ranks("finetune", words, log=folder / "log").check()
    return folder / "out"


@pytest.fixture(scope="module")
def student(inputs, tmp_path_factory):
    """Return a general student: random weights, as good as any for the machinery."""
    return model_directory(
        tmp_path_factory.mktemp("student"), num_hidden_layers=2, hidden_size=24, intermediate_size=32, seed=3, scale=1.0
    )


@pytest.fixture(scope="module")
def intermediate(inputs, teacher, student, tmp_path_factory):
    """Distil the intermediate layers; return the run's directory."""
    folder = tmp_path_factory.mktemp("intermediate")
    words = ["--teacher_model", teacher, "--student_model", student, "--data_dir", inputs / "task", *TASK]
    words += ["--learning_rate", 3e-3, "--max_steps", 40, "--output_dir", folder / "out"]
    run_ranks("task_distill", words, log=folder / "log").check()
    return folder / "out"


@pytest.fixture(scope="module")
def prediction(inputs, teacher, intermediate):
    """Return the arguments of a prediction distillation, without the output directory."""
    words = ["--pred_distill", "--teacher_model", teacher, "--student_model", intermediate]
    words += ["--data_dir", inputs / "task", *TASK, "--learning_rate", 3e-3, "--max_steps", 60, "--eval_step", 20]
    return [*words, "--teacher_dtype", "fp32"]


@pytest.fixture(scope="module")
def predicted(prediction, tmp_path_factory):
    """Distil the predictions on one rank; return the run's directory."""
    folder = tmp_path_factory.mktemp("prediction")
    run_ranks("task_distill", [*prediction, "--output_dir", folder / "out"], log=folder / "log").check()
    return folder / "out"


def evaluations(directory, name="eval_accuracy"):
    return [line[name] for line in read_metrics(directory) if name in line]


def test_a_teacher_learns_the_task_and_its_directory_is_a_plain_hugging_face_one(teacher):
    results = json.loads((teacher / "eval_results.json").read_text())
    assert results["eval_accuracy"] == max(evaluations(teacher)) >= 0.9
    model = AutoModelForSequenceClassification.from_pretrained(teacher)
    assert model.config.id2label == {0: "negative", 1: "positive"}
    row = AutoTokenizer.from_pretrained(teacher)("a good film", return_tensors="pt")
    assert model(**row).logits.argmax() == 1


def test_the_intermediate_stage_brings_the_student_closer_and_keeps_its_projections(intermediate):
    losses = [line["loss"] for line in read_metrics(intermediate) if "loss" in line]
    assert losses[-1] < 0.6 * losses[0]
    assert set(load_file(intermediate / "projections.safetensors")) == {
        f"{state}.{kind}" for state in range(3) for kind in ("weight", "bias")
    }
    assert "eval_loss" in json.loads((intermediate / "eval_results.json").read_text())


def test_the_prediction_stage_keeps_the_student_of_its_best_evaluation(predicted):
    results = json.loads((predicted / "eval_results.json").read_text())
    assert results["eval_accuracy"] == max(evaluations(predicted)) >= 0.8


def test_evaluation_alone_gives_the_same_figure_on_two_ranks(inputs, predicted, tmp_path):
    words = ["--do_eval", "--student_model", predicted, "--data_dir", inputs / "task", *TASK]
    words += ["--output_dir", tmp_path / "eval", "--eval_batch_size", 4, "--predict_split", "dev"]
    run_ranks("task_distill", words, world_size=2, log=tmp_path / "log").check()
    results = json.loads((tmp_path / "eval" / "eval_results.json").read_text())
    gold = [line.split("\t")[1] for line in (inputs / "task" / "dev.tsv").read_text().splitlines()[1:]]
    lines = [line.split("\t") for line in (tmp_path / "eval" / "predictions_dev.tsv").read_text().splitlines()[1:]]
    assert [index for index, _ in lines] == [str(number) for number in range(len(gold))]
    hits = sum(word == label for (_, word), label in zip(lines, gold, strict=True))
    assert results["eval_accuracy"] == pytest.approx(hits / len(gold))
    assert results == json.loads((predicted / "eval_results.json").read_text())


def test_prediction_distillation_on_two_ranks_gives_the_losses_and_kept_logits_of_one(
    inputs, prediction, predicted, tmp_path
):
    config = zero_config(tmp_path / "ds.json", stage=2)
    words = [*prediction, "--output_dir", tmp_path / "out", "--deepspeed_config", config]
    words += ["--cache_dir", tmp_path / "cache"]
    run_ranks("task_distill", words, world_size=2, log=tmp_path / "log").check()
    for line, expected in zip(read_metrics(tmp_path / "out"), read_metrics(predicted), strict=True):
        assert line["step"] == expected["step"]
        assert line.get("loss", 0) == pytest.approx(expected.get("loss", 0), rel=1e-3)
        assert line.get("eval_accuracy") == expected.get("eval_accuracy")
    (kept,) = (tmp_path / "cache").glob("teacher-*")
    of_one_rank = inputs / "task" / ".tinybert_cache" / kept.name
    assert np.allclose(np.load(kept / "logits.npy"), np.load(of_one_rank / "logits.npy"), atol=1e-5)
    assert {path.name.split("-")[0] for path in (tmp_path / "cache").iterdir()} == {"teacher", "tokens"}


def test_prediction_distillation_from_kept_logits_gives_the_losses_of_the_live_teacher(prediction, predicted, tmp_path):
    words = [*prediction, "--max_steps", 8, "--no_teacher_cache", "--lr_schedule", "constant"]
    run_ranks("task_distill", [*words, "--output_dir", tmp_path / "live"], log=tmp_path / "log").check()
    kept = [*prediction, "--max_steps", 8, "--lr_schedule", "constant", "--output_dir", tmp_path / "kept"]
    output = run_ranks("task_distill", kept, log=tmp_path / "log").check().output
    assert "the teacher's predictions come from" in output
    for line, expected in zip(read_metrics(tmp_path / "kept"), read_metrics(tmp_path / "live"), strict=True):
        assert line.get("loss", 0) == pytest.approx(expected.get("loss", 0), rel=1e-4)


@pytest.mark.parametrize("moment", ["before the checkpoint", "while the result is put in place"])
def test_a_kill_never_costs_the_best_student(prediction, predicted, tmp_path, moment):
    out = tmp_path / "out"
    fault = {
        "before the checkpoint": partial(die_writing_checkpoint, "step-"),  # the best student is kept already
        "while the result is put in place": partial(die_replacing, out, 2),
    }[moment]
    words = [*prediction, "--output_dir", out]
    assert exit_codes(start_ranks("task_distill", words, 1, tmp_path / "log", {0: fault})) == [-signal.SIGKILL]
    assert not (out / "config.json").exists(), "half a model would load"
    assert list((out / "checkpoints").glob("best-*/config.json"))
    run_ranks("task_distill", words, log=tmp_path / "again").check()
    assert read_metrics(out) == read_metrics(predicted)
    for name in ("config.json", "model.safetensors", "eval_results.json"):
        assert (out / name).read_bytes() == (predicted / name).read_bytes()


def test_a_regression_task_of_the_users_own_runs_through_all_stages(inputs, student, tmp_path):
    rng = random.Random(0)
    for name, rows in (("learn", 64), ("judge", 24)):
        lines = []
        for _ in range(rows):
            words = rng.choices(WORDS[:40], k=rng.randint(2, 12))
            lines.append(f"{rng.randint(0, 9)}\t{' '.join(words)}\t{5 * words.count('the') / len(words):.3f}")
        (tmp_path / f"{name}.txt").write_text("\n".join(lines) + "\n")
    (tmp_path / "task.yaml").write_text(
        "files: {train: learn.txt, dev: judge.txt}\nheader: false\ntext: 1\nlabel: 2\nscore_range: [0, 5]\n"
        "metric: [pearson, spearman]\n"
    )
    task = ["--data_dir", tmp_path, "--task_file", tmp_path / "task.yaml", "--learning_rate", 3e-3]
    task += ["--train_batch_size", 16, "--max_steps", 20, "--eval_step", 10]
    words = [*task, "--model", inputs / "teacher", "--output_dir", tmp_path / "teacher"]
    run_ranks("finetune", words, log=tmp_path / "log").check()
    results = json.loads((tmp_path / "teacher" / "eval_results.json").read_text())
    assert results["eval_score"] == pytest.approx((results["eval_pearson"] + results["eval_spearman"]) / 2)
    assert results["eval_score"] == max(evaluations(tmp_path / "teacher", "eval_score"))

    start = student
    for name, flags in (("intermediate", []), ("predicted", ["--pred_distill"])):
        words = [*task, *flags, "--teacher_model", tmp_path / "teacher", "--student_model", start]
        run_ranks("task_distill", [*words, "--output_dir", tmp_path / name], log=tmp_path / "log").check()
        start = tmp_path / name
    assert AutoModelForSequenceClassification.from_pretrained(start).config.problem_type == "regression"


@pytest.mark.parametrize(("version", "projection"), [(1, "shared"), (2, "per_layer")])
def test_a_published_general_student_starts_a_task_with_its_own_projections(
    inputs, teacher, tmp_path, version, projection
):
    directory, model = published_directory(tmp_path / "published", version=version)
    words = ["--teacher_model", teacher, "--student_model", directory, "--data_dir", inputs / "task", *TASK]
    words += ["--projection", projection, "--do_lower_case", "--max_steps", 1, "--learning_rate", 1e-12]
    output = run_ranks("task_distill", [*words, "--output_dir", tmp_path / "out"], log=tmp_path / "log").check().output
    assert "projections taken over" in output
    assert "cls.predictions, cls.seq_relationship" in output
    published = torch.load(directory / "pytorch_model.bin", weights_only=True)
    first = "fit_dense.weight" if version == 1 else "fit_denses.0.weight"
    saved = load_file(tmp_path / "out" / "projections.safetensors")
    torch.testing.assert_close(saved["0.weight"], published[first], atol=1e-6, rtol=0)
    weights = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").base_model.state_dict()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(weights[name], value, atol=1e-6, rtol=0)
