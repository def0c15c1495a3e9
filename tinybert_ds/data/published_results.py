"""What others measured of TinyBERT, in percent, and where it can be compared with ours.

The figures on GLUE's dev sets are those of the authors' ablations (arXiv 1909.10351v5), their full TinyBERT4 (the mean
is the 75.6 given there), the only ones per task that need no server. Those on the test sets come from the benchmark's
server: they stand beside ours only after a submission.

On CLUE the authors published none. The figures of the Chinese TinyBERTs are PaddleNLP's, which fine-tuned the published
general models without task distillation: the best of a grid of rates and batches, on the dev set that it was chosen on.
"""

from __future__ import annotations

from collections.abc import Mapping

_CLUE = ("afqmc", "tnews", "iflytek", "ocnli", "cluewsc2020", "csl")

PUBLISHED_DEV: Mapping[str, Mapping[tuple[str, str, str], float]] = {
    "TinyBERT4": {
        ("mnli", "dev", "accuracy"): 82.8,
        ("mnli", "dev_mismatched", "accuracy"): 82.9,
        ("mrpc", "dev", "accuracy"): 85.8,
        ("cola", "dev", "matthews"): 50.8,
    },
    "TinyBERT4-zh": {
        (task, "dev", "accuracy"): figure
        for task, figure in zip(_CLUE, (69.07, 54.02, 39.71, 69.59, 70.07, 75.07), strict=True)
    },
    "TinyBERT6-zh": {
        (task, "dev", "accuracy"): figure
        for task, figure in zip(_CLUE, (72.22, 55.70, 54.48, 74.07, 77.63, 80.17), strict=True)
    },
}
"""Model -> (task, split, metric) -> figure."""

_PADDLE = (
    "PaddleNLP, examples/benchmark/clue (general models fine-tuned, the best of a grid on this dev set, no task "
    "distillation)"
)
SOURCES: Mapping[str, str] = {
    "TinyBERT4": "arXiv 1909.10351v5, ablations on the dev sets",
    "TinyBERT4-zh": _PADDLE,
    "TinyBERT6-zh": _PADDLE,
}
"""Model -> where its figures on the dev sets are from."""

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
    ("afqmc", "dev"): 4316,
    ("tnews", "dev"): 10000,
    ("iflytek", "dev"): 2599,
    ("ocnli", "dev"): 2950,
    ("cluewsc2020", "dev"): 304,
    ("csl", "dev"): 3000,
}
"""(task, split) -> rows of the benchmark's own file; on any other file a comparison would mean nothing."""


def comparable_figure(model: str, task: str, split: str, metric: str, rows: int) -> float | None:
    """Return a published figure as a fraction, None where there is none for this split and these rows."""
    figure = PUBLISHED_DEV[model].get((task, split, metric))
    return figure / 100 if figure is not None and DEV_ROWS.get((task, split)) == rows else None
