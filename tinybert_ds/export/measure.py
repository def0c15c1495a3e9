"""What an exported file is worth beside the model that it was made of: quality, latency, memory, size.

N rows, or of models that answer for each token N words; C outputs, V width of vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from tinybert_ds.data.metrics import official_metric
from tinybert_ds.data.sts import cosines
from tinybert_ds.data.task_spec import TaskSpec
from tinybert_ds.export.runtimes import START_AND_END, VECTORS, Feed, Run
from tinybert_ds.targets import target_of
from tinybert_ds.targets.target import Settings
from tinybert_ds.types import Batch, EncoderOutput, LossTerms, unit_outputs

Logits = NDArray[np.float32]
Model = Callable[[Batch, EncoderOutput | None], LossTerms]
Answers = Literal["one", "several", "tokens", "spans", "score", "vectors"]
"""What a model gives a text: one label of several, any number of labels, a label for each token, where a span of it
begins and ends, a score, a vector."""
AGREEMENT: Mapping[Answers, str] = {
    "one": "same decision",
    "several": "same decision",
    "tokens": "same decision",
    "spans": "same start and end",
    "score": "correlation with torch",
    "vectors": "mean cosine with torch",
}
"""What `agreement_of` is called."""


@dataclass(frozen=True)
class Quality:
    """What the logits (N, C) or vectors (N, V) of a file are worth."""

    metric: float | None  # the official one; None where there is nothing to judge by
    loss: float  # of that metric against the model, or without one 1 - agreement; negative: it gained
    largest_difference: float  # of a value
    agreement: float  # see `agreement_of`


def judge(found: Logits, reference: Logits, metric: float | None, own: float | None, agreement: float) -> Quality:
    """Compare the logits (N, C) or vectors (N, V) of a file with those of the model.

    Args:
        metric, own: The official one of the file and of the model; None where there is nothing to judge by.
        agreement: Of `agreement_of`.
    """
    loss = 1 - agreement if metric is None or own is None else own - metric
    return Quality(metric, loss, float(np.abs(found - reference).max()), agreement)


def metric_of(answers: NDArray[np.floating], spec: TaskSpec, gold: Any, settings: Settings, groups: Any) -> float:
    """Return the task's official metric.

    Args:
        answers: Of `Target.answers`.
        gold: Of `Target.gold`.
        settings: What predictions need to know, see `Target.settle`.
        groups: Which answers belong together, see `Target.measure`.
    """
    target = target_of(spec)
    return official_metric(spec, target.measure(spec, target.predict(spec, answers, settings), gold, groups))


def agreement_of(found: Logits, reference: Logits, answers: Answers, offsets: NDArray[np.int64] | None = None) -> float:
    """Return the share of rows (N, C) with the same decision, all labels of a row together; of scores (N, 1) their
    correlation; of vectors (N, V) the mean of their cosines.

    Args:
        offsets: Of spans, (rows + 1,): where the tokens of each row begin; a decision is one token of them for each
            output.
    """
    if answers == "vectors":
        return float(cosines(found, reference).mean())
    if answers == "spans":
        assert offsets is not None
        return float((_highest(found, offsets) == _highest(reference, offsets)).all(axis=1).mean())
    if answers == "several":
        return float(((found > 0) == (reference > 0)).all(axis=1).mean())
    if answers != "score":
        return float((found.argmax(axis=1) == reference.argmax(axis=1)).mean())
    found, reference = found[:, 0], reference[:, 0]
    if not (np.ptp(found) and np.ptp(reference)):
        return float(np.array_equal(found, reference))
    return float(np.corrcoef(found, reference)[0, 1])


def _highest(logits: Logits, offsets: NDArray[np.int64]) -> NDArray[np.int64]:
    """The token (rows, C) of each row with the highest logit (N, C)."""
    return np.stack([part.argmax(axis=0) for part in np.split(logits, offsets[1:-1])])


def feed_of(batch: Batch, input_names: Sequence[str]) -> Feed:
    """Return a batch as a runtime takes it."""
    return {name: getattr(batch, name).cpu().numpy() for name in input_names}


def as_model(run: Run, input_names: Sequence[str]) -> Model:
    """Return what runs an exported file, as a model that evaluations call."""

    def model(batch: Batch, teacher_output: EncoderOutput | None = None) -> LossTerms:
        return {"logits": unit_outputs(torch.from_numpy(run(feed_of(batch, input_names))), batch)}

    return model


def torch_model(model: Any, input_names: Sequence[str]) -> Model:
    """Return a Hugging Face model with a head, or a `VectorModel`, run by torch, as a model that evaluations call."""

    @torch.inference_mode()
    def run(batch: Batch, teacher_output: EncoderOutput | None = None) -> LossTerms:
        output = model(**{name: getattr(batch, name) for name in input_names})
        if VECTORS in output:
            return {"logits": output[VECTORS]}
        both = [output[name] for name in START_AND_END if name in output]
        return {"logits": unit_outputs(torch.stack(both, dim=-1) if both else output.logits, batch)}

    return run
