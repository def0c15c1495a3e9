"""Fine-tuning on a task's labels: the teacher of task distillation, or a student without any distillation."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from tinybert_ds.arguments import FinetuneArguments, identity_of, parse_arguments
from tinybert_ds.data.tasks import find_task
from tinybert_ds.data.tokenizer import load_tokenizer
from tinybert_ds.engine.loop import train
from tinybert_ds.engine.ranks.process_group import run_on_main
from tinybert_ds.engine.run.run import Session, open_run
from tinybert_ds.errors import ModelError, raise_all
from tinybert_ds.models.build import Head, build_student, padding_problems, resolve_student
from tinybert_ds.models.fingerprint import model_fingerprint
from tinybert_ds.models.pretrained import has_weights, load_classifier, read_config
from tinybert_ds.stages.distillation import classifying_student, export_student
from tinybert_ds.stages.evaluate import evaluate_directory, label_objective, write_results
from tinybert_ds.stages.give_away import give_away, require_repositories
from tinybert_ds.stages.search import open_search, search
from tinybert_ds.stages.start import begin_training
from tinybert_ds.stages.task_data import TaskData, load_task
from tinybert_ds.targets import target_of


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    arguments, problems = parse_arguments(FinetuneArguments, argv)
    session = begin_training(arguments, problems, single=not arguments.search)
    if arguments.search:
        run_on_main(session.world, partial(open_search, session.output_dir, resume=arguments.resume))
    require_repositories(session, [session.output_dir])
    path = find_model(arguments)
    tokenizer = load_tokenizer(arguments.tokenizer or arguments.model, arguments.lower_case)
    spec = find_task(arguments.task_name, arguments.task_file)
    config, splits = read_config(path, role="model"), ("train", *spec.eval_splits)
    if arguments.from_scratch:
        raise_all(padding_problems(config, config, tokenizer.pad_token_id))
    task = load_task(spec, arguments.data_dir, splits, tokenizer, config, arguments, session.world)
    fine_tune = partial(_fine_tune, path=path, tokenizer=tokenizer, task=task, fingerprint=model_fingerprint(path))
    results = search(session, fine_tune, score=task.score) if arguments.search else fine_tune(session)
    write_results(session.output_dir, results, session.world)
    give_away(session, [session.output_dir], task)


def _fine_tune(
    session: Session[FinetuneArguments],
    *,
    path: Path,
    tokenizer: PreTrainedTokenizerFast,
    task: TaskData,
    fingerprint: str,
) -> dict[str, float]:
    """Fine-tune the model of `path` once, into the session's directory; return the metrics of its best state."""
    arguments = session.arguments
    source = task.source("train", arguments.train_batch_size, seed=arguments.seed, shuffle=True)
    identity = {
        "stage": "finetune",
        "model": fingerprint,
        **identity_of(arguments, {}),
        "data": source.fingerprint,
        "evaluation_data": [task.splits[split].fingerprint for split in task.spec.eval_splits],
    }
    with open_run(
        session,
        {session.output_dir: identity},
        title="fine-tuning",
        source=source,
        evaluation_steps=arguments.eval_step,
    ) as run:
        if not run.finished:
            model = _load(arguments, path, target_of(task.spec).head(task.spec))
            student = classifying_student(model, label_objective(task.spec), arguments, task)
            export = partial(export_student, tokenizer=tokenizer, world=session.world)
            run.attach(student, evaluate=task.evaluate_all, score=task.score, export=export)
            train(run, None)
            run.finish(judge=partial(evaluate_directory, task=task))
        return run.results[0]


def _load(arguments: FinetuneArguments, path: Path, head: Head) -> Any:
    if arguments.from_scratch:
        return build_student(path, weights="random", head=head, seed=arguments.seed)
    return load_classifier(path, label_names=head.label_names, role="model", seed=arguments.seed, kind=head.kind)


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
