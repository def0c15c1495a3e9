import pytest

from tinybert_ds.arguments import TaskDistillArguments, parse_arguments
from tinybert_ds.data.tasks import TASKS
from tinybert_ds.stages.task_distill import prediction_problems, prediction_weights

COMMAND = "--pred_distill --student_model s --teacher_model t --data_dir d --output_dir o --task_name sst-2".split()


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


@pytest.mark.parametrize(
    ("task", "words", "said"),
    [
        ("sst-2", ["--regression_target", "teacher"], "task sst-2 has labels"),
        ("sts-b", ["--temperature", "2"], "--temperature is for labels"),
        ("sts-b", ["--label_weight", "1"], "twice"),
    ],
)
def test_flags_for_another_kind_of_task_are_refused(task, words, said):
    (problem,) = prediction_problems(parse(*words), TASKS[task])
    assert said in problem
