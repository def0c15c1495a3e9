import dataclasses

import pytest

from tinybert_ds.arguments import TaskDistillArguments, identity_of, parse_arguments
from tinybert_ds.data.task_spec import TeacherColumns
from tinybert_ds.data.tasks import TASKS
from tinybert_ds.stages.prediction_choice import teacher_problems
from tinybert_ds.stages.task_distill import prediction_problems, prediction_weights

COMMAND = "--pred_distill --student_model s --teacher_model t --data_dir d --output_dir o --task_name sst-2".split()


CONFIDENCE = ["--label_mixing", "confidence", "--label_weight", "1"]


def parse(*words):
    arguments, problems = parse_arguments(TaskDistillArguments, [*COMMAND, *words], "command.py")
    assert problems == []
    return arguments


@pytest.mark.parametrize(
    ("task", "words", "expected"),
    [
        ("sst-2", [], (1.0, 0.0)),
        ("sst-2", ["--prediction_weight", "0.5", "--label_weight", "2"], (0.5, 2.0)),
        ("sst-2", ["--prediction_weight", "0.5", "--temperature", "3", "--squared_temperature"], (4.5, 0.0)),
        ("sts-b", [], (0.0, 1.0)),
        ("sts-b", ["--regression_target", "teacher"], (1.0, 0.0)),
        ("sts-b", ["--regression_target", "teacher", "--label_weight", "0.3"], (1.0, 0.3)),
    ],
)
def test_labels_are_learned_from_the_teacher_and_scores_from_the_gold_ones_unless_told_otherwise(task, words, expected):
    assert prediction_weights(parse(*words), TASKS[task]) == expected
    assert prediction_problems(parse(*words), TASKS[task]) == []


def with_columns(task, kind):
    return dataclasses.replace(TASKS[task], teacher=TeacherColumns(columns=("a", "b"), kind=kind))


def test_columns_of_a_teacher_take_the_place_of_gold_scores_where_they_are_read():
    spec = with_columns("sts-b", "scores")
    assert prediction_weights(parse(), spec) == (1.0, 0.0)
    joint, _ = parse_arguments(TaskDistillArguments, ["--joint", *COMMAND[1:]], "command.py")
    assert prediction_weights(joint, spec) == (0.0, 1.0)


def test_flags_about_asking_a_teacher_are_refused_where_what_it_said_is_in_columns():
    words = "--pred_distill --student_model s --data_dir d --output_dir o --task_file t.yaml".split()
    given = "--no_teacher_cache --teacher_labels a,b --teacher_engine zero3 --teacher_dtype fp32".split()
    arguments, problems = parse_arguments(TaskDistillArguments, [*words, *given], "command.py")
    assert problems == []
    found = teacher_problems(arguments, with_columns("sst-2", "logits"))
    assert sorted(problem.partition(" is about asking a teacher")[0] for problem in found) == [
        "--no_teacher_cache",
        "--teacher_dtype fp32",
        "--teacher_engine zero3",
        "--teacher_labels a,b",
    ]
    alone, _ = parse_arguments(TaskDistillArguments, words, "command.py")
    assert teacher_problems(alone, with_columns("sst-2", "logits")) == []


@pytest.mark.parametrize(("kind", "refused"), [("logits", False), ("probabilities", True)])
def test_squared_errors_of_logits_need_logits(kind, refused):
    found = prediction_problems(parse("--prediction_loss", "mse"), with_columns("sst-2", kind))
    assert [problem for problem in found if "which probabilities" in problem] == found
    assert bool(found) is refused


@pytest.mark.parametrize(
    ("task", "words", "said"),
    [
        ("sst-2", ["--regression_target", "teacher"], "task sst-2 has labels"),
        ("sts-b", ["--temperature", "2"], "--temperature is for labels"),
        ("sts-b", ["--label_weight", "1"], "twice"),
        ("sts-b", ["--prediction_loss", "mse"], "--prediction_loss mse is for labels"),
        ("sts-b", ["--regression_target", "teacher", *CONFIDENCE], "--label_mixing confidence is for labels"),
    ],
)
def test_flags_for_another_kind_of_task_are_refused(task, words, said):
    (problem,) = prediction_problems(parse(*words), TASKS[task])
    assert said in problem


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--prediction_loss", "mse", "--temperature", "2"], "--prediction_loss mse compares logits"),
        (["--prediction_loss", "kl", "--squared_temperature"], "--squared_temperature is in --prediction_loss kl"),
        (["--label_mixing", "confidence"], "give --label_weight and --prediction_weight above 0"),
        (["--joint"], "--joint and --pred_distill contradict each other"),
        (["--hidden_weight", "0"], "--hidden_weight 0.0 is for the intermediate stage and --joint"),
    ],
)
def test_flags_that_contradict_each_other_are_refused(words, said):
    _, problems = parse_arguments(TaskDistillArguments, [*COMMAND, *words], "command.py")
    assert said in "\n".join(problems)


def test_a_joint_stage_takes_the_flags_of_both_and_decays_as_the_prediction_stage_does():
    words = [*COMMAND[1:], "--joint", "--hidden_weight", "0.1", "--temperature", "2", "--label_weight", "1"]
    arguments, problems = parse_arguments(TaskDistillArguments, words, "command.py")
    assert problems == []
    assert (arguments.stage, arguments.schedule) == ("joint", "linear")


def test_runs_of_versions_without_these_flags_are_the_same_runs():
    names = {"prediction_loss", "label_mixing", "loss_balance"}
    assert not names & set(identity_of(parse()))
    assert identity_of(parse("--prediction_loss", "kl"))["prediction_loss"] == "kl"
