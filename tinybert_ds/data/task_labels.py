"""The labels and scores of a task as its files spell them. N rows."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from tinybert_ds.data.task_spec import TaskSpec, describe_labels, find_label, label_ids
from tinybert_ds.data.task_tables import Table
from tinybert_ds.errors import DataError
from tinybert_ds.foreign_text import quoted, shown

Labels = NDArray[np.int64 | np.float32]
"""(N,) class ids, int64, or scores, float32."""


def parse_labels(spec: TaskSpec, table: Table, split: str) -> Labels | None:
    """Return the labels of all rows, None where the file has none.

    Raises:
        DataError: something that is no label or score of the task; names file, line and column.
    """
    if table.label_column is None:
        return None
    known_labels = label_ids(spec)
    column = spec.splits[split].label
    name = quoted(column) if isinstance(column, str) else str(column)
    labels = [
        parse_label(fields[table.label_column], spec, known_labels, f"{table.path}, {table.unit} {line}, column {name}")
        for line, fields in table.rows
    ]
    return np.asarray(labels, dtype=np.float32 if spec.is_regression else np.int64)


def parse_label(text: str, spec: TaskSpec, known: dict[str, int], where: str) -> float:
    """Return the class id or the score that a field spells.

    Args:
        known: From `label_ids`.
        where: File, row and column, for the message.

    Raises:
        DataError: It is no label or score of the task.
    """
    if not spec.is_regression:
        label = find_label(known, text)
        if label is None:
            raise DataError(
                f"{where}: task {spec.name} has no label {quoted(text)}; it has {shown(describe_labels(spec), 1000)}. "
                "Mend the row, or list the label in a task file (--task_file): in labels or aliases, or in skip_labels "
                "to leave such rows out"
            )
        return label
    try:
        score = float(text)
    except ValueError:
        score = math.nan
    low, high = spec.score_range or (-math.inf, math.inf)
    if not (math.isfinite(score) and low <= score <= high):
        raise DataError(
            f"{where}: {quoted(text)} is no score of task {spec.name}; scores are numbers from {low:g} to {high:g}"
        )
    return score
