"""Task distillation: intermediate layers, then the prediction layer; or evaluation alone (arXiv 1909.10351, 4.1)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

from tinybert_ds.arguments import TaskDistillArguments
from tinybert_ds.data.submission import format_predictions, read_index
from tinybert_ds.data.tasks import TaskSpec, find_task
from tinybert_ds.data.tokenizer import load_tokenizer, tokenizer_fingerprint
from tinybert_ds.engine.loop import Evaluation
from tinybert_ds.engine.prediction import mean_loss
from tinybert_ds.engine.ranks.process_group import write_on_main
from tinybert_ds.engine.teacher import teacher_dtype
from tinybert_ds.errors import ConfigError, raise_all
from tinybert_ds.files import write_atomically
from tinybert_ds.models.build import Head, build_student, check_pair, find_student
from tinybert_ds.models.compilation import compile_encoders
from tinybert_ds.models.fingerprint import model_fingerprint
from tinybert_ds.models.pretrained import load_classifier, read_config
from tinybert_ds.models.recomputation import recompute_layers
from tinybert_ds.models.student import DistilledStudent, freeze_unused
from tinybert_ds.objective import PredictionObjective
from tinybert_ds.stages.distillation import Student, build_intermediate, export_student, require_same_tokenizer
from tinybert_ds.stages.evaluate import (
    evaluate_directory,
    load_fine_tuned,
    logits_encoder,
    require_results_directory,
    task_columns,
    write_results,
)
from tinybert_ds.stages.session import Learner, Models, Session, Target, begin, run_stage
from tinybert_ds.stages.task_data import TaskData, load_task
from tinybert_ds.stages.teacher_logits import logits_teacher

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    session = begin(TaskDistillArguments, argv, "task_distill.py")
    if session.arguments.do_eval:
        _evaluate(session)
    else:
        _distill(session)


def _evaluate(session: Session[TaskDistillArguments]) -> None:
    arguments = session.arguments
    require_results_directory(session.output_dir)
    config = read_config(arguments.student_model, role="model")
    tokenizer = load_tokenizer(arguments.student_model, arguments.lower_case)
    spec = find_task(arguments.task_name, arguments.task_file)
    wanted = arguments.predict_split
    if wanted is not None and wanted not in spec.splits:
        raise ConfigError(f"--predict_split {wanted}: task {spec.name} has the splits {', '.join(spec.splits)}")
    splits = dict.fromkeys((*spec.eval_splits, *([wanted] if wanted else [])))
    task = load_task(arguments, tokenizer, list(splits), model_config=config, world=session.world)
    model = load_fine_tuned(
        arguments.student_model,
        task,
        world=session.world,
        pooler_relu=arguments.pooler_relu,
        stated_labels=arguments.stated_labels,
    )
    batch_size = arguments.eval_batch_size
    results = task.evaluate_all(model.module, batch_size, session.world, columns=model.columns)
    write_results(session.output_dir, results, session.world)
    if wanted is not None:
        predictions = task.predict(model.module, wanted, batch_size, session.world, columns=model.columns)
        content = format_predictions(spec, read_index(spec, Path(arguments.data_dir), wanted), predictions)
        path = session.output_dir / f"predictions_{wanted}.tsv"
        write_on_main(session.world, path, lambda: write_atomically(path, content))
        logger.info("predictions: %s", path)


def _distill(session: Session[TaskDistillArguments]) -> None:
    arguments, world = session.arguments, session.world
    teacher_directory = cast(str, arguments.teacher_model)
    find_student(arguments.student_model, weights="load")
    teacher_config = read_config(teacher_directory, role="teacher")
    student_config = read_config(arguments.student_model, role="student")
    layer_map = check_pair(
        teacher_config,
        student_config,
        layer_map=None if arguments.pred_distill else arguments.layer_map,
        projection=arguments.projection,
    )
    tokenizer = load_tokenizer(arguments.student_model, arguments.lower_case)
    teacher_tokenizer = load_tokenizer(teacher_directory, arguments.lower_case)
    require_same_tokenizer(
        arguments.student_model,
        tokenizer_fingerprint(tokenizer),
        teacher_directory,
        tokenizer_fingerprint(teacher_tokenizer),
    )
    spec = find_task(arguments.task_name, arguments.task_file)
    raise_all(prediction_problems(arguments, spec))
    columns = task_columns(teacher_config, spec, arguments.stated_labels, role="teacher")
    task = load_task(arguments, tokenizer, ("train", *spec.eval_splits), model_config=student_config, world=world)
    source = task.source(
        "train", arguments.train_batch_size, seed=arguments.seed, padding=arguments.padding, shuffle=True
    )
    build = partial(_prediction_models, columns=columns) if arguments.pred_distill else _intermediate_models
    identity: dict[str, Any] = {
        "teacher": model_fingerprint(teacher_directory),
        "student": model_fingerprint(arguments.student_model),
        "data": source.fingerprint,
        "evaluation_data": [task.splits[split].fingerprint for split in spec.eval_splits],
        "padding": arguments.padding,
        "teacher_columns": columns,
        "pooler_relu": arguments.pooler_relu,
        "max_seq_length": task.max_seq_length,
        "metric": task.spec.official,
    }
    if not arguments.pred_distill or prediction_weights(arguments, spec).teacher:
        identity["teacher_dtype"] = str(teacher_dtype(arguments.teacher_dtype, world.device))
    if arguments.pred_distill:
        names = ("temperature", "squared_temperature", "prediction_weight", "label_weight", "regression_target")
        identity |= {"stage": "task_distill prediction", **{name: getattr(arguments, name) for name in names}}
    else:
        identity |= {"stage": "task_distill intermediate", "layer_map": layer_map, "projection": arguments.projection}
        identity["loss_weights"] = arguments.loss_weights
    judge = partial(
        evaluate_directory,
        session.output_dir,
        task,
        batch_size=arguments.eval_batch_size,
        world=world,
        pooler_relu=arguments.pooler_relu,
    )
    (results,) = run_stage(
        session,
        title="prediction distillation" if arguments.pred_distill else "intermediate distillation",
        source=source,
        targets=[Target(session.output_dir, identity, judge if arguments.pred_distill else None)],
        evaluation_steps=arguments.eval_step,
        build=lambda: build(session, task, tokenizer, layer_map=layer_map),
    )
    write_results(session.output_dir, results, world)


class PredictionWeights(NamedTuple):
    """Factors of the losses of the prediction stage."""

    teacher: float
    labels: float


def prediction_weights(arguments: TaskDistillArguments, spec: TaskSpec) -> PredictionWeights:
    """Say what the prediction stage learns from: a regression learns the gold scores unless told otherwise."""
    if spec.is_regression and arguments.regression_target == "gold":
        return PredictionWeights(teacher=0.0, labels=arguments.prediction_weight)
    return PredictionWeights(teacher=arguments.prediction_weight, labels=arguments.label_weight)


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


def _student(session: Session[TaskDistillArguments], task: TaskData) -> Any:
    arguments = session.arguments
    head = Head(task.spec.label_names or None, pooler_relu=arguments.pooler_relu)
    return build_student(arguments.student_model, weights="load", head=head, seed=arguments.seed)


def _intermediate_models(
    session: Session[TaskDistillArguments], task: TaskData, tokenizer: Any, *, layer_map: tuple[int, ...]
) -> Models:
    arguments, world = session.arguments, session.world
    teacher_model = load_classifier(
        cast(str, arguments.teacher_model), label_names=task.spec.label_names or None, role="teacher", head="required"
    )
    student = Student(_student(session, task), layer_map, Path(arguments.student_model))
    (module,), teacher = build_intermediate(
        teacher_model, [student], arguments, max_seq_length=task.max_seq_length, world=world
    )
    held_out = task.source(
        task.spec.eval_splits[0], arguments.eval_batch_size, seed=0, padding=arguments.padding, shuffle=False
    )

    def evaluation(engine: Any) -> Evaluation:
        def run() -> dict[str, float]:
            losses = mean_loss(engine, teacher, held_out, world)
            return {f"eval_{name}": value for name, value in losses.items()}

        return Evaluation(run=run, score=None)

    export = partial(export_student, tokenizer=tokenizer, world=world)
    return Models(teacher, [Learner(module, evaluation, export)])


def _prediction_models(
    session: Session[TaskDistillArguments],
    task: TaskData,
    tokenizer: Any,
    *,
    layer_map: tuple[int, ...],
    columns: list[int],
) -> Models:
    arguments, world = session.arguments, session.world
    student_encoder = logits_encoder(_student(session, task), task)
    freeze_unused(student_encoder)
    weights = prediction_weights(arguments, task.spec)
    objective = PredictionObjective(
        weight=weights.teacher,
        label_weight=weights.labels,
        temperature=arguments.temperature,
        squared_temperature=arguments.squared_temperature,
        regression=task.spec.is_regression,
        teacher_columns=columns,
    )
    module = DistilledStudent(student_encoder, objective)

    def evaluation(engine: Any) -> Evaluation:
        return Evaluation(run=lambda: task.evaluate_all(engine, arguments.eval_batch_size, world), score=task.score)

    export = partial(export_student, tokenizer=tokenizer, world=world)
    recompute_layers(student_encoder, world.device, wanted=arguments.gradient_checkpointing)
    compile_encoders((student_encoder,), world.device, wanted=arguments.compile)
    teacher = logits_teacher(session, task) if weights.teacher else None
    return Models(teacher, [Learner(module, evaluation, export)])
