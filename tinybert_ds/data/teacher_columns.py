"""A teacher that is only a column in a file: what it said of each row, as a task file describes it.

n rows of a block, W values a row, C outputs of the task.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinybert_ds.data.task_spec import Column, TaskSpec, TeacherColumns
from tinybert_ds.data.task_tables import Row, Table
from tinybert_ds.errors import DataError
from tinybert_ds.foreign_text import listed, quoted, shown
from tinybert_ds.strict_formats import parse_json
from tinybert_ds.targets import Target, target_of

COLUMNS = "teacher"
"""What the columns are called among `SplitFile.more_columns`, and the values among those of encoded rows."""

_KEYS = {
    "columns": "a column for each output, a column of arrays, or label -> column",
    "kind": "what the values are",
    "labels": "the outputs in the order of the columns or of the arrays (default: that of the task's labels)",
    "temperature": "what the logits were divided by before they became probabilities (default: 1)",
}


def read_teacher(content: Any, target: Target, labels: Sequence[str]) -> tuple[TeacherColumns | None, list[str]]:
    """Read the key `teacher` of a task file.

    Args:
        labels: The task's outputs by name; none where it has no names for them.

    Returns:
        The columns, and what is wrong with the key, a sentence each.
    """
    if content is None:
        return None, []
    if not target.teacher_kinds:
        return None, [f"teacher: {target.kind} learns from no columns; leave it out"]
    if not isinstance(content, dict) or "columns" not in content or not set(content) <= set(_KEYS):
        listing = "; ".join(f"{key}: {meaning}" for key, meaning in _KEYS.items())
        found = listed(map(str, content)) if isinstance(content, dict) else shown(content)
        return None, [f"teacher: a mapping with {listing}; found {found}"]
    problems: list[str] = []
    kind = content.get("kind", target.teacher_kinds[0])
    if kind not in target.teacher_kinds:
        problems.append(f"teacher: kind: one of {', '.join(target.teacher_kinds)}, found {shown(kind)!r}")
    temperature = _number(content.get("temperature", "1"))
    if temperature is None or (temperature != 1 and kind != "probabilities"):
        given = content.get("temperature")
        problems.append(f"teacher: temperature: a number above 0, with `kind: probabilities`; found {shown(given)!r}")
    given, order_given = content["columns"], content.get("labels")
    names: list[str] | None
    if isinstance(given, dict):
        if order_given is not None:
            problems.append("teacher: labels: columns names the labels already; leave one of them out")
        columns, names = [str(column) for column in given.values()], [str(name) for name in given]
    else:
        columns = [str(column) for column in given] if isinstance(given, list) else [str(given)]
        names = [str(name) for name in order_given] if isinstance(order_given, list) else None
    order, more = _order(names, labels)
    problems += more
    outputs = len(labels) or 1
    if target.by_token and (len(columns) != 1 or isinstance(given, dict)):
        problems.append(
            f"teacher: columns: one of {target.noun} has an array for each word, in the order that `labels` may state; "
            f"found {listed(columns) or 'none'}"
        )
    elif len(set(columns)) < len(columns) or not columns:
        problems.append(f"teacher: columns: different ones, found {listed(columns) or 'none'}")
    elif len(columns) not in (1, outputs) or (isinstance(given, dict) and len(columns) != outputs):
        problems.append(f"teacher: columns: one of arrays or {outputs}, found {len(columns)}: {listed(columns)}")
    return TeacherColumns(tuple(columns), str(kind), temperature or 1.0, order), problems


def with_teacher(spec: TaskSpec) -> TaskSpec:
    """Return a task whose training rows are read with what a teacher said of them, where the task names columns."""
    if spec.teacher is None:
        return spec
    layout = spec.splits["train"]
    more = {**layout.more_columns, COLUMNS: spec.teacher.columns}
    return replace(spec, splits={**spec.splits, "train": replace(layout, more_columns=more)})


def parse_teacher(spec: TaskSpec, table: Table) -> NDArray[np.float32]:
    """Return what the teacher said (n, C) of the rows of a block, as the losses take it.

    Raises:
        DataError: A value that is missing, is none of its kind, or rows with other numbers of values; names file, row
            and column.
    """
    teacher, target = spec.teacher, target_of(spec)
    assert teacher is not None
    reader = _Reader(table, table.more[COLUMNS], teacher.columns, len(spec.label_names) or target.teacher_width)
    values = reader.read()
    problem = target.teacher_problem(values, teacher.kind)
    if problem is not None:
        row, what = problem
        raise DataError(f"{reader.place(table.rows[row])}: {what}")
    outputs = target.teacher_outputs(values, teacher.kind, teacher.temperature)
    return np.ascontiguousarray(outputs[:, list(teacher.order)] if teacher.order else outputs, dtype=np.float32)


def read_arrays(table: Table, name: str, column: Column) -> NDArray[np.float32]:
    """Return the arrays (n, W) that a column of a block holds, all as wide as the first one.

    Args:
        name: What the column is called among `SplitFile.more_columns`.
        column: What it is called in the file.

    Raises:
        DataError: A row without an array of W finite numbers; names file, row and column.
    """
    return _Reader(table, table.more[name], [column], None).read()


@dataclass(frozen=True)
class _Reader:
    """Reads the teacher's values of a block."""

    table: Table
    places: Sequence[int]
    names: Sequence[Column]
    width: int | None  # None: as many as the first row has

    def place(self, row: Row, column: Column | None = None) -> str:
        """File, row and column, for a message."""
        name = self.names[0] if column is None else column
        many = "columns" if column is None and len(self.names) > 1 else "column"
        shown_names = listed(map(str, self.names)) if many == "columns" else quoted(str(name))
        return f"{self.table.path}, {self.table.unit} {row[0]}, {many} {shown_names}"

    def read(self) -> NDArray[np.float32]:
        rows = self.table.rows
        if not rows:
            return np.zeros((0, self.width or 0), dtype=np.float32)
        read_row: Callable[[Row], list[float]] = self._array if len(self.places) == 1 else self._numbers
        found = [read_row(row) for row in rows]
        width = self.width or len(found[0])
        for row, values in zip(rows, found, strict=True):
            if len(values) != width:
                raise DataError(
                    f"{self.place(row)}: {len(values)} values; "
                    + (f"the task has {width} outputs" if self.width else f"the rows before it have {width}")
                )
        flat = np.fromiter(chain.from_iterable(found), np.float64, count=width * len(rows)).reshape(len(rows), width)
        if not np.isfinite(flat).all():
            bad = int(np.flatnonzero(~np.isfinite(flat).all(axis=1))[0])
            raise DataError(f"{self.place(rows[bad])}: a value that is no finite number; mend or remove the row")
        return flat.astype(np.float32)

    def _numbers(self, row: Row) -> list[float]:
        return [self._number(row[1][at], row, name) for at, name in zip(self.places, self.names, strict=True)]

    def _array(self, row: Row) -> list[float]:
        text = row[1][self.places[0]].strip()
        if not text.startswith("["):
            return [self._number(text, row, self.names[0])]
        try:
            values = parse_json(text)
        except ValueError:
            values = None
        if not isinstance(values, list) or not all(_is_number(value) for value in values):
            missing = isinstance(values, list) and any(value is None for value in values)
            found = "a value is missing in" if missing else "no array of numbers:"
            raise DataError(
                f"{self.place(row)}: {found} {shown(text, 200)}; give what the teacher said, or remove the row"
            )
        return values

    def _number(self, text: str, row: Row, name: Column) -> float:
        try:
            return float(text)
        except ValueError:
            found = "no value" if not text.strip() else f"{quoted(text)} is no number"
            raise DataError(
                f"{self.place(row, name)}: {found}; give what the teacher said, or remove the row"
            ) from None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number(text: Any) -> float | None:
    try:
        value = float(text)
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) and value > 0 else None


def _order(names: Sequence[str] | None, labels: Sequence[str]) -> tuple[tuple[int, ...], list[str]]:
    """Return the place among `names` of each label, () where they are in order, and what is wrong."""
    if names is None:
        return (), []
    places: Mapping[str, int] = {str(name).lower(): place for place, name in enumerate(names)}
    if len(places) < len(names) or set(places) != {label.lower() for label in labels}:
        return (), [
            f"teacher: labels: {listed(map(str, names))} are not the task's, {listed(labels) or 'which has none'}"
        ]
    order = tuple(places[label.lower()] for label in labels)
    return (() if order == tuple(range(len(labels))) else order), []
