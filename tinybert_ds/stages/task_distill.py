"""Task distillation: intermediate layers, then the prediction layer; or evaluation alone (arXiv 1909.10351, 4.1)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tinybert_ds.arguments import TaskDistillArguments, identity_of, parse_arguments
from tinybert_ds.data.submission import format_predictions, read_index
from tinybert_ds.data.task_batches import TaskSource
from tinybert_ds.data.tasks import TaskSpec, find_task
from tinybert_ds.data.tokenizer import load_tokenizer, returns_token_types
from tinybert_ds.engine.loop import train
from tinybert_ds.engine.prediction import held_out_loss
from tinybert_ds.engine.ranks.process_group import write_on_main
from tinybert_ds.engine.run.run import Session, open_run
from tinybert_ds.errors import ConfigError, raise_all
from tinybert_ds.files import write_atomically
from tinybert_ds.hardware import inference_dtype
from tinybert_ds.models.build import Head, build_student, check_pair, find_student
from tinybert_ds.models.fingerprint import model_fingerprint
from tinybert_ds.models.pretrained import load_classifier, read_config
from tinybert_ds.objective import PredictionObjective
from tinybert_ds.stages.distillation import (
    Student,
    build_intermediate,
    classifying_student,
    export_student,
    require_same_tokenizer,
)
from tinybert_ds.stages.evaluate import (
    evaluate_directory,
    load_fine_tuned,
    require_results_directory,
    task_columns,
    write_results,
)
from tinybert_ds.stages.give_away import give_away
from tinybert_ds.stages.start import begin_evaluation, begin_training
from tinybert_ds.stages.task_data import TaskData, augmented, load_task
from tinybert_ds.stages.teacher_logits import logits_teacher

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    arguments, problems = parse_arguments(TaskDistillArguments, argv)
    if arguments.do_eval:
        _evaluate(begin_evaluation(arguments, problems))
        return
    session = begin_training(arguments, problems)
    spec = find_task(arguments.task_name, arguments.task_file)
    pair = _read_pair(arguments, spec)
    splits = ("train", *spec.eval_splits)
    train_spec = augmented(spec) if arguments.aug_train else spec
    task = load_task(
        train_spec, arguments.data_dir, splits, pair.tokenizer, pair.student_config, arguments, session.world
    )
    distil = _distil_predictions if arguments.pred_distill else _distil_layers
    write_results(session.output_dir, distil(session, pair, task), session.world)
    give_away(session, [session.output_dir], task)


class _Pair(NamedTuple):
    """A teacher and a student that fit each other and the task."""

    student_config: Any
    tokenizer: PreTrainedTokenizerFast
    layer_map: tuple[int, ...]
    columns: list[int]  # the teacher's output for each class of the task
    teacher_types: bool  # whether the teacher's tokeniser returns token types
    teacher: str  # its fingerprint
    student: str


def _read_pair(arguments: TaskDistillArguments, spec: TaskSpec) -> _Pair:
    teacher = cast(str, arguments.teacher_model)
    find_student(arguments.student_model, weights="load")
    teacher_config = read_config(teacher, role="teacher")
    student_config = read_config(arguments.student_model, role="student")
    layer_map = check_pair(
        teacher_config,
        student_config,
        layer_map=None if arguments.pred_distill else arguments.layer_map,
        projection=arguments.projection,
        attention=bool(arguments.attention_weight),
        padding_token=load_tokenizer(arguments.student_model, arguments.lower_case).pad_token_id,
    )
    tokenizer = require_same_tokenizer(arguments.student_model, teacher, arguments.lower_case)
    raise_all(prediction_problems(arguments, spec))
    if arguments.squared_temperature:
        logger.info("--squared_temperature: the same as --prediction_weight %g", arguments.soft_label_weight)
    columns = task_columns(teacher_config, spec, arguments.stated_labels, role="teacher")
    fingerprints = model_fingerprint(teacher), model_fingerprint(arguments.student_model)
    teacher_types = returns_token_types(load_tokenizer(teacher, arguments.lower_case))
    return _Pair(student_config, tokenizer, layer_map, columns, teacher_types, *fingerprints)


def _distil_layers(session: Session[TaskDistillArguments], pair: _Pair, task: TaskData) -> dict[str, float]:
    """Let the student imitate its teacher's hidden states and attention; return its held-out losses."""
    arguments, world = session.arguments, session.world
    source = _source(task, arguments)
    identity = _identity(session, pair, task, source, asks_teacher=True)
    with open_run(
        session,
        {session.output_dir: identity},
        title="intermediate distillation",
        source=source,
        evaluation_steps=arguments.eval_step,
    ) as run:
        if not run.finished:
            model, directory = _student_model(arguments, task.spec), Path(arguments.student_model)
            teacher, (student,) = build_intermediate(
                _teacher_model(arguments, task.spec),
                [Student(model, pair.layer_map, directory, token_types=task.token_types)],
                arguments,
                max_seq_length=task.max_seq_length,
                world=world,
                token_types=pair.teacher_types,
            )
            held_out = task.source(
                task.spec.eval_splits[0], task.batch_size, seed=0, padding=arguments.padding, shuffle=False
            )
            run.attach(
                student,
                evaluate=partial(held_out_loss, teacher=teacher, source=held_out, world=world),
                export=partial(export_student, tokenizer=pair.tokenizer, world=world),
            )
            train(run, teacher, overlap_teacher=arguments.overlap_teacher)
            run.finish()
        return run.results[0]


