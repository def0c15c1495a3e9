"""Wrong input stops before any work, with exit code 2 and a message that names the fix; nothing is overwritten."""

from __future__ import annotations

import json
import re

import pytest

from tests.support.fixtures import with_student
from tests.support.models import VOCABULARY, config_directory, model_directory
from tests.support.runs import run_command_line, run_ranks, write_documents, write_sentiment
from tinybert_ds.launch.port import free_port


def snapshot(directory):
    """Return the contents of all files below a directory, the logs of the commands aside."""
    files = (path for path in directory.rglob("*") if path.is_file() and ".rank" not in path.name)
    return {path: path.read_bytes() for path in files}


def refuse(command, arguments, tmp_path, *, world_size=1):
    """Run a command that must be refused; return what it said."""
    before = snapshot(tmp_path)
    finished = run_ranks(command, arguments, world_size=world_size, log=tmp_path / "log")
    assert finished.returncode == 2, finished.output
    assert finished.output.count("error: ") == 1, finished.output
    assert "Traceback" not in finished.output, finished.output
    assert snapshot(tmp_path) == before
    return finished.output


@pytest.fixture
def teacher(inputs, tmp_path):
    """Return the directory of a teacher that is fine-tuned, as far as its config says."""
    return model_directory(tmp_path / "fine_tuned", labels=("negative", "positive"))


@pytest.fixture
def task(inputs, teacher, tmp_path):
    """Return the arguments of a task distillation that would run."""
    student = model_directory(tmp_path / "student", num_hidden_layers=2, hidden_size=24, intermediate_size=32)
    return [
        *("--teacher_model", teacher, "--student_model", student, "--data_dir", inputs / "task"),
        *("--task_name", "sst-2", "--max_steps", 2, "--output_dir", tmp_path / "out"),
    ]


# --- texts ---


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"corpus\.txt.*(does not exist|is not)"),
        (b"", r"corpus is empty"),
        (b"a good film\nthe \xff plot\n", r"corpus\.txt.*UTF-8"),
    ],
    ids=["missing", "empty", "not UTF-8"],
)
def test_a_corpus_that_is_no_text_is_refused(inputs, tmp_path, text, message):
    path = tmp_path / "corpus.txt"
    if text is not None:
        path.write_bytes(text)
    arguments = ["--train_corpus", path, "--bert_model", inputs / "teacher", "--output_dir", tmp_path / "shards"]
    assert re.search(message, refuse("prepare_corpus", arguments, tmp_path))


def test_a_corpus_of_one_document_names_the_flags_that_would_take_it(inputs, tmp_path, general):
    write_documents(tmp_path / "corpus.txt", documents=1)
    arguments = ["--train_corpus", tmp_path / "corpus.txt", "--bert_model", inputs / "teacher"]
    run_ranks("prepare_corpus", [*arguments, "--output_dir", tmp_path / "shards"], log=tmp_path / "log").check()
    words = [*general, "--pregenerated_data", tmp_path / "shards", "--output_dir", tmp_path / "out"]
    output = refuse("general_distill", words, tmp_path)
    assert "--one_seq" in output
    assert "--eval_fraction 0" in output


def test_shards_of_another_tokeniser_are_refused(inputs, tmp_path, general):
    other = model_directory(tmp_path / "other", vocabulary=(*VOCABULARY[:-2], "swapped", *VOCABULARY[-1:]))
    output = refuse("general_distill", [*general, "--teacher_model", other, "--output_dir", tmp_path / "out"], tmp_path)
    assert "tokeniser" in output


@pytest.mark.parametrize(
    ("row", "message"),
    [("a good film\tgreat", r"train\.tsv, line 2.*great.*negative.*positive"), ("a good film", r"train\.tsv, line 2")],
    ids=["unknown label", "missing column"],
)
def test_a_row_that_does_not_fit_the_task_is_named(task, tmp_path, row, message):
    write_sentiment(tmp_path / "data", rows=8)
    lines = (tmp_path / "data" / "train.tsv").read_text().splitlines()
    (tmp_path / "data" / "train.tsv").write_text("\n".join([lines[0], row, *lines[2:]]) + "\n")
    assert re.search(message, refuse("task_distill", [*task, "--data_dir", tmp_path / "data"], tmp_path))


def test_an_unknown_task_names_the_known_ones(task, tmp_path):
    assert "sst-2" in refuse("task_distill", [*task, "--task_name", "sst-3"], tmp_path)


