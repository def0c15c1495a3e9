"""The labels of a task as its files spell them. N rows."""

from __future__ import annotations

import json
from collections.abc import Sequence

from tinybert_ds.data.task_spec import LABEL_COLUMNS, Column, TaskSpec
from tinybert_ds.data.task_tables import Table
from tinybert_ds.errors import DataError
from tinybert_ds.foreign_text import quoted
from tinybert_ds.targets import Labels, target_of

__all__ = ["Labels", "parse_labels"]

_YES_OR_NO = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "false": 0, "true": 1, "no": 0, "yes": 1}


def parse_labels(spec: TaskSpec, table: Table, split: str) -> Labels | None:
    """Return the labels of all rows, None where the file has none.

    Raises:
        DataError: something that is no label of the task; names file, line and column.
    """
    if table.label_column is None:
        return None
    target, layout = target_of(spec), spec.splits[split]
    parse, at = target.parser(spec), table.label_column
    name = _named(layout.label)
    columns = layout.more_columns.get(LABEL_COLUMNS, ())
    values = []
    for line, fields in table.rows:
        place = f"{table.path}, {table.unit} {line}"
        text = _joined(fields, table.more[LABEL_COLUMNS], columns, place) if columns else fields[at]
        values.append(parse(text, f"{place}, column {name}"))
    labels = target.as_labels(spec, values)
    problem = target.gold_problem(spec, labels) if split in spec.eval_splits else None
    if problem is not None:
        row, what = problem
        raise DataError(f"{table.path}, {table.unit} {table.rows[row][0]}, column {name}: {what}")
    return labels


def _joined(fields: Sequence[str], places: Sequence[int], names: Sequence[Column], where: str) -> str:
    """A yes or no from each of some columns, as a JSON array."""
    values = []
    for at, name in zip(places, names, strict=True):
        value = _YES_OR_NO.get(fields[at].strip().lower())
        if value is None:
            raise DataError(
                f"{where}, column {_named(name)}: {quoted(fields[at])} is no yes or no; give 1 where the row has "
                "the label, else 0"
            )
        values.append(value)
    return json.dumps(values)


def _named(column: Column | None) -> str:
    return quoted(column) if isinstance(column, str) else str(column)
