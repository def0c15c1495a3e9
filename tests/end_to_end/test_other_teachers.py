"""Teachers that are no BERT with the student's tokeniser, through the commands to their end."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.support.language_models import language_model_directory
from tests.support.models import model_directory
from tests.support.runs import read_metrics, run_ranks

TASK = ("--task_name", "sst-2", "--train_batch_size", 16, "--logging_steps", 1, "--learning_rate", 3e-3)
SMALL = {"num_hidden_layers": 2, "hidden_size": 24, "intermediate_size": 32}


@pytest.fixture(scope="module")
def qwen(inputs, tmp_path_factory):
    """Return the arguments of a prediction distillation from a Qwen classifier, without the output directory."""
    folder = tmp_path_factory.mktemp("qwen")
    language_model_directory(folder / "teacher", "qwen3")
    student = model_directory(folder / "student", labels=["negative", "positive"], seed=3, scale=1.0, **SMALL)
    words = ["--pred_distill", "--teacher_model", folder / "teacher", "--teacher_labels", "negative,positive"]
    words += ["--student_model", student, "--data_dir", inputs / "task", *TASK]
    return [*words, "--max_steps", 12, "--eval_step", 6, "--cache_dir", folder / "cache"]


def test_a_bert_student_learns_from_a_language_model_split_by_zero_3_what_the_whole_one_says(qwen, tmp_path):
    found = {}
    for name, flags in (("inference", []), ("zero3", ["--no_teacher_cache"])):
        words = [*qwen, *flags, "--teacher_engine", name, "--teacher_dtype", "fp32", "--output_dir", tmp_path / name]
        output = run_ranks("task_distill", words, log=tmp_path / "log").check().output
        assert "the teacher reads the rows by its own tokeniser" in output
        found[name] = [line["loss"] for line in read_metrics(tmp_path / name) if "loss" in line]
    assert len(found["zero3"]) == 12
    assert found["zero3"] == pytest.approx(found["inference"], rel=1e-4)
    assert found["inference"][-1] < found["inference"][0]
    assert json.loads((tmp_path / "zero3" / "run.json").read_text())["identity"]["teacher_tokenizer"]


def test_two_ranks_keep_the_logits_of_one_and_a_finished_run_goes_on(qwen, tmp_path):
    caches = []
    for size in (1, 2):
        cache = tmp_path / f"cache-{size}"
        words = [*qwen, "--cache_dir", cache, "--output_dir", tmp_path / f"out-{size}", "--teacher_dtype", "bf16"]
        run_ranks("task_distill", words, world_size=size, log=tmp_path / "log").check()
        (kept,) = cache.glob("teacher-*")
        caches.append(np.load(kept / "logits.npy"))
    assert np.array_equal(*caches)
    words = [*qwen, "--output_dir", tmp_path / "out-1", "--teacher_dtype", "bf16", "--teacher_max_seq_length", 9]
    finished = run_ranks("task_distill", words, log=tmp_path / "log")
    assert finished.returncode == 2
    assert "teacher_max_seq_length" in finished.output


def test_a_length_for_a_teacher_that_reads_the_students_tokens_is_refused(inputs, qwen, tmp_path):
    teacher = model_directory(tmp_path / "teacher", labels=["negative", "positive"])
    words = [*qwen, "--teacher_model", teacher, "--teacher_max_seq_length", 9, "--output_dir", tmp_path / "out"]
    finished = run_ranks("task_distill", words, log=tmp_path / "log")
    assert finished.returncode == 2
    assert "--teacher_max_seq_length 9 is for a teacher with a tokeniser of its own" in finished.output
