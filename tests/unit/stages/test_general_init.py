"""How students of general distillation get their first weights."""

from __future__ import annotations

import json
import re
import shutil

import pytest

from tests.support.fixtures import with_student
from tests.support.models import config_directory
from tests.support.runs import read_metrics, run_ranks
from tinybert_ds.arguments import GeneralDistillArguments, parse_arguments

pytestmark = pytest.mark.slow  # whole commands

TOKENS_TAKEN = "the student starts from its teacher, by ([0-9]+) tokens of text"


@pytest.fixture(scope="module")
def unsaid(general):
    """Return the arguments of a general distillation of one step that do not say how its student starts."""
    place = general.index("--init")
    return [*general[:place], *general[place + 2 :], "--max_steps", 1]


@pytest.fixture(scope="module")
def started(unsaid, tmp_path_factory):
    """Return the metrics of one step from the teacher's weights, and what was printed."""
    folder = tmp_path_factory.mktemp("started")
    run = run_ranks("general_distill", [*unsaid, "--output_dir", folder / "out"], log=folder / "log").check()
    return read_metrics(folder / "out"), run.output


def test_a_student_starts_from_its_teacher_unless_told_otherwise(started, one_rank):
    metrics, output = started
    assert metrics[0]["attention_loss"] < 0.5 * one_rank[0]["attention_loss"]
    assert metrics[0]["hidden_loss"] < 0.5 * one_rank[0]["hidden_loss"]
    assert "projections taken over from the student's start" in output


def test_two_ranks_start_from_the_same_student_as_one(started, unsaid, tmp_path):
    run_ranks(
        "general_distill", [*unsaid, "--output_dir", tmp_path / "out"], world_size=2, log=tmp_path / "log"
    ).check()
    expected, found = started[0][0], read_metrics(tmp_path / "out")[0]
    for name in ("attention_loss", "hidden_loss"):
        assert found[name] == pytest.approx(expected[name], rel=2e-5)


def test_several_students_start_from_one_teacher_on_as_much_text_as_is_asked_for(started, unsaid, inputs, tmp_path):
    other = config_directory(tmp_path / "other", num_hidden_layers=1)
    words = [*with_student(unsaid, inputs / "student", other), "--output_dir", tmp_path / "out"]
    output = run_ranks("general_distill", [*words, "--calibration_tokens", 500], log=tmp_path / "log").check().output
    (all_there_are,) = re.findall(TOKENS_TAKEN, started[1])
    tokens = re.findall(TOKENS_TAKEN, output)
    assert len(tokens) == 2
    assert 500 <= int(tokens[0]) < int(all_there_are) / 2  # whole blocks


def test_a_student_without_a_closed_form_starts_from_random_weights_and_is_told_why(unsaid, tmp_path):
    wide = config_directory(tmp_path / "wide", hidden_size=96)
    words = [*with_student(unsaid, wide), "--output_dir", tmp_path / "out"]
    output = run_ranks("general_distill", words, log=tmp_path / "log").check().output
    assert "starts from random weights: the student's hidden_size 96 is larger" in output


def test_a_student_without_a_closed_form_is_refused_where_one_is_asked_for(unsaid, tmp_path):
    wide = config_directory(tmp_path / "wide", hidden_size=96)
    words = [*with_student(unsaid, wide), "--init", "teacher", "--output_dir", tmp_path / "out"]
    finished = run_ranks("general_distill", words, log=tmp_path / "log")
    assert finished.returncode == 2
    assert "the student's hidden_size 96 is larger" in finished.output


@pytest.mark.parametrize("start", ["random", "svd"])
def test_a_run_goes_on_as_it_began_with_the_command_of_an_earlier_version(unsaid, tmp_path, start):
    words = [*unsaid, "--output_dir", tmp_path / "out"]
    begun = run_ranks("general_distill", [*words, "--init_embeddings", start], log=tmp_path / "log").check().output
    assert begun.count("--init_embeddings is called --init now") == 1
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["identity"]["init_embeddings"] == start
    again = run_ranks("general_distill", words, world_size=2, log=tmp_path / "again").check().output
    assert "the student starts" not in again
    assert json.loads((tmp_path / "out" / "run.json").read_text())["identity"] == record["identity"]
    other = run_ranks("general_distill", [*words, "--init", "teacher"], log=tmp_path / "other")
    assert other.returncode == 2
    assert f"init_embeddings was '{start}', now 'teacher'" in other.output


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--init", "teacher", "--continue_train"], "--init teacher and --continue_train contradict each other"),
        (["--init", "teacher", "--teacher_engine", "zero3"], "--init teacher has the whole teacher on every rank"),
    ],
)
def test_contradictions_about_the_start_are_refused(more, said):
    basis = ["--pregenerated_data", "d", "--teacher_model", "t", "--student_model", "s", "--output_dir", "o"]
    _, problems = parse_arguments(GeneralDistillArguments, [*basis, *more], "general_distill.py")
    assert said in "\n".join(problems)


@pytest.fixture(scope="module")
def interrupted(unsaid, tmp_path_factory):
    """Return the directory of a run of one step that goes on to three, and the arguments of the latter."""
    folder = tmp_path_factory.mktemp("interrupted")
    words = [*unsaid[:-2], "--output_dir", folder / "out", "--save_steps", 1, "--lr_schedule", "constant"]
    run_ranks("general_distill", [*words, "--max_steps", 1], log=folder / "log").check()
    return folder / "out", [*words, "--max_steps", 3]


def test_a_run_that_goes_on_does_not_make_its_start_again_and_ends_as_one_that_never_stopped(interrupted, tmp_path):
    directory, words = interrupted
    whole = [*words, "--output_dir", tmp_path / "whole"]
    run_ranks("general_distill", whole, log=tmp_path / "whole_log").check()
    output = run_ranks("general_distill", words, log=tmp_path / "log").check().output
    assert "the student's start is the one that this run began with" in output
    assert "the student starts from its teacher" not in output
    ends = [(folder / "model.safetensors").read_bytes() for folder in (directory, tmp_path / "whole")]
    assert ends[0] == ends[1]


def test_a_run_that_was_stopped_before_its_first_step_begins_with_the_start_that_it_kept(interrupted, tmp_path):
    directory, words = interrupted
    (kept,) = (directory / "checkpoints").glob("start-*.safetensors")
    (tmp_path / "out" / "checkpoints").mkdir(parents=True)
    shutil.copy(kept, tmp_path / "out" / "checkpoints")
    again = [*words, "--output_dir", tmp_path / "out"]
    output = run_ranks("general_distill", again, log=tmp_path / "log").check().output
    assert "the student's start is the one that this run began with" in output


def test_a_kept_start_that_is_damaged_is_made_anew(interrupted, tmp_path):
    directory, words = interrupted
    (kept,) = (directory / "checkpoints").glob("start-*.safetensors")
    content = kept.read_bytes()
    kept.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    longer = [*words[:-1], 4]
    output = run_ranks("general_distill", longer, log=tmp_path / "log").check().output
    assert f"{kept} is damaged and is made anew" in output
    assert "the student starts from its teacher" in output
    assert kept.read_bytes() == content
