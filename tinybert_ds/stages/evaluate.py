"""Evaluation of a model directory on a task, sharded over the ranks."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from transformers import PreTrainedModel

from tinybert_ds.data.row_padding import prepare_to_read
from tinybert_ds.data.task_spec import TaskSpec
from tinybert_ds.engine.ranks.process_group import World, write_on_main
from tinybert_ds.engine.run.directory import LOCK_FILE
from tinybert_ds.errors import ConfigError
from tinybert_ds.files import refuse_file, refuse_foreign_files, write_atomically
from tinybert_ds.models.capture import CapturingEncoder
from tinybert_ds.models.pretrained import Role, load_headed
from tinybert_ds.models.probe import check_capture
from tinybert_ds.models.student import DistilledStudent
from tinybert_ds.objective import PredictionObjective
from tinybert_ds.stages.task_data import TaskData
from tinybert_ds.stages.task_settings import read_settings, write_settings
from tinybert_ds.targets import target_of
from tinybert_ds.targets.target import Settings

logger = logging.getLogger(__name__)

RESULTS_FILE = "eval_results.json"
TABLE_FILE = "glue_results.json"


class FineTuned(NamedTuple):
    """A model in eval mode, and its output for each class of the task."""

    module: DistilledStudent
    columns: list[int]
    settings: Settings | None = None  # what its predictions need to know, as its directory says it


def evaluate_directory(directory: str | Path, task: TaskData, *, pooler_relu: bool = False) -> dict[str, float]:
    """Load a fine-tuned model and return the task's metrics, "eval_..."; the same on all ranks.

    What its predictions need to know beside its logits is written into its config.json.
    """
    model = load_fine_tuned(directory, task, pooler_relu=pooler_relu)
    settings = model.settings
    if settings is None and target_of(task.spec).setting_names:
        settings = task.settle(model.module, columns=model.columns)
        write_on_main(task.world, Path(directory), partial(write_settings, directory, settings, model.columns))
    return task.evaluate_all(model.module, columns=model.columns, settings=settings)


def load_fine_tuned(
    directory: str | Path,
    task: TaskData,
    *,
    pooler_relu: bool = False,
    stated_labels: Sequence[str] | None = None,
    role: Role = "model",
) -> FineTuned:
    """Load a fine-tuned model in float32, on this rank's device.

    Args:
        stated_labels: Names of the model's outputs in its order, where its config says nothing.

    Raises:
        ModelError: No model there, none with a head for this task, or one whose outputs are not the task's labels.
    """
    model = load_headed(directory, target_of(task.spec).head(task.spec), role=role, pooler_relu=pooler_relu)
    prepare_to_read(model, task.pad_id)
    columns = target_of(task.spec).columns(task.spec, model.config, stated_labels, role=role)
    module = DistilledStudent(logits_encoder(model, task), label_objective(task.spec))
    settings = read_settings(model.config, target_of(task.spec).setting_names, columns, role=role)
    return FineTuned(module.eval().to(task.world.device), columns, settings)


def label_objective(spec: TaskSpec) -> PredictionObjective:
    """Return the loss against the gold labels alone."""
    return PredictionObjective(weight=0, label_weight=1, target=target_of(spec))


def require_results_directory(directory: Path) -> None:
    """Refuse a directory that results cannot go to, before anything is loaded; nothing is made.

    Raises:
        ConfigError: A file, a place that cannot be written, or a directory with files of something else.
    """
    refuse_file(directory)
    parent = next(path for path in (directory.absolute(), *directory.absolute().parents) if path.exists())
    if not os.access(parent, os.W_OK | os.X_OK) or not parent.is_dir():
        raise ConfigError(f"--output_dir {directory}: {parent} cannot be written; give another directory")
    names = {path.name for path in directory.iterdir()} - {LOCK_FILE} if directory.is_dir() else set()
    if not names & {RESULTS_FILE, TABLE_FILE, "config.json", "run.json"}:
        refuse_foreign_files(directory, names, "holds files that are no results of this program")


def logits_encoder(model: PreTrainedModel, task: TaskData, *, token_types: bool | None = None) -> CapturingEncoder:
    """Wrap a classifier so that it returns its logits, after a look at whether it takes the task's longest row.

    Args:
        token_types: Whether the model's own tokeniser returns them; None: it is the task's.
    """
    types = task.token_types if token_types is None else token_types
    encoder = CapturingEncoder(model, states=(), attention_layers=(), logits=True, token_types=types)
    check_capture(encoder, sequence_length=task.max_seq_length)
    return encoder


def write_results(directory: Path, results: dict[str, float], world: World) -> None:
    """Write `RESULTS_FILE` and show the figures on rank 0."""

    def write() -> None:
        directory.mkdir(parents=True, exist_ok=True)
        write_atomically(directory / RESULTS_FILE, json.dumps(results, indent=2, sort_keys=True) + "\n")

    write_on_main(world, directory, write)
    for name, value in results.items():
        logger.info("%s = %.4f", name, value)
