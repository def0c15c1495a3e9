"""Several students that learn from one teacher pass are what each of them would be alone."""

from __future__ import annotations

import json

import pytest

from tests.support.fixtures import with_student
from tests.support.models import config_directory
from tests.support.runs import read_metrics, run_ranks

STAGE = "general_distill"


def assert_same_run(together, alone):
    assert read_metrics(together) == read_metrics(alone)
    assert (together / "model.safetensors").read_bytes() == (alone / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def students(inputs, tmp_path_factory):
    """Return two configs of one name; the second student has another depth, and dropout."""
    other = tmp_path_factory.mktemp("others") / "student"
    config_directory(other, num_hidden_layers=1, hidden_dropout_prob=0.2)
    return inputs / "student", other


@pytest.fixture(scope="module")
def alone(general, students, tmp_path_factory):
    """Return the output directories of each student's own run."""
    folder = tmp_path_factory.mktemp("alone")
    for number, student in enumerate(students):
        words = [*with_student(general, student), "--output_dir", folder / str(number), "--max_steps", 16]
        run_ranks(STAGE, words, log=folder / f"log{number}").check()
    return [folder / "0", folder / "1"]


def test_each_of_two_students_is_what_it_is_alone_also_when_killed_between_their_checkpoints(
    general, students, alone, tmp_path
):
    out = tmp_path / "out"
    words = [*with_student(general, *students), "--output_dir", out, "--max_steps", 16]
    run_ranks(STAGE, words, log=tmp_path / "log").check()
    together = [out / "student", out / "student-2"]
    for directory, own in zip(together, alone, strict=True):
        assert_same_run(directory, own)

    again = run_ranks(STAGE, words, log=tmp_path / "again").check()
    assert again.output.count("nothing to do") == 2

    for directory in together:  # as if the run had been killed after the first student's last checkpoint
        record = json.loads((directory / "run.json").read_text())
        (directory / "run.json").write_text(json.dumps({**record, "finished": None}))
    (out / "student-2" / "checkpoints" / "step-00000016" / "complete.json").unlink()
    (out / "stalls").mkdir()  # as if it had ended by a stall
    resumed = run_ranks(STAGE, words, log=tmp_path / "resumed").check()
    assert resumed.output.count("resumed from") == 2
    assert resumed.output.count("(step 14)") == 2
    for directory, own in zip(together, alone, strict=True):
        assert_same_run(directory, own)

    third = run_ranks(STAGE, [*words, "--student_model", students[0]], log=tmp_path / "third")
    assert third.returncode == 2
    assert "what differs: students was" in third.output


def test_a_directory_with_other_things_is_refused_for_several_students(general, students, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    words = [*with_student(general, *students), "--output_dir", tmp_path / "out"]
    refused = run_ranks(STAGE, words, log=tmp_path / "log")
    assert refused.returncode == 2
    assert "is for the students student, student-2 and holds other things: notes.txt" in refused.output


def test_the_student_that_does_not_fit_is_named(general, inputs, tmp_path):
    misfit = tmp_path / "misfit"
    config_directory(misfit, num_attention_heads=2)
    words = [*with_student(general, inputs / "student", misfit), "--output_dir", tmp_path / "out"]
    refused = run_ranks(STAGE, words, log=tmp_path / "log")
    assert refused.returncode == 2
    assert f"--student_model {misfit}: the student has 2 attention heads" in refused.output
