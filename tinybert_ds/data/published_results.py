"""What the authors of TinyBERT measured (arXiv 1909.10351v5), in percent, and where it can be compared with ours.

The figures on the dev sets are those of the paper's ablations, its full TinyBERT4 (their mean is the 75.6 given there),
the only ones per task that need no server. Those on the test sets come from the benchmark's server: they stand beside
ours only after a submission.
"""

from __future__ import annotations

from collections.abc import Mapping

PUBLISHED_DEV: Mapping[str, Mapping[tuple[str, str, str], float]] = {
    "TinyBERT4": {
        ("mnli", "dev", "accuracy"): 82.8,
        ("mnli", "dev_mismatched", "accuracy"): 82.9,
        ("mrpc", "dev", "accuracy"): 85.8,
        ("cola", "dev", "matthews"): 50.8,
    }
}
"""Model -> (task, split, metric) -> figure."""

PUBLISHED_TEST: Mapping[str, Mapping[str, float]] = {
    "TinyBERT4": {
        "MNLI-m": 82.5,
        "MNLI-mm": 81.8,
        "QQP (F1)": 71.3,
        "QNLI": 87.7,
        "SST-2": 92.6,
        "CoLA": 44.1,
        "STS-B (Spearman)": 80.4,
        "MRPC (F1)": 86.4,
        "RTE": 66.6,
        "average": 77.0,
    },
}
"""Model -> test set -> figure."""

DEV_ROWS: Mapping[tuple[str, str], int] = {
    ("mnli", "dev"): 9815,
    ("mnli", "dev_mismatched"): 9832,
    ("mrpc", "dev"): 408,
    ("cola", "dev"): 1043,
}
"""(task, split) -> rows of the benchmark's own file; on any other file a comparison would mean nothing."""


def comparable_figure(model: str, task: str, split: str, metric: str, rows: int) -> float | None:
    """Return a published figure as a fraction, None where there is none for this split and these rows."""
    figure = PUBLISHED_DEV[model].get((task, split, metric))
    return figure / 100 if figure is not None and DEV_ROWS.get((task, split)) == rows else None
