"""Relations between tokens in the place of attention scores, through the commands."""

from __future__ import annotations

import json
import shutil

import pytest

from tests.support.fixtures import with_student
from tests.support.models import config_directory, model_directory
from tests.support.runs import read_metrics, run_ranks

pytestmark = pytest.mark.slow  # whole commands

STAGE = "general_distill"
RELATIONS = ["--attention_loss", "relations_kl", "--relation_layers", "1:3,2:2", "--relations", "qq=1,vv=2"]


@pytest.fixture(scope="module")
def students(inputs, tmp_path_factory):
    """Return two students whose numbers of heads are not the teacher's 4."""
    folder = tmp_path_factory.mktemp("students")
    three = config_directory(folder / "three", num_attention_heads=3)
    six = config_directory(folder / "six", num_attention_heads=6, hidden_size=36)
    return three, six


@pytest.fixture(scope="module")
def words(general):
    return [*general, *RELATIONS, "--max_steps", 16]


@pytest.fixture(scope="module")
def alone(words, students, tmp_path_factory):
    """Return the output directory of the first student's own run, and what was printed."""
    folder = tmp_path_factory.mktemp("alone")
    run = run_ranks(STAGE, [*with_student(words, students[0]), "--output_dir", folder / "out"], log=folder / "log")
    return folder / "out", run.check().output


def test_a_student_of_another_number_of_heads_learns_the_named_relations(alone):
    directory, output = alone
    metrics = read_metrics(directory)
    trained = [line for line in metrics if "loss" in line]
    assert {name for name in trained[0] if "relation" in name or "attention" in name} == {
        "relation_loss",
        "relation_loss/layer_1",
        "relation_loss/layer_2",
    }
    assert trained[-1]["relation_loss"] < 0.97 * trained[0]["relation_loss"]
    for line in trained:
        assert line["loss"] == pytest.approx(line["relation_loss"] + line["hidden_loss"], rel=1e-5)
    held_out = [line["eval_relation_loss"] for line in metrics if "eval_loss" in line]
    assert held_out[-1] < held_out[0]
    assert "relations of student:teacher layers 1:3, 2:2 in 24 heads" in output


def test_a_run_that_was_killed_goes_on_exactly(alone, words, students, tmp_path):
    directory, _ = alone
    out = tmp_path / "out"
    own = [*with_student(words, students[0]), "--output_dir", out]
    shutil.copytree(directory, out)
    (out / "model.safetensors").unlink()
    record = json.loads((out / "run.json").read_text())
    (out / "run.json").write_text(json.dumps({**record, "finished": None}))
    (out / "checkpoints" / "step-00000016" / "complete.json").unlink()
    assert "(step 14)" in run_ranks(STAGE, own, log=tmp_path / "again").check().output
    assert read_metrics(out) == read_metrics(directory)
    assert (out / "model.safetensors").read_bytes() == (directory / "model.safetensors").read_bytes()

    other = run_ranks(STAGE, [*own, "--relations", "qq=1,vv=1"], log=tmp_path / "other")
    assert other.returncode == 2
    assert "relations was" in other.output


def test_several_students_of_any_number_of_heads_are_what_they_are_alone(alone, words, students, tmp_path):
    out = tmp_path / "out"
    run_ranks(STAGE, [*with_student(words, *students), "--output_dir", out], log=tmp_path / "log").check()
    assert read_metrics(out / "three") == read_metrics(alone[0])
    assert (out / "three" / "model.safetensors").read_bytes() == (alone[0] / "model.safetensors").read_bytes()
    assert "relation_loss/layer_2" in read_metrics(out / "six")[0]


def test_two_ranks_with_the_published_normalisation_give_the_losses_of_one(words, students, tmp_path):
    own = [*with_student(words, students[0]), "--padding", "reference", "--max_steps", 4]
    for ranks in (1, 2):
        run_ranks(
            STAGE, [*own, "--output_dir", tmp_path / str(ranks)], world_size=ranks, log=tmp_path / f"log{ranks}"
        ).check()
    one, two = (read_metrics(tmp_path / str(ranks)) for ranks in (1, 2))
    for line, expected in zip(two, one, strict=True):
        assert line.get("relation_loss", 0) == pytest.approx(expected.get("relation_loss", 0), rel=1e-4)


def test_layers_of_the_teacher_above_the_last_one_compared_are_not_computed(words, students, tmp_path):
    own = [*with_student(words, students[0]), "--hidden_weight", 0, "--max_steps", 1]
    output = run_ranks(STAGE, [*own, "--output_dir", tmp_path / "out"], log=tmp_path / "log").check().output
    assert "the teacher's last 1 of 4 layers are not read and not computed" in output


def test_heads_that_do_not_divide_the_widths_are_refused(words, students, tmp_path):
    own = [*with_student(words, students[0]), "--relation_heads", 5, "--output_dir", tmp_path / "out"]
    refused = run_ranks(STAGE, own, log=tmp_path / "log")
    assert refused.returncode == 2
    assert "5 relation heads do not divide the student's width 24 and the teacher's 48" in refused.output


def test_the_intermediate_stage_compares_relations_too(inputs, tmp_path):
    teacher = model_directory(tmp_path / "teacher", labels=("negative", "positive"))
    size = {"num_hidden_layers": 2, "hidden_size": 24, "intermediate_size": 32, "num_attention_heads": 6}
    student = model_directory(tmp_path / "student", seed=3, scale=1.0, **size)
    words = ["--data_dir", inputs / "task", "--task_name", "sst-2", "--train_batch_size", 16, "--logging_steps", 1]
    words += ["--teacher_model", teacher, "--student_model", student, "--learning_rate", 3e-3, "--eval_step", 6]
    words += ["--attention_loss", "relations", "--max_steps", 12, "--output_dir", tmp_path / "out"]
    run_ranks("task_distill", words, log=tmp_path / "log").check()
    losses = [line["relation_loss/layer_2"] for line in read_metrics(tmp_path / "out") if "loss" in line]
    assert losses[-1] < losses[0]
    results = json.loads((tmp_path / "out" / "eval_results.json").read_text())
    assert results["eval_relation_loss"] > 0
