"""Task distillation: intermediate layers, then the prediction layer; or evaluation alone (arXiv 1909.10351, 4.1)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tinybert_ds.arguments import TaskDistillArguments, identity_of, parse_arguments
from tinybert_ds.data.submission import format_predictions, read_index
from tinybert_ds.data.task_batches import TaskSource
from tinybert_ds.data.task_files import split_files
from tinybert_ds.data.task_spec import TaskSpec
from tinybert_ds.data.tasks import find_task
from tinybert_ds.data.teacher_columns import COLUMNS, with_teacher
from tinybert_ds.data.tokenizer import load_tokenizer, returns_token_types, tokenizer_fingerprint
from tinybert_ds.engine.loop import train
from tinybert_ds.engine.other_tokens import translated
from tinybert_ds.engine.prediction import held_out_loss
from tinybert_ds.engine.ranks.process_group import write_on_main
from tinybert_ds.engine.run.run import Session, open_run
from tinybert_ds.engine.teacher import Teacher
from tinybert_ds.engine.teacher_cache import cached_teacher
from tinybert_ds.errors import ConfigError, raise_all
from tinybert_ds.files import write_atomically
from tinybert_ds.hardware import inference_dtype
from tinybert_ds.models.build import build_student, check_pair, find_student
from tinybert_ds.models.fingerprint import model_fingerprint
from tinybert_ds.models.pretrained import load_headed, read_config
from tinybert_ds.models.student import DistilledStudent
from tinybert_ds.objective import PredictionObjective
from tinybert_ds.stages.balance import balance, recorded
from tinybert_ds.stages.distillation import (
    Student,
    build_intermediate,
    classifying_student,
    export_student,
    relation_layers,
)
from tinybert_ds.stages.evaluate import (
    evaluate_directory,
    load_fine_tuned,
    require_results_directory,
    write_results,
)
from tinybert_ds.stages.give_away import give_away, require_repositories
from tinybert_ds.stages.prediction_choice import (
    margin_problems,
    prediction_problems,
    prediction_weights,
    teacher_problems,
)
from tinybert_ds.stages.start import begin_evaluation, begin_training
from tinybert_ds.stages.task_data import TaskData, augmented, load_task
from tinybert_ds.stages.teacher_logits import logits_teacher
from tinybert_ds.stages.teacher_reading import length_problems, own_tokenizer, reading_problems
from tinybert_ds.stages.vocabulary import read_vocabulary
from tinybert_ds.targets import MARGINS, target_of

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    arguments, problems = parse_arguments(TaskDistillArguments, argv)
    if arguments.do_eval:
        _evaluate(begin_evaluation(arguments, problems))
        return
    session = begin_training(arguments, problems)
    require_repositories(session, [session.output_dir])
    spec = find_task(arguments.task_name, arguments.task_file)
    pair = _read_pair(arguments, spec, session.world.size)
    splits = ("train", *spec.eval_splits)
    train_spec = augmented(spec) if arguments.aug_train else with_teacher(spec) if arguments.pred_distill else spec
    judged = arguments.stage != "intermediate"
    unlabelled = [] if judged and prediction_weights(arguments, spec).labels else ["train"] if judged else splits
    task = load_task(
        train_spec,
        arguments.data_dir,
        splits,
        pair.tokenizer,
        pair.student_config,
        arguments,
        session.world,
        unlabelled=unlabelled,
    )
    write_results(session.output_dir, _distil(session, pair, task), session.world)
    give_away(session, [session.output_dir], task)


class _Pair(NamedTuple):
    """A teacher and a student that fit each other and the task."""

    student_config: Any
    tokenizer: PreTrainedTokenizerFast
    layer_map: tuple[int, ...]
    relation_layers: tuple[tuple[int, int], ...]  # see `distillation.Student`
    columns: list[int] | None  # the teacher's output for each output of the task; None: in its order
    teacher_types: bool  # whether the teacher's tokeniser returns token types
    teacher: str | None  # its fingerprint; None: what it said is in the data
    student: str
    teacher_tokenizer: PreTrainedTokenizerFast | None = None  # where a teacher of predictions reads rows by its own
    teacher_ids: NDArray[np.int64] | None = None  # of a teacher of layers: its id of each of the student's tokens


def _read_pair(arguments: TaskDistillArguments, spec: TaskSpec, world_size: int) -> _Pair:
    raise_all(
        [
            *teacher_problems(arguments, spec),
            *prediction_problems(arguments, spec),
            *margin_problems(arguments, spec, world_size),
        ]
    )
    find_student(arguments.student_model, weights="load")
    if arguments.teacher_model is None:
        raise_all(length_problems(arguments, None))
        student, tokenizer = arguments.student_model, load_tokenizer(arguments.student_model, arguments.lower_case)
        config = read_config(student, role="student")
        return _Pair(config, tokenizer, (), (), None, False, None, model_fingerprint(student))
    teacher = arguments.teacher_model
    teacher_config = read_config(teacher, role="teacher")
    student_config = read_config(arguments.student_model, role="student")
    tokenizer = load_tokenizer(arguments.student_model, arguments.lower_case)
    own, ids, vocab_size = None, None, None
    if arguments.stage == "prediction":
        own = own_tokenizer(tokenizer, teacher, arguments.lower_case)
        raise_all(reading_problems(arguments, spec, own, world_size))
        vocab_size = None if own is None else student_config.vocab_size
    else:
        _, vocab_size, ids, _ = read_vocabulary(arguments.student_model, teacher, arguments.lower_case)
    layer_map = check_pair(
        teacher_config,
        student_config,
        layer_map=None if arguments.pred_distill else arguments.layer_map,
        projection=arguments.projection,
        attention=arguments.compares_scores,
        padding_token=tokenizer.pad_token_id,
        sequence_length=arguments.max_seq_length or spec.max_seq_length,
        vocab_size=vocab_size,
    )
    relations = relation_layers(arguments, layer_map, teacher_config)
    raise_all(length_problems(arguments, own))
    if arguments.squared_temperature:
        logger.info("--squared_temperature: the same as --prediction_weight %g", arguments.soft_label_weight)
    columns = target_of(spec).columns(spec, teacher_config, arguments.stated_labels, role="teacher")
    fingerprints = model_fingerprint(teacher), model_fingerprint(arguments.student_model)
    teacher_types = returns_token_types(load_tokenizer(teacher, arguments.lower_case) if own is None else own)
    return _Pair(student_config, tokenizer, layer_map, relations, columns, teacher_types, *fingerprints, own, ids)


def _distil(session: Session[TaskDistillArguments], pair: _Pair, task: TaskData) -> dict[str, float]:
    """Let the student imitate its teacher's layers, its predictions, or both at once.

    Returns:
        The metrics of its best state; its held-out losses where it learns no predictions.
    """
    arguments, world = session.arguments, session.world
    by_layers = arguments.stage != "prediction"
    predictions = None if arguments.stage == "intermediate" else _prediction_objective(arguments, pair, task)
    source = task.source(
        "train",
        arguments.train_batch_size,
        seed=arguments.seed,
        padding=arguments.padding,
        shuffle=True,
        in_pairs=arguments.score_loss == "margin_mse",
    )
    asks_teacher = by_layers or bool(predictions and predictions.weight and pair.teacher)
    with open_run(
        session,
        {session.output_dir: _identity(session, pair, task, source, asks_teacher=asks_teacher)},
        title=f"{arguments.stage} distillation",
        source=source,
        evaluation_steps=arguments.eval_step,
    ) as run:
        if not run.finished:
            teacher: Teacher | None
            variances = None
            if by_layers:
                student, teacher = _layered_student(session, pair, task, predictions)
                (variances,) = balance(run, teacher, [student], source, token_types=pair.teacher_types)
            else:
                assert predictions is not None
                student, teacher = _classifying_student(session, pair, task, predictions)
            evaluate: Callable[[Any], dict[str, float]] = task.evaluate_all
            if predictions is None:
                assert teacher is not None
                split, padding = task.spec.eval_splits[0], arguments.padding
                held_out = task.source(split, task.batch_size, seed=0, padding=padding, shuffle=False)
                evaluate = partial(held_out_loss, teacher=teacher, source=held_out, world=world)
            run.attach(
                student,
                evaluate=evaluate,
                score=None if predictions is None else task.score,
                export=partial(export_student, tokenizer=pair.tokenizer, world=world),
                measured=recorded(variances),
            )
            train(run, teacher, overlap_teacher=arguments.overlap_teacher)
            judge = partial(evaluate_directory, task=task, pooler_relu=arguments.pooler_relu)
            run.finish(None if predictions is None else judge)
        return run.results[0]


def _layered_student(
    session: Session[TaskDistillArguments], pair: _Pair, task: TaskData, predictions: PredictionObjective | None
) -> tuple[DistilledStudent, Teacher]:
    """Return the student that imitates its teacher's layers, and the teacher, which shows them."""
    arguments = session.arguments
    student = Student(
        _student_model(arguments, task.spec),
        pair.layer_map,
        Path(arguments.student_model),
        token_types=task.token_types,
        relation_layers=pair.relation_layers,
    )
    teacher, (module,) = build_intermediate(
        load_headed(cast(str, arguments.teacher_model), target_of(task.spec).head(task.spec), role="teacher"),
        [student],
        arguments,
        max_seq_length=task.max_seq_length,
        world=session.world,
        token_types=pair.teacher_types,
        predictions=predictions,
    )
    return module, translated(teacher, pair.teacher_ids, session.world.device)


