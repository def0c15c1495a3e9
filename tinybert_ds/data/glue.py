"""The tasks of GLUE in the files that the benchmark distributes: tab-separated, never quoted, labels by name.

The columns of a test file differ from those of its train file; they are found by their names in the header. Only CoLA's
train and dev files have none. Metrics are the benchmark's own (arXiv 1804.07461, table 1); numbers of augmented copies
are those of arXiv 1909.10351, appendix.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from tinybert_ds.data.task_spec import SEQUENCE_LENGTHS, Column, SplitFile, TaskSpec

DIAGNOSTIC_SPLIT = "diagnostic"
"""The split of MNLI that the benchmark calls AX: judged by the model of MNLI, never labelled."""

_PAIR = ("sentence1", "sentence2")


def _splits(texts: tuple[Column, ...], label: Column) -> dict[str, SplitFile]:
    return {
        "train": SplitFile("train.tsv", texts, label),
        "dev": SplitFile("dev.tsv", texts, label),
        "test": SplitFile("test.tsv", texts, label, label_required=False),
    }


def _classification(
    directory: str,
    splits: Mapping[str, SplitFile],
    labels: tuple[str, ...],
    metrics: tuple[str, ...] = ("accuracy",),
    *,
    copies: int = 30,
    numbered: bool = True,
) -> TaskSpec:
    """A task of GLUE; `numbered`: its files hold 0, 1, ... instead of the names."""
    return TaskSpec(
        name=directory.lower(),
        directory=directory,
        splits=splits,
        label_names=labels,
        label_aliases={str(number): name for number, name in enumerate(labels)} if numbered else {},
        metrics=metrics,
        official=metrics,
        max_seq_length=SEQUENCE_LENGTHS[len(splits["train"].texts)],
        augmented_copies=copies,
    )


COLA = _classification(
    "CoLA",
    {
        "train": SplitFile("train.tsv", (3,), 1, header=False),
        "dev": SplitFile("dev.tsv", (3,), 1, header=False),
        "test": SplitFile("test.tsv", ("sentence",), "label", label_required=False),
    },
    ("unacceptable", "acceptable"),
    ("matthews",),
)
SST2 = _classification("SST-2", _splits(("sentence",), "label"), ("negative", "positive"), copies=20)
MRPC = _classification(
    "MRPC",
    _splits(("#1 String", "#2 String"), "Quality"),
    ("not_equivalent", "equivalent"),
    ("accuracy", "f1"),
)
STSB = TaskSpec(
    name="sts-b",
    directory="STS-B",
    splits=_splits(_PAIR, "score"),
    metrics=("pearson", "spearman"),
    official=("pearson", "spearman"),
    score_range=(0.0, 5.0),
    max_seq_length=SEQUENCE_LENGTHS[2],
)
QQP = replace(
    _classification(
        "QQP",
        _splits(("question1", "question2"), "is_duplicate"),
        ("not_duplicate", "duplicate"),
        ("accuracy", "f1"),
        copies=10,
    ),
    skip_short_rows=True,
)
MNLI = replace(
    _classification(
        "MNLI",
        {
            "train": SplitFile("train.tsv", _PAIR, "gold_label"),
            "dev": SplitFile("dev_matched.tsv", _PAIR, "gold_label"),
            "dev_mismatched": SplitFile("dev_mismatched.tsv", _PAIR, "gold_label"),
            "test": SplitFile("test_matched.tsv", _PAIR, "gold_label", label_required=False),
            "test_mismatched": SplitFile("test_mismatched.tsv", _PAIR, "gold_label", label_required=False),
            DIAGNOSTIC_SPLIT: SplitFile("../diagnostic/diagnostic.tsv", _PAIR, None),
        },
        ("entailment", "neutral", "contradiction"),
        copies=10,
        numbered=False,
    ),
    eval_splits=("dev", "dev_mismatched"),
)
MNLI_MM = replace(MNLI, name="mnli-mm", eval_splits=("dev_mismatched", "dev"))
QNLI = _classification(
    "QNLI", _splits(("question", "sentence"), "label"), ("entailment", "not_entailment"), copies=20, numbered=False
)
RTE = _classification("RTE", _splits(_PAIR, "label"), ("entailment", "not_entailment"), numbered=False)
WNLI = _classification("WNLI", _splits(_PAIR, "label"), ("not_entailment", "entailment"))

GLUE_TASKS = (COLA, SST2, MRPC, STSB, QQP, MNLI, MNLI_MM, QNLI, RTE, WNLI)
"""In the benchmark's order; MNLI twice, judged on its matched and on its mismatched dev set."""
