"""From a trimmed vocabulary to a student of it: the untrimmed teacher reads the same pieces by its own ids."""

from __future__ import annotations

import json

import pytest
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from data_tools import prepare_corpus, trim_vocabulary
from tests.support.models import VOCAB_SIZE, config_directory
from tests.support.runs import read_metrics, run_ranks

KEEP = 60
TASK = ("--task_name", "sst-2", "--train_batch_size", 16, "--logging_steps", 1, "--learning_rate", 3e-3)


@pytest.fixture(scope="module")
def trimmed(inputs, tmp_path_factory):
    """Return a folder with the trimmed teacher, shards of its vocabulary and a student's config."""
    folder = tmp_path_factory.mktemp("trimmed")
    words = ["--model", inputs / "teacher", "--corpus", inputs / "shards", "--keep", KEEP]
    trim_vocabulary.main([str(word) for word in [*words, "--output_dir", folder / "vocabulary"]])
    words = ["--train_corpus", inputs / "corpus.txt", "--bert_model", folder / "vocabulary"]
    prepare_corpus.main([str(word) for word in [*words, "--output_dir", folder / "shards", "--max_seq_len", 64]])
    size = json.loads((folder / "vocabulary" / "config.json").read_text())["vocab_size"]
    assert size < KEEP + 1 < VOCAB_SIZE
    config_directory(folder / "student", vocab_size=size)
    return folder


def general(inputs, trimmed, folder, teacher, *more):
    words = ["--pregenerated_data", trimmed / "shards", "--teacher_model", teacher, "--output_dir", folder / "out"]
    words += ["--student_model", trimmed / "student", "--max_steps", 6, "--train_batch_size", 12, "--logging_steps", 1]
    words += ["--teacher_dtype", "fp32", "--learning_rate", 1e-3, "--eval_fraction", 0.1, *more]
    run_ranks("general_distill", words, log=folder / "log").check()
    return folder / "out"


@pytest.fixture(scope="module")
def student(inputs, trimmed, tmp_path_factory):
    """Distil from the untrimmed teacher; return the run's directory."""
    folder = tmp_path_factory.mktemp("general")
    return general(inputs, trimmed, folder, inputs / "teacher", "--student_tokenizer", trimmed / "vocabulary")


def test_the_untrimmed_teacher_teaches_what_the_trimmed_one_does(inputs, trimmed, student, tmp_path):
    expected = read_metrics(general(inputs, trimmed, tmp_path, trimmed / "vocabulary"))
    found = read_metrics(student)
    assert len(found) == len(expected) > 6
    for line, other in zip(found, expected, strict=True):
        assert line == pytest.approx(other, rel=1e-5)


def test_embeddings_start_from_the_teachers_rows_by_svd_too(inputs, trimmed, tmp_path):
    folders = [tmp_path / name for name in ("whole", "part")]
    for folder in folders:
        folder.mkdir()
    more = ("--init", "svd", "--max_steps", 1)
    whole = general(
        inputs, trimmed, folders[0], inputs / "teacher", *more, "--student_tokenizer", trimmed / "vocabulary"
    )
    part = general(inputs, trimmed, folders[1], trimmed / "vocabulary", *more)
    # The leading directions are those of fewer rows, of which both teachers have the same.
    assert read_metrics(whole)[0] == pytest.approx(read_metrics(part)[0], rel=1e-5)


def test_a_student_of_a_part_goes_through_all_stages_of_a_task_with_the_untrimmed_teacher(
    inputs, trimmed, student, tmp_path
):
    data = ["--data_dir", inputs / "task", *TASK, "--cache_dir", tmp_path]
    words = ["--model", inputs / "teacher", *data, "--max_steps", 40, "--eval_step", 20]
    run_ranks("finetune", [*words, "--output_dir", tmp_path / "teacher"], log=tmp_path / "log").check()
    start = student
    for name, flags in (("intermediate", ["--max_steps", 20]), ("student", ["--pred_distill", "--max_steps", 40])):
        words = ["--teacher_model", tmp_path / "teacher", "--student_model", start, *data, *flags]
        finished = run_ranks("task_distill", [*words, "--output_dir", tmp_path / name], log=tmp_path / "log").check()
        start = tmp_path / name
    assert "the teacher reads the rows by its own tokeniser" in finished.output
    results = json.loads((start / "eval_results.json").read_text())
    assert results["eval_accuracy"] >= 0.7
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(start), AutoTokenizer.from_pretrained(start)
    assert model.config.vocab_size == len(tokenizer) <= KEEP


def test_a_student_starts_in_closed_form_from_the_untrimmed_teacher(inputs, trimmed, tmp_path):
    words = ["--student_model", trimmed / "student", "--pregenerated_data", trimmed / "shards"]
    words += ["--calibration_tokens", 2000, "--teacher_dtype", "fp32"]
    outputs = []
    for name, teacher in (("whole", inputs / "teacher"), ("part", trimmed / "vocabulary")):
        more = ["--student_tokenizer", trimmed / "vocabulary", "--teacher_model", teacher]
        run_ranks("inherit", [*words, *more, "--output_dir", tmp_path / name], log=tmp_path / "log").check()
        outputs.append(tmp_path / name / "model.safetensors")
    assert outputs[0].read_bytes() == outputs[1].read_bytes()


def test_shards_of_the_whole_vocabulary_are_refused_for_a_student_of_a_part(inputs, trimmed, tmp_path):
    words = ["--pregenerated_data", inputs / "shards", "--teacher_model", inputs / "teacher"]
    words += ["--student_tokenizer", trimmed / "vocabulary", "--student_model", trimmed / "student"]
    finished = run_ranks("general_distill", [*words, "--output_dir", tmp_path / "out"], log=tmp_path / "log")
    assert finished.returncode == 2
    assert "another tokeniser than that of --student_tokenizer" in finished.output