def _classifying_student(
    session: Session[TaskDistillArguments], pair: _Pair, task: TaskData, predictions: PredictionObjective
) -> tuple[DistilledStudent, Teacher | None]:
    """Return the student that learns predictions alone, and who makes them; None where the labels do."""
    arguments = session.arguments
    student = classifying_student(_student_model(arguments, task.spec), predictions, arguments, task)
    if not predictions.weight:
        return student, None
    if pair.teacher is None:
        rows = task.splits["train"]
        return student, cached_teacher(rows.columns[COLUMNS], session.world.device, rows.unit_offsets)
    types, own = pair.teacher_types, pair.teacher_tokenizer
    return student, logits_teacher(arguments, task, pair.teacher, token_types=types, tokenizer=own)


def _prediction_objective(arguments: TaskDistillArguments, pair: _Pair, task: TaskData) -> PredictionObjective:
    weights = prediction_weights(arguments, task.spec)
    return PredictionObjective(
        weight=weights.teacher,
        label_weight=weights.labels,
        temperature=arguments.temperature,
        form=arguments.prediction_loss,
        mixes=arguments.label_mixing == "confidence",
        target=MARGINS if arguments.score_loss == "margin_mse" else target_of(task.spec),
        teacher_columns=pair.columns,
    )


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
    task = load_task(spec, arguments.data_dir, splits, tokenizer, config, arguments, world, judged=True)
    stated, relu = arguments.stated_labels, arguments.pooler_relu
    model = load_fine_tuned(arguments.student_model, task, pooler_relu=relu, stated_labels=stated)
    settings = model.settings
    if settings is None and wanted is not None and target_of(spec).setting_names:  # else each split would have its own
        settings = task.settle(model.module, columns=model.columns)
    results = task.evaluate_all(model.module, columns=model.columns, settings=settings)
    write_results(session.output_dir, results, world)
    if wanted is not None:
        predictions = task.predict(model.module, wanted, columns=model.columns, settings=settings)
        paths = split_files(spec, arguments.data_dir, wanted)
        own = target_of(spec).prediction_file(spec, wanted, paths, predictions, task.splits[wanted].groups)
        suffix, content = own or (
            ".tsv",
            format_predictions(spec, read_index(spec, Path(arguments.data_dir), wanted), predictions),
        )
        path = session.output_dir / f"predictions_{wanted}{suffix}"
        write_on_main(world, path, lambda: write_atomically(path, content))
        logger.info("predictions: %s", path)


