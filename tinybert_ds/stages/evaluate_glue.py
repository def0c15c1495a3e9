"""Evaluation of fine-tuned models on tasks: one table, predictions, and the benchmark's submission."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

from tinybert_ds.arguments import EvaluateArguments, parse_arguments
from tinybert_ds.arguments.evaluate import TASK_PLACE
from tinybert_ds.data.submission import format_predictions, read_index, submission_zip, test_splits
from tinybert_ds.data.task_spec import TaskSpec
from tinybert_ds.data.tasks import BENCHMARKS, find_task, find_task_folder
from tinybert_ds.data.tokenizer import load_tokenizer
from tinybert_ds.engine.ranks.process_group import World, write_on_main
from tinybert_ds.errors import ConfigError, DataError, ModelError
from tinybert_ds.files import write_atomically
from tinybert_ds.models.pretrained import has_weights, read_config
from tinybert_ds.stages.evaluate import TABLE_FILE, load_fine_tuned, require_results_directory
from tinybert_ds.stages.glue_table import SplitResult, markdown, table
from tinybert_ds.stages.start import begin_evaluation
from tinybert_ds.stages.task_data import load_task
from tinybert_ds.targets import target_of

logger = logging.getLogger(__name__)

Submissions = dict[str, dict[str, str]]
"""Model -> file of its submission -> content."""


class Entry(NamedTuple):
    """A task with its files and the models that are judged on it."""

    spec: TaskSpec
    folder: Path
    models: dict[str, Path]


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    arguments, problems = parse_arguments(EvaluateArguments, argv)
    session = begin_evaluation(arguments, problems)
    world = session.world
    require_results_directory(session.output_dir)
    entries = find_entries(arguments)
    for entry in entries:  # before any of them is loaded
        for directory in entry.models.values():
            config = read_config(directory, role="model")
            stated = stated_labels(arguments, config, entry.spec)
            target_of(entry.spec).columns(entry.spec, config, stated, role="model")
    results: list[SplitResult] = []
    submissions: Submissions = {name: {} for name in arguments.models} if arguments.submission else {}
    for entry in entries:
        results += _judge(entry, arguments, world, submissions)
    if arguments.submission and not any(submissions.values()):
        raise DataError(f"--submission: none of the tasks' folders in {arguments.glue_dir} has a test file")
    content = table(results, submissions)
    content["models"] = {entry.spec.name: {n: str(d) for n, d in entry.models.items()} for entry in entries}
    write_on_main(world, session.output_dir, lambda: _write(session.output_dir, content, submissions))
    logger.info("%s", markdown(content))


def find_entries(arguments: EvaluateArguments) -> list[Entry]:
    """Find the tasks, their files and their models.

    Raises:
        ConfigError, DataError, ModelError: An unknown task; files or a model that are not there for a task that is
            named; nothing at all for `all`.
    """
    if arguments.task_file is not None:
        spec = find_task(None, arguments.task_file)
        return [_entry(spec, Path(cast(str, arguments.data_dir)), arguments)]
    glue_dir = cast(str, arguments.glue_dir)
    (name, *others) = arguments.task_names
    if others or name not in BENCHMARKS:
        specs = [find_task(name, None) for name in arguments.task_names]
        return [_entry(spec, find_task_folder(spec, glue_dir), arguments) for spec in specs]
    if not Path(glue_dir).is_dir():
        raise DataError(f"--glue_dir: {glue_dir} is not a directory; give the one with the tasks' folders")
    entries, missing = [], []
    for spec in BENCHMARKS[name]:
        try:
            entries.append(_entry(spec, find_task_folder(spec, glue_dir), arguments))
        except (DataError, ModelError) as error:
            missing.append(spec.name)
            logger.info("left out: %s", error)
    if not entries:
        raise ConfigError(
            f"--task_name {name}: not one of {', '.join(missing)} has a folder in --glue_dir {arguments.glue_dir} and "
            f"models at {', '.join(arguments.models.values())}; see what was left out above"
        )
    return entries


def _entry(spec: TaskSpec, folder: Path, arguments: EvaluateArguments) -> Entry:
    return Entry(spec, folder, {name: _model_directory(spec, path) for name, path in arguments.models.items()})


def _model_directory(spec: TaskSpec, path: str) -> Path:
    names = dict.fromkeys((spec.name, spec.directory or spec.name))
    candidates = list(dict.fromkeys(Path(path.replace(TASK_PLACE, name)) for name in names))
    for candidate in candidates:
        if candidate.is_dir() and has_weights(candidate):
            return candidate
    raise ModelError(
        f"task {spec.name}: no model in {' or '.join(map(str, candidates))}; give --model [NAME=]DIR, "
        f"{TASK_PLACE} in it for the task's name"
    )


def stated_labels(arguments: EvaluateArguments, config: Any, spec: TaskSpec) -> list[str] | None:
    """Return `--teacher_labels` for a model whose config does not name the task's labels itself, else None."""
    try:
        target_of(spec).columns(spec, config, None, role="model")
    except ModelError:
        return arguments.stated_labels
    return None


def _judge(entry: Entry, arguments: EvaluateArguments, world: World, submissions: Submissions) -> list[SplitResult]:
    """Evaluate all models on a task; add their predictions for its test files to the submissions."""
    spec, folder = entry.spec, entry.folder
    files = test_splits(spec, folder) if arguments.submission else {}
    index = {split: read_index(spec, folder, split) for split in files}
    metrics: dict[str, dict[str, dict[str, float]]] = {split: {} for split in spec.eval_splits}
    rows = {}
    for name, directory in entry.models.items():
        tokenizer = load_tokenizer(directory, arguments.lower_case)
        config = read_config(directory, role="model")
        task = load_task(spec, folder, (*spec.eval_splits, *files), tokenizer, config, arguments, world, judged=True)
        logger.info("%s: %s in %s", spec.name, name, directory)
        stated = stated_labels(arguments, config, spec)
        model = load_fine_tuned(directory, task, pooler_relu=arguments.pooler_relu, stated_labels=stated)
        for split in spec.eval_splits:
            found = task.evaluate(model.module, split, columns=model.columns, settings=model.settings)
            metrics[split][name] = {metric: found[f"eval_{metric}"] for metric in spec.metrics}
            rows[split] = len(task.splits[split])
        for split, file in files.items():
            predictions = task.predict(model.module, split, columns=model.columns, settings=model.settings)
            submissions[name][file] = format_predictions(spec, index[split], predictions)
    return [SplitResult(spec, split, rows[split], metrics[split]) for split in spec.eval_splits]


def _write(directory: Path, content: dict, submissions: Submissions) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name, files in submissions.items():
        folder = directory / "predictions" / name
        folder.mkdir(parents=True, exist_ok=True)
        for file, text in files.items():
            write_atomically(folder / file, text)
        write_atomically(directory / f"{name}-submission.zip", submission_zip(files))
    write_atomically(directory / "glue_results.md", markdown(content))
    write_atomically(directory / TABLE_FILE, json.dumps(content, indent=2) + "\n")
