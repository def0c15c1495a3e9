"""What a student's predictions are learned from, and the flags that do not go with it."""

from __future__ import annotations

from typing import NamedTuple

from tinybert_ds.arguments import TaskDistillArguments
from tinybert_ds.arguments.option import column_problems
from tinybert_ds.data.task_spec import GROUPS, TaskSpec
from tinybert_ds.targets import SCORES, target_of

_WITHOUT_TEACHER = "only --do_eval, and --pred_distill with `teacher` in the task file, run without a teacher"


class PredictionWeights(NamedTuple):
    """Factors of the losses of the prediction stage."""

    teacher: float
    labels: float


def prediction_weights(arguments: TaskDistillArguments, spec: TaskSpec) -> PredictionWeights:
    """Say what the prediction stage learns from: the teacher, or what the files say where the target learns that."""
    if _learns_gold(arguments, spec):
        return PredictionWeights(teacher=0.0, labels=arguments.prediction_weight)
    return PredictionWeights(teacher=arguments.soft_label_weight, labels=arguments.label_weight)


def _learns_gold(arguments: TaskDistillArguments, spec: TaskSpec) -> bool:
    """Whether the files' own answers take the place of the teacher's; where these are columns, they are wanted."""
    in_columns = arguments.pred_distill and spec.teacher is not None
    return target_of(spec).learns_gold and not in_columns and arguments.regression_target == "gold"


def prediction_problems(arguments: TaskDistillArguments, spec: TaskSpec) -> list[str]:
    """Flags of the prediction stage that do not fit the task's target."""
    target, problems = target_of(spec), []
    if arguments.aug_train and target.not_augmented:
        problems.append(f"--aug_train: {target.not_augmented}")
    what = target.noun
    if not target.learns_gold and arguments.regression_target != "gold":
        problems.append(f"--regression_target is for scores; task {spec.name} has {what}: see --label_weight")
    if not target.softens:
        problems += [
            f"--{name} is for labels; task {spec.name} has {what}, which are learned by their squared error: leave it "
            "out"
            for name, given in (
                ("temperature", arguments.temperature != 1),
                ("squared_temperature", arguments.squared_temperature),
            )
            if given
        ]
    forms = ("cross_entropy", *target.other_forms)
    if arguments.prediction_loss not in forms:
        problems.append(
            f"--prediction_loss {arguments.prediction_loss} is for labels; task {spec.name} has {what}, whose loss has "
            "one form: leave it out"
        )
    kind = spec.teacher.kind if arguments.pred_distill and spec.teacher is not None else None
    if arguments.prediction_loss == "mse" and kind == "probabilities":
        problems.append(
            "--prediction_loss mse compares logits, which probabilities in the columns of `teacher` do not tell; take "
            "kl or cross_entropy, or columns of `kind: logits`"
        )
    if arguments.label_mixing != "constant" and not target.mixes:
        problems.append(
            f"--label_mixing {arguments.label_mixing} is for labels, which a teacher gives probabilities; task "
            f"{spec.name} has {what}: leave it out"
        )
    if _learns_gold(arguments, spec) and arguments.label_weight:
        problems.append(
            f"--label_weight beside --regression_target gold would count the gold {what} of task {spec.name} twice; "
            "take --regression_target teacher, or leave it out"
        )
    return problems


def margin_problems(arguments: TaskDistillArguments, spec: TaskSpec, world_size: int) -> list[str]:
    """What keeps the rows of a task from being compared in pairs."""
    if arguments.score_loss != "margin_mse":
        return []
    problems = []
    if target_of(spec) is not SCORES or GROUPS not in spec.splits["train"].more_columns:
        problems.append(
            f"--score_loss margin_mse compares rows of one query; task {spec.name} has no `group` column beside "
            "`target: scores`"
        )
    elif not prediction_weights(arguments, spec).teacher:
        problems.append("--score_loss margin_mse learns the teacher's margins: add --regression_target teacher")
    parts = 2 * world_size * arguments.gradient_accumulation_steps
    if arguments.train_batch_size % parts:
        problems.append(
            f"--train_batch_size {arguments.train_batch_size}: with --score_loss margin_mse ranks take whole pairs; "
            f"give a multiple of {parts}"
        )
    return problems


def teacher_problems(arguments: TaskDistillArguments, spec: TaskSpec) -> list[str]:
    """What is wrong with the choice between a teacher that runs and one that is a column of the training rows."""
    if not arguments.pred_distill or spec.teacher is None:
        return [] if arguments.teacher_model is not None else ["--teacher_model DIR is missing; " + _WITHOUT_TEACHER]
    problems = column_problems(arguments)
    if arguments.teacher_model is not None:
        problems.append(
            f"--teacher_model and `teacher` of the task file {arguments.task_file} name a teacher each: leave out the "
            "one that the student is not to learn from"
        )
    if arguments.aug_train:
        problems.append(
            "--aug_train: the columns of `teacher` in the task file are about the rows as they were; leave the flag "
            "out, or let data_tools/label_rows.py write new ones"
        )
    return problems