def _identity(
    session: Session[TaskDistillArguments], pair: _Pair, task: TaskData, source: TaskSource, *, asks_teacher: bool
) -> dict[str, Any]:
    arguments = session.arguments
    dtype = str(inference_dtype(session.world.device, arguments.teacher_dtype)) if asks_teacher else None
    comes_to = {
        "layer_map": pair.layer_map,
        "teacher_dtype": dtype,
        "relation_layers": pair.relation_layers,
        "relations": arguments.relation_factors,
    }
    own = pair.teacher_tokenizer if asks_teacher else None
    return {
        **identity_of(arguments, comes_to),
        "stage": f"task_distill {arguments.stage}",
        "teacher": pair.teacher,
        "student": pair.student,
        "data": source.fingerprint,
        "evaluation_data": [task.splits[split].fingerprint for split in task.spec.eval_splits],
        "teacher_columns": pair.columns,
        "max_seq_length": task.max_seq_length,
        "metric": task.spec.official,
        **({} if own is None else {"teacher_tokenizer": tokenizer_fingerprint(own)}),
    }


def _student_model(arguments: TaskDistillArguments, spec: TaskSpec) -> PreTrainedModel:
    head = replace(target_of(spec).head(spec), pooler_relu=arguments.pooler_relu)
    return build_student(arguments.student_model, weights="load", head=head, seed=arguments.seed)
