"""Fine-tuning on a task's labels: the teacher of task distillation, or a student without any distillation."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerFast

from tinybert_ds.arguments import FinetuneArguments, identity_of
from tinybert_ds.data.tasks import find_task
from tinybert_ds.data.tokenizer import load_tokenizer
from tinybert_ds.engine.loop import Evaluation
from tinybert_ds.errors import ModelError, raise_all
from tinybert_ds.models.build import Head, build_student, padding_problems, resolve_student
from tinybert_ds.models.compilation import compile_encoders
from tinybert_ds.models.fingerprint import model_fingerprint
from tinybert_ds.models.pretrained import has_weights, load_classifier, read_config
from tinybert_ds.models.recomputation import recompute_layers
from tinybert_ds.models.student import DistilledStudent, freeze_unused
from tinybert_ds.objective import LabelObjective
from tinybert_ds.stages.distillation import export_student
from tinybert_ds.stages.evaluate import evaluate_directory, logits_encoder, write_results
from tinybert_ds.stages.search import prepare_search, search
from tinybert_ds.stages.session import Learner, Models, Session, Target, begin, run_stage
from tinybert_ds.stages.task_data import TaskData, load_task


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    session = begin(FinetuneArguments, argv, "finetune_teacher.py")
    if session.arguments.search:
        prepare_search(session)
    inputs = _read_inputs(session)
    if session.arguments.search:
        results = search(session, partial(_fine_tune, inputs=inputs), score=inputs.task.score)
    else:
        results = _fine_tune(session, inputs)
    write_results(session.output_dir, results, session.world)


class _Inputs(NamedTuple):
    path: Path  # of the model
    tokenizer: PreTrainedTokenizerFast
    task: TaskData


def _read_inputs(session: Session[FinetuneArguments]) -> _Inputs:
    arguments = session.arguments
    path = find_model(arguments)
    config = read_config(path, role="model")
    tokenizer = load_tokenizer(arguments.tokenizer or arguments.model, arguments.lower_case)
    if arguments.from_scratch:
        raise_all(padding_problems(config, config, tokenizer.pad_token_id))
    spec = find_task(arguments.task_name, arguments.task_file)
    task = load_task(arguments, tokenizer, ("train", *spec.eval_splits), model_config=config, world=session.world)
    return _Inputs(path, tokenizer, task)


def find_model(arguments: FinetuneArguments) -> Path:
    """Find what --model names: a directory with weights, or with --from_scratch an architecture without any.

    Raises:
        ModelError: Nothing there; weights where none are wanted, or none where they are.
    """
    path = Path(arguments.model)
    present = path.is_dir() and has_weights(path)
    if arguments.from_scratch:
        if present:
            raise ModelError(
                f"model {path} holds weights that --from_scratch would throw away; leave that out to start from them, "
                "or give the path of its config.json"
            )
        return resolve_student(arguments.model)
    read_config(path, role="model")
    if not present:
        raise ModelError(
            f"model {path} holds no weights; give a directory with a model.safetensors, or start from random weights "
            "with --from_scratch"
        )
    return path


def _fine_tune(session: Session[FinetuneArguments], inputs: _Inputs) -> dict[str, float]:
    """Fine-tune once, into the session's output directory; return the metrics of its best state."""
    arguments, world = session.arguments, session.world
    path, tokenizer, task = inputs
    label_names = task.spec.label_names or None
    source = task.source("train", arguments.train_batch_size, seed=arguments.seed, shuffle=True)

    def build() -> Models:
        if arguments.from_scratch:
            model = build_student(path, weights="random", head=Head(label_names), seed=arguments.seed)
        else:
            model = load_classifier(path, label_names=label_names, role="model", seed=arguments.seed)
        encoder = logits_encoder(model, task)
        freeze_unused(encoder)
        recompute_layers(encoder, world.device, wanted=arguments.gradient_checkpointing)
        compile_encoders((encoder,), world.device, wanted=arguments.compile)
        module = DistilledStudent(encoder, LabelObjective(regression=task.spec.is_regression))

        def evaluation(engine: Any) -> Evaluation:
            return Evaluation(run=lambda: task.evaluate_all(engine, arguments.eval_batch_size, world), score=task.score)

        export = partial(export_student, tokenizer=tokenizer, world=world)
        return Models(None, [Learner(module, evaluation, export)])

    identity = {
        "stage": "finetune",
        "model": model_fingerprint(path),
        **identity_of(arguments, {}),
        "data": source.fingerprint,
        "evaluation_data": [task.splits[split].fingerprint for split in task.spec.eval_splits],
    }
    judge = partial(evaluate_directory, session.output_dir, task, batch_size=arguments.eval_batch_size, world=world)
    (results,) = run_stage(
        session,
        title="fine-tuning",
        source=source,
        targets=[Target(session.output_dir, identity, judge)],
        evaluation_steps=arguments.eval_step,
        build=build,
    )
    return results