# --- models ---


def test_a_directory_that_is_no_model_is_refused(tmp_path, general):
    (tmp_path / "empty").mkdir()
    words = [*general, "--teacher_model", tmp_path / "empty", "--output_dir", tmp_path / "out"]
    assert "has no config.json" in refuse("general_distill", words, tmp_path)


def test_a_student_whose_heads_vocabulary_and_depth_do_not_match_is_told_all_three(tmp_path, general):
    student = config_directory(tmp_path / "s", num_attention_heads=6, num_hidden_layers=5, vocab_size=50)
    words = [*with_student(general, student), "--output_dir", tmp_path / "out"]
    output = refuse("general_distill", words, tmp_path)
    assert '"num_attention_heads": 4' in output
    assert '"vocab_size"' in output
    assert "a student no deeper than its teacher" in output


def test_a_student_that_goes_on_with_another_tokeniser_is_refused(tmp_path, general):
    vocabulary = [*VOCABULARY[:-2], VOCABULARY[-1], VOCABULARY[-2]]
    student = model_directory(tmp_path / "other", vocabulary=vocabulary)
    words = [*with_student(general, student), "--continue_train", "--output_dir", tmp_path / "out"]
    assert "the tokenisers of" in refuse("general_distill", words, tmp_path)


def test_an_accumulation_of_nothing_is_refused(tmp_path, general):
    words = [*general, "--gradient_accumulation_steps", 0, "--output_dir", tmp_path / "out"]
    assert "--gradient_accumulation_steps is 0; it must be at least 1" in refuse("general_distill", words, tmp_path)


def test_a_teacher_whose_labels_are_not_the_tasks_is_refused(task, tmp_path):
    other = model_directory(tmp_path / "other", labels=("cat", "dog"))
    assert "--teacher_labels" in refuse("task_distill", [*task, "--teacher_model", other], tmp_path)


def test_a_student_without_weights_cannot_start_a_task_stage(task, tmp_path, inputs):
    assert "holds no weights" in refuse("task_distill", [*task, "--student_model", inputs / "student"], tmp_path)


# --- the run ---


def test_an_output_directory_with_foreign_files_is_left_alone(tmp_path, general):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("x")
    output = refuse("general_distill", [*general, "--output_dir", tmp_path / "out"], tmp_path)
    assert "thesis.tex" in output


def test_the_output_directory_of_another_run_is_refused_with_what_differs(tmp_path, general):
    words = [*general, "--output_dir", tmp_path / "out", "--max_steps", 2]
    run_ranks("general_distill", words, log=tmp_path / "log").check()
    output = refuse("general_distill", [*words, "--seed", 7], tmp_path)
    assert "seed was 42, now 7" in output


def test_a_misspelt_deepspeed_key_a_bad_batch_a_wrong_dtype_and_an_unknown_flag_are_reported_together(
    tmp_path, general
):
    (tmp_path / "ds.json").write_text(json.dumps({"zero_optimisation": {"stage": 2}}))
    words = [*general, "--output_dir", tmp_path / "out", "--deepspeed_config", tmp_path / "ds.json"]
    words += ["--gradient_accumulation_steps", 5, "--lerning_rate", 1, "--teacher_dtype", "fp16"]
    output = refuse("general_distill", words, tmp_path)
    assert "did you mean zero_optimization?" in output
    assert "--train_batch_size 12 does not divide over 1 rank(s) x 5 accumulation step(s); take 10 or 15" in output
    assert "--lerning_rate" in output
    assert "--teacher_dtype fp16 is not supported on a CPU" in output


def test_on_two_ranks_rank_0_alone_speaks(tmp_path, general):
    words = [*general, "--output_dir", tmp_path / "out", "--train_batch_size", 13]
    output = refuse("general_distill", words, tmp_path, world_size=2)
    assert "take 12 or 14" in output
    assert (tmp_path / "log.rank1").read_text() == ""


def test_the_deepspeed_launcher_hands_exit_code_2_on(tmp_path, general):
    words = [*general, "--output_dir", tmp_path / "out", "--train_batch_size", 13]
    command = ["deepspeed", "--num_gpus", 2, "--master_port", free_port(), "launchers/general_distill.py", *words]
    finished = run_command_line(command)
    assert finished.returncode == 2, finished.output
    assert finished.output.count("error: ") == 1
    assert "Traceback" not in finished.output
    assert not (tmp_path / "out").exists()
