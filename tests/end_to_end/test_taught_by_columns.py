"""A teacher that is only a column in a file, from the command that writes it to the student that learns from it."""

from __future__ import annotations

import json

import pytest

from tests.support.models import model_directory
from tests.support.runs import read_metrics, run_ranks

TASK = """
files: {{train: {train}, dev: dev.tsv}}
text: sentence
label: label
labels: [negative, positive]
aliases: {{"0": negative, "1": positive}}
metric: accuracy
{more}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory, inputs):
    """Return a directory with the sentiment task, its training rows without labels, a teacher and a student."""
    folder = tmp_path_factory.mktemp("columns")
    for name in ("train.tsv", "dev.tsv"):
        text = (inputs / "task" / name).read_text()
        if name == "train.tsv":
            text = "".join(line.partition("\t")[0] + "\n" for line in text.splitlines())
        (folder / name).write_text(text)
    model_directory(folder / "teacher", labels=("positive", "negative"), seed=1)  # not in the task's order
    size = {"num_hidden_layers": 2, "hidden_size": 24, "intermediate_size": 32}
    model_directory(folder / "student", labels=("negative", "positive"), seed=3, scale=1.0, **size)
    (folder / "live.yaml").write_text(TASK.format(train="train.tsv", more=""))
    more = "teacher: {columns: answers}"
    (folder / "columns.yaml").write_text(TASK.format(train="labelled.jsonl", more=more))
    return folder


def distil(folder, task, out, *flags, world_size=1):
    words = [
        "--pred_distill",
        "--student_model",
        folder / "student",
        "--data_dir",
        folder,
        "--task_file",
        folder / task,
    ]
    words += ["--learning_rate", 3e-3, "--train_batch_size", 16, "--max_steps", 12, "--eval_step", 6]
    words += ["--logging_steps", 1, "--output_dir", folder / out, *flags]
    return run_ranks("task_distill", words, world_size=world_size, log=folder / f"{out}.log")


@pytest.fixture(scope="module")
def labelled(folder):
    """Write the teacher's answers; return the command."""
    words = ["--model", folder / "teacher", "--task_file", folder / "live.yaml", "--data_dir", folder]
    words += ["--output", folder / "labelled.jsonl", "--column", "answers", "--dtype", "fp32"]
    output = run_ranks("label_rows", words, log=folder / "label.log").check().output
    assert "labelled.jsonl: 60 rows of train with the column answers" in output
    assert "`files: {train: labelled.jsonl, ...}`" in output  # names in `files` begin in --data_dir
    return words


def test_a_student_trained_from_columns_equals_the_one_trained_live_step_by_step(folder, labelled):
    distil(folder, "live.yaml", "live", "--teacher_model", folder / "teacher", "--teacher_dtype", "fp32").check()
    distil(folder, "columns.yaml", "from_columns").check()
    live, found = read_metrics(folder / "live"), read_metrics(folder / "from_columns")
    assert [line["step"] for line in found] == [line["step"] for line in live]
    for line, expected in zip(found, live, strict=True):
        assert line.get("loss", 0) == pytest.approx(expected.get("loss", 0), rel=1e-4)
        assert line.get("eval_accuracy") == expected.get("eval_accuracy")
    assert sum("loss" in line for line in found) == 12
    assert json.loads((folder / "from_columns" / "run.json").read_text())["identity"]["teacher"] is None


def test_the_labelling_does_not_depend_on_the_number_of_ranks_and_is_done_once(folder, labelled, tmp_path):
    words = [*labelled]
    words[words.index("--output") + 1] = tmp_path / "again.jsonl"
    run_ranks("label_rows", words, world_size=2, log=tmp_path / "log").check()
    assert (tmp_path / "again.jsonl").read_bytes() == (folder / "labelled.jsonl").read_bytes()
    assert sorted(path.name for path in tmp_path.glob("again*")) == ["again.jsonl", "again.jsonl.made_of.json"]
    before = (tmp_path / "again.jsonl").stat().st_mtime_ns
    run_ranks("label_rows", words, log=tmp_path / "log").check()
    assert (tmp_path / "again.jsonl").stat().st_mtime_ns == before
    other = [*words, "--max_seq_length", 8]
    finished = run_ranks("label_rows", other, log=tmp_path / "log")
    assert finished.returncode == 2
    assert "is there and differs" in finished.output


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--teacher_model", "teacher"], "name a teacher each"),
        (["--label_weight", 1], r"the train split of task columns \(labelled.jsonl\) has no labels"),
        (["--aug_train"], "are about the rows as they were"),
    ],
)
def test_what_does_not_go_with_columns_is_refused_before_any_work(folder, labelled, tmp_path, flags, said):
    flags = [folder / flag if flag == "teacher" else flag for flag in flags]
    finished = distil(folder, "columns.yaml", "refused", *flags)
    assert finished.returncode == 2, finished.output
    assert said.replace("\\", "") in finished.output
    assert "Traceback" not in finished.output


def test_answers_for_words_are_refused_with_what_to_do_instead(folder, tmp_path):
    (tmp_path / "task.yaml").write_text(
        "target: tags\nfiles: {train: t.txt, dev: t.txt}\ntext: 0\nlabel: 1\nlabels: [O, X]\nmetric: tag_accuracy\n"
    )
    words = ["--model", folder / "teacher", "--task_file", tmp_path / "task.yaml", "--data_dir", tmp_path]
    finished = run_ranks("label_rows", [*words, "--output", tmp_path / "out.jsonl"], log=tmp_path / "log")
    assert finished.returncode == 2
    assert "is a tagging of words, which learns from no columns" in finished.output
