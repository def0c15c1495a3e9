"""A teacher that is only a column in a file, from the command that writes it to the student that learns from it."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
import torch
from transformers import AutoModelForTokenClassification

from tests.support.models import model_directory, tiny_config, write_tokenizer
from tests.support.runs import read_metrics, run_ranks

SMALL = {"num_hidden_layers": 2, "hidden_size": 24, "intermediate_size": 32}
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
    model_directory(folder / "student", labels=("negative", "positive"), seed=3, scale=1.0, **SMALL)
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
        (["--label_weight", 1], "labelled.jsonl, line 1: no column 'label'"),
        (["--aug_train"], "are about the rows as they were"),
    ],
)
def test_what_does_not_go_with_columns_is_refused_before_any_work(folder, labelled, tmp_path, flags, said):
    flags = [folder / flag if flag == "teacher" else flag for flag in flags]
    finished = distil(folder, "columns.yaml", "refused", "--cache_dir", tmp_path, *flags)  # nothing is tokenised yet
    assert finished.returncode == 2, finished.output
    assert said in finished.output
    assert "Traceback" not in finished.output


@pytest.fixture(scope="module")
def words_folder(tmp_path_factory):
    """Return a directory with a task of tags in lines of words, some sentences longer than a row, and two models."""
    folder = tmp_path_factory.mktemp("words")
    rng = random.Random(0)
    for name in ("train", "dev"):
        lines = []
        for _ in range(40):
            sentence = rng.choices(["films", "city", "was", "good", "road"], k=rng.randint(1, 25))
            lines += [*(f"{word} {'X' if word == 'city' else 'O'}\n" for word in sentence), "\n"]
        (folder / f"{name}.txt").write_text("".join(lines))
    for name, seed, labels, size in (("teacher", 1, ("X", "O"), {}), ("student", 3, ("O", "X"), SMALL)):
        write_tokenizer(folder / name)
        generator = torch.Generator().manual_seed(seed)
        model = AutoModelForTokenClassification.from_config(tiny_config(id2label=dict(enumerate(labels)), **size))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
        model.save_pretrained(folder / name)
    columns = "text: 0\nlabel: -1\nlabels: [O, X]\nmetric: tag_accuracy\nmax_seq_length: 16\n"
    for name, file, more in (("live", "train.txt", ""), ("columns", "labelled.jsonl", "teacher: {columns: teacher}\n")):
        (folder / f"{name}.yaml").write_text(f"target: tags\nfiles: {{train: {file}, dev: dev.txt}}\n{columns}{more}")
    return folder


def test_a_student_of_tags_learns_from_columns_what_it_learns_live(words_folder):
    folder = words_folder
    words = ["--model", folder / "teacher", "--task_file", folder / "live.yaml", "--data_dir", folder]
    words += ["--output", folder / "labelled.jsonl", "--dtype", "fp32"]
    output = run_ranks("label_rows", words, world_size=2, log=folder / "label.log").check().output
    assert "labelled.jsonl: 40 sentences of train with the column teacher" in output
    rows = [json.loads(line) for line in (folder / "labelled.jsonl").read_text().splitlines()]
    again = "".join("".join(f"{w} {t}\n" for w, t in zip(row["0"], row["-1"], strict=True)) + "\n" for row in rows)
    assert again == (folder / "train.txt").read_text()
    distil(folder, "live.yaml", "live", "--teacher_model", folder / "teacher", "--teacher_dtype", "fp32").check()
    unlabelled = [{name: value for name, value in row.items() if name != "-1"} for row in rows]
    (folder / "labelled.jsonl").write_text("".join(json.dumps(row) + "\n" for row in unlabelled))
    distil(folder, "columns.yaml", "from_columns").check()
    live, found = (
        [(line["loss"], line["grad_norm"]) for line in read_metrics(folder / out) if "loss" in line]
        for out in ("live", "from_columns")
    )
    assert len(found) == 12
    assert np.array(found) == pytest.approx(np.array(live), rel=1e-4)


def test_a_target_without_columns_is_refused_with_what_to_do_instead(folder, tmp_path):
    (tmp_path / "task.yaml").write_text(
        "target: spans\nfiles: {train: t.json, dev: t.json}\ntext: [q, c]\nlabel: answers\nmetric: answer_f1\n"
    )
    words = ["--model", folder / "teacher", "--task_file", tmp_path / "task.yaml", "--data_dir", tmp_path]
    finished = run_ranks("label_rows", [*words, "--output", tmp_path / "out.jsonl"], log=tmp_path / "log")
    assert finished.returncode == 2
    assert "for the extraction of answers, which learns from no columns; give --teacher_model" in finished.output
