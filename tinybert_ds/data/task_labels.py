"""The labels of a task as its files spell them. N rows."""

from __future__ import annotations

from tinybert_ds.data.task_spec import TaskSpec
from tinybert_ds.data.task_tables import Table
from tinybert_ds.foreign_text import quoted
from tinybert_ds.targets import Labels, target_of

__all__ = ["Labels", "parse_labels"]


def parse_labels(spec: TaskSpec, table: Table, split: str) -> Labels | None:
    """Return the labels of all rows, None where the file has none.

    Raises:
        DataError: something that is no label of the task; names file, line and column.
    """
    if table.label_column is None:
        return None
    target = target_of(spec)
    column, parse = spec.splits[split].label, target.parser(spec)
    name = quoted(column) if isinstance(column, str) else str(column)
    return target.as_labels(
        [
            parse(fields[table.label_column], f"{table.path}, {table.unit} {line}, column {name}")
            for line, fields in table.rows
        ]
    )
