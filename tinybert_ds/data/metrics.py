"""The metrics of tasks, from scikit-learn and scipy, which are imported when a metric is computed: they take as long as
a sixth of a command's start.

N rows. A correlation with something constant is undefined; here it is 0.0, so that a student that has collapsed to one
answer is the worst of all and never NaN, which no comparison would sort.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, partial

import numpy as np
from numpy.typing import NDArray

from tinybert_ds.data.task_spec import TaskSpec

Values = NDArray[np.generic]


def compute_metrics(spec: TaskSpec, predictions: Values, references: Values) -> dict[str, float]:
    """Return every metric of `spec` by name.

    Args:
        predictions, references: (N,) class ids or scores, or (N, C) of each label whether a row has it.

    Returns:
        Name to value, as fractions (accuracy 0.836, not 83.6). A metric that is undefined is 0.0.
    """
    predictions, references = np.asarray(predictions), np.asarray(references)
    assert predictions.shape == references.shape, f"{predictions.shape} predictions for {references.shape} references"
    assert predictions.ndim in (1, 2), f"predictions must be (N,) or (N, C), found {predictions.shape}"
    assert len(predictions), "no rows to compute metrics of"
    functions = _functions()
    return {name: float(functions[name](references, predictions)) for name in spec.metrics}


def official_metric(spec: TaskSpec, metrics: Mapping[str, float]) -> float:
    """Return the scalar by which checkpoints of this task are compared: the mean of its official metrics."""
    return float(np.mean([metrics[name] for name in spec.official]))


def official_metric_name(spec: TaskSpec) -> str:
    """Return what to call that scalar: `accuracy`, or `mean of accuracy and f1`."""
    return spec.official[0] if len(spec.official) == 1 else "mean of " + " and ".join(spec.official)


def spearman(references: Values, predictions: Values) -> float:
    """Return the rank correlation of two columns (N,)."""
    return _correlation("spearmanr", references, predictions)


def _correlation(function: str, references: Values, predictions: Values) -> float:
    from scipy import stats  # noqa: PLC0415 - see above

    if _undefined(references, predictions):
        return 0.0
    return float(getattr(stats, function)(references, predictions).statistic)


def _undefined(references: Values, predictions: Values) -> bool:
    # A student that diverges predicts NaN: that too must compare as the worst.
    return (
        len(predictions) < 2
        or not np.isfinite(predictions).all()
        or np.ptp(predictions) == 0
        or np.ptp(references) == 0
    )


@cache
def _functions() -> dict[str, Callable[[Values, Values], float]]:
    """Return the metrics by name; called with references and predictions, as scikit-learn has it."""
    from sklearn import metrics  # noqa: PLC0415 - see above

    return {
        "accuracy": metrics.accuracy_score,
        "f1": partial(metrics.f1_score, pos_label=1, zero_division=0.0),
        "macro_f1": partial(metrics.f1_score, average="macro", zero_division=0.0),
        "micro_f1": partial(metrics.f1_score, average="micro", zero_division=0.0),
        "subset_accuracy": metrics.accuracy_score,
        "matthews": metrics.matthews_corrcoef,
        "pearson": partial(_correlation, "pearsonr"),
        "spearman": spearman,
    }