def _distil_predictions(session: Session[TaskDistillArguments], pair: _Pair, task: TaskData) -> dict[str, float]:
    """Let the student imitate its teacher's predictions; return the metrics of its best state."""
    arguments, world = session.arguments, session.world
    weights = prediction_weights(arguments, task.spec)
    source = _source(task, arguments)
    identity = _identity(session, pair, task, source, asks_teacher=bool(weights.teacher))
    with open_run(
        session,
        {session.output_dir: identity},
        title="prediction distillation",
        source=source,
        evaluation_steps=arguments.eval_step,
    ) as run:
        if not run.finished:
            objective = PredictionObjective(
                weight=weights.teacher,
                label_weight=weights.labels,
                temperature=arguments.temperature,
                regression=task.spec.is_regression,
                teacher_columns=pair.columns,
            )
            student = classifying_student(_student_model(arguments, task.spec), objective, arguments, task)
            teacher = None
            if weights.teacher:
                teacher = logits_teacher(arguments, task, pair.teacher, token_types=pair.teacher_types)
            export = partial(export_student, tokenizer=pair.tokenizer, world=world)
            run.attach(student, evaluate=task.evaluate_all, score=task.score, export=export)
            train(run, teacher, overlap_teacher=arguments.overlap_teacher)
            run.finish(judge=partial(evaluate_directory, task=task, pooler_relu=arguments.pooler_relu))
        return run.results[0]


def _evaluate(session: Session[TaskDistillArguments]) -> None:
    """Judge the student on the task, and write its predictions for another split where one is named."""
    arguments, world = session.arguments, session.world
    require_results_directory(session.output_dir)
    config = read_config(arguments.student_model, role="model")
    tokenizer = load_tokenizer(arguments.student_model, arguments.lower_case)
    spec = find_task(arguments.task_name, arguments.task_file)
    wanted = arguments.predict_split
    if wanted is not None and wanted not in spec.splits:
        raise ConfigError(f"--predict_split {wanted}: task {spec.name} has the splits {', '.join(spec.splits)}")
    splits = list(dict.fromkeys((*spec.eval_splits, *([wanted] if wanted else []))))
    task = load_task(spec, arguments.data_dir, splits, tokenizer, config, arguments, world)
    stated, relu = arguments.stated_labels, arguments.pooler_relu
    model = load_fine_tuned(arguments.student_model, task, pooler_relu=relu, stated_labels=stated)
    results = task.evaluate_all(model.module, columns=model.columns)
    write_results(session.output_dir, results, world)
    if wanted is not None:
        predictions = task.predict(model.module, wanted, columns=model.columns)
        content = format_predictions(spec, read_index(spec, Path(arguments.data_dir), wanted), predictions)
        path = session.output_dir / f"predictions_{wanted}.tsv"
        write_on_main(world, path, lambda: write_atomically(path, content))
        logger.info("predictions: %s", path)


class PredictionWeights(NamedTuple):
    """Factors of the losses of the prediction stage."""

    teacher: float
    labels: float


def prediction_weights(arguments: TaskDistillArguments, spec: TaskSpec) -> PredictionWeights:
    """Say what the prediction stage learns from: a regression learns the gold scores unless told otherwise."""
    if spec.is_regression and arguments.regression_target == "gold":
        return PredictionWeights(teacher=0.0, labels=arguments.prediction_weight)
    return PredictionWeights(teacher=arguments.soft_label_weight, labels=arguments.label_weight)


def prediction_problems(arguments: TaskDistillArguments, spec: TaskSpec) -> list[str]:
    """Flags of the prediction stage that do not fit the kind of task."""
    if not spec.is_regression:
        if arguments.regression_target == "gold":
            return []
        return [f"--regression_target is for scores; task {spec.name} has labels: see --label_weight"]
    problems = [
        f"--{name} is for labels; task {spec.name} has scores, which are learned by their squared error: leave it out"
        for name, given in (
            ("temperature", arguments.temperature != 1),
            ("squared_temperature", arguments.squared_temperature),
        )
        if given
    ]
    if arguments.regression_target == "gold" and arguments.label_weight:
        problems.append(
            f"--label_weight beside --regression_target gold would count the gold scores of task {spec.name} twice; "
            "take --regression_target teacher, or leave it out"
        )
    return problems


def _source(task: TaskData, arguments: TaskDistillArguments) -> TaskSource:
    return task.source(
        "train", arguments.train_batch_size, seed=arguments.seed, padding=arguments.padding, shuffle=True
    )


def _identity(
    session: Session[TaskDistillArguments], pair: _Pair, task: TaskData, source: TaskSource, *, asks_teacher: bool
) -> dict[str, Any]:
    arguments = session.arguments
    dtype = str(inference_dtype(session.world.device, arguments.teacher_dtype)) if asks_teacher else None
    return {
        **identity_of(arguments, {"layer_map": pair.layer_map, "teacher_dtype": dtype}),
        "stage": f"task_distill {arguments.stage}",
        "teacher": pair.teacher,
        "student": pair.student,
        "data": source.fingerprint,
        "evaluation_data": [task.splits[split].fingerprint for split in task.spec.eval_splits],
        "teacher_columns": pair.columns,
        "max_seq_length": task.max_seq_length,
        "metric": task.spec.official,
    }


def _teacher_model(arguments: TaskDistillArguments, spec: TaskSpec) -> PreTrainedModel:
    directory = cast(str, arguments.teacher_model)
    return load_classifier(directory, label_names=spec.label_names or None, role="teacher", head="required")


def _student_model(arguments: TaskDistillArguments, spec: TaskSpec) -> PreTrainedModel:
    head = Head(spec.label_names or None, pooler_relu=arguments.pooler_relu)
    return build_student(arguments.student_model, weights="load", head=head, seed=arguments.seed)
