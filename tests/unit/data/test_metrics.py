from dataclasses import replace

import numpy as np
import pytest

from tinybert_ds.data.metrics import compute_metrics, official_metric, official_metric_name
from tinybert_ds.data.tasks import TASKS

BINARY = replace(TASKS["sst-2"], metrics=("accuracy", "f1", "matthews"), official=("accuracy", "f1"))
SCORES = replace(
    BINARY,
    label_names=(),
    label_aliases={},
    score_range=(0.0, 5.0),
    metrics=("pearson", "spearman"),
    official=("pearson", "spearman"),
)


def test_classification_metrics_equal_those_counted_by_hand():
    references = np.array([1, 1, 1, 0, 0, 0, 0, 1])
    predictions = np.array([1, 1, 0, 0, 0, 0, 1, 0])  # TP 2, FN 2, TN 3, FP 1
    metrics = compute_metrics(BINARY, predictions, references)
    assert metrics["accuracy"] == pytest.approx(5 / 8)
    assert metrics["f1"] == pytest.approx(4 / 7)  # 2 TP / (2 TP + FP + FN)
    assert metrics["matthews"] == pytest.approx((2 * 3 - 1 * 2) / (3 * 4 * 4 * 5) ** 0.5)
    assert official_metric(BINARY, metrics) == pytest.approx((5 / 8 + 4 / 7) / 2)
    assert official_metric_name(BINARY) == "mean of accuracy and f1"


def test_macro_f1_is_the_mean_over_the_classes():
    spec = replace(BINARY, label_names=("a", "b", "c"), label_aliases={}, metrics=("macro_f1",), official=("macro_f1",))
    metrics = compute_metrics(spec, np.array([0, 0, 1, 1]), np.array([0, 1, 1, 2]))
    assert metrics == {"macro_f1": pytest.approx((2 / 3 + 1 / 2 + 0) / 3)}
    assert official_metric_name(spec) == "macro_f1"


def test_correlations_equal_those_computed_by_hand():
    predictions, references = np.array([1.0, 2.0, 4.0]), np.array([1.0, 3.0, 2.0])
    metrics = compute_metrics(SCORES, predictions, references)
    # deviations (-4/3, -1/3, 5/3) and (-1, 1, 0): 1 / sqrt(14/3 * 2)
    assert metrics["pearson"] == pytest.approx(1 / (14 / 3 * 2) ** 0.5)
    assert metrics["spearman"] == pytest.approx(0.5)  # ranks 1 2 3 and 1 3 2: 1 - 6 * 2 / (3 * 8)


@pytest.mark.parametrize(
    "predictions", [[2.0, 2.0, 2.0], [1.0, np.nan, 2.0], [1.0, np.inf, 2.0]], ids=["constant", "nan", "infinite"]
)
def test_an_undefined_correlation_is_zero(predictions):
    metrics = compute_metrics(SCORES, np.array(predictions), np.array([1.0, 3.0, 2.0]))
    assert metrics == {"pearson": 0.0, "spearman": 0.0}


def test_a_constant_answer_has_matthews_and_f1_zero():
    metrics = compute_metrics(BINARY, np.zeros(4, dtype=np.int64), np.array([0, 1, 1, 0]))
    assert metrics == {"accuracy": 0.5, "f1": 0.0, "matthews": 0.0}
