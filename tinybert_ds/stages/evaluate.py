"""Evaluation of a model directory on a task, sharded over the ranks."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from tinybert_ds.engine.distributed import World, run_on_main
from tinybert_ds.files import write_atomically
from tinybert_ds.models.capture import CapturingEncoder
from tinybert_ds.models.pretrained import load_classifier
from tinybert_ds.models.student import DistilledStudent
from tinybert_ds.objective import LabelObjective
from tinybert_ds.stages.task_data import TaskData

logger = logging.getLogger(__name__)


def evaluate_directory(
    directory: str | Path, task: TaskData, *, batch_size: int, world: World, pooler_relu: bool = False
) -> dict[str, float]:
    """Load a fine-tuned model in float32 and return the task's metrics, "eval_..."; the same on all ranks.

    Raises:
        ModelError: No model there, or none with a head for this task.
    """
    model = load_classifier(
        directory, label_names=task.spec.label_names or None, role="model", head="required", pooler_relu=pooler_relu
    )
    encoder = CapturingEncoder(model, states=(), attention_layers=(), logits=True)
    student = DistilledStudent(encoder, LabelObjective(regression=task.spec.is_regression))
    return task.evaluate_all(student.eval().to(world.device), batch_size, world)


def write_results(directory: Path, results: dict[str, float], world: World) -> None:
    """Write eval_results.json and show the figures on rank 0."""

    def write() -> None:
        directory.mkdir(parents=True, exist_ok=True)
        write_atomically(directory / "eval_results.json", json.dumps(results, indent=2, sort_keys=True) + "\n")

    run_on_main(world, write)
    for name, value in results.items():
        logger.info("%s = %.4f", name, value)
