"""What an exported file is worth beside the model that it was made of: quality, latency, memory, size.

N rows, C outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tinybert_ds.data.metrics import official_metric
from tinybert_ds.data.tasks import TaskSpec
from tinybert_ds.export.runtimes import Feed, Run
from tinybert_ds.targets import Labels, target_of
from tinybert_ds.targets.target import Settings
from tinybert_ds.types import Batch, EncoderOutput, LossTerms

Logits = NDArray[np.float32]
Model = Callable[[Batch, EncoderOutput | None], LossTerms]


@dataclass(frozen=True)
class Quality:
    """What the logits (N, C) of a file are worth."""

    metric: float | None  # the task's official one; None without a task
    loss: float  # of that metric against the model, or without a task 1 - agreement; negative: it gained
    largest_difference: float  # of a logit
    agreement: float  # share of rows with the same decision; of scores the correlation


def judge(found: Logits, reference: Logits, metric: float | None, own: float | None, *, several: bool) -> Quality:
    """Compare the logits (N, C) of a file with those of the model.

    Args:
        metric, own: The task's official one of the file and of the model; None without a task.
        several: Whether a row may have several labels.
    """
    agreement = agreement_of(found, reference, several=several)
    loss = 1 - agreement if metric is None or own is None else own - metric
    return Quality(metric, loss, float(np.abs(found - reference).max()), agreement)


def metric_of(logits: Logits, spec: TaskSpec, columns: Sequence[int], labels: Labels, settings: Settings) -> float:
    """Return the task's official metric of logits (N, C).

    Args:
        columns: The output for each output of the task.
        settings: What predictions need to know, see `Target.settle`.
    """
    target = target_of(spec)
    predictions = target.predict(spec, logits[:, list(columns)], settings)
    return official_metric(spec, target.measure(spec, predictions, labels))


def agreement_of(found: Logits, reference: Logits, *, several: bool = False) -> float:
    """Return the share of rows (N, C) with the same decision, all labels of a row together; of scores (N, 1) their
    correlation."""
    if several:
        return float(((found > 0) == (reference > 0)).all(axis=1).mean())
    if reference.shape[1] > 1:
        return float((found.argmax(axis=1) == reference.argmax(axis=1)).mean())
    found, reference = found[:, 0], reference[:, 0]
    if not (np.ptp(found) and np.ptp(reference)):
        return float(np.array_equal(found, reference))
    return float(np.corrcoef(found, reference)[0, 1])


def feed_of(batch: Batch, input_names: Sequence[str]) -> Feed:
    """Return a batch as a runtime takes it."""
    return {name: getattr(batch, name).cpu().numpy() for name in input_names}


def as_model(run: Run, input_names: Sequence[str]) -> Model:
    """Return what runs an exported file, as a model that evaluations call."""

    def model(batch: Batch, teacher_output: EncoderOutput | None = None) -> LossTerms:
        return {"logits": torch.from_numpy(run(feed_of(batch, input_names)))}

    return model


def torch_model(model: Any, input_names: Sequence[str]) -> Model:
    """Return a Hugging Face classifier, run by torch op by op, as a model that evaluations call."""

    @torch.inference_mode()
    def run(batch: Batch, teacher_output: EncoderOutput | None = None) -> LossTerms:
        return {"logits": model(**{name: getattr(batch, name) for name in input_names}).logits}

    return run
