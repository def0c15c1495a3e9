"""Reading the files of a task as GLUE writes them: tab-separated, never quoted.

N rows. Quoting is off because GLUE's texts hold single quotation marks that belong to them; a file written by a
spreadsheet with quoted fields shows its quotation marks in the texts. Lines end at LF or CRLF only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tinybert_ds.data.task_spec import Column, SplitFile, TaskSpec, describe_labels, label_ids
from tinybert_ds.errors import DataError

Labels = NDArray[np.int64 | np.float32]
"""(N,) class ids, int64, or scores, float32."""


@dataclass(frozen=True)
class Examples:
    """The rows of one split, in the order of the file."""

    path: Path
    texts: tuple[list[str], ...]  # one list of N texts, or two for pairs
    labels: Labels | None  # None in an unlabelled file
    skipped_rows: int = 0  # rows with missing fields, where the task allows them

    def __len__(self) -> int:
        return len(self.texts[0])


@dataclass(frozen=True)
class Table:
    """The rows of one split as they are written, in the order of the file; rows of another width are left out."""

    path: Path
    header: list[str] | None
    rows: list[tuple[int, list[str]]]  # (1-based line number, fields)
    text_columns: tuple[int, ...]
    label_column: int | None  # None in an unlabelled file
    skipped_rows: int = 0  # rows with missing fields, where the task allows them


def read_split(spec: TaskSpec, data_dir: str | Path, split: str) -> Examples:
    """Read one split of a task.

    Args:
        spec: the task.
        data_dir: the folder with its files.
        split: a name in `spec.splits`.

    Raises:
        DataError: the file is missing, empty or not UTF-8, or a row does not fit; names the file, line and column.
    """
    table = read_table(spec, data_dir, split)
    texts = tuple([fields[column] for _, fields in table.rows] for column in table.text_columns)
    return Examples(table.path, texts, parse_labels(spec, table, split), table.skipped_rows)


def read_table(spec: TaskSpec, data_dir: str | Path, split: str) -> Table:
    """Read one split of a task with all its columns, as they are.

    Args:
        spec: the task.
        data_dir: the folder with its files.
        split: a name in `spec.splits`.

    Raises:
        DataError: the file is missing, empty or not UTF-8, or a row has missing or surplus fields; names file and line.
    """
    if split not in spec.splits:
        raise DataError(f"task {spec.name} has no split {split!r}; it has {', '.join(spec.splits)}")
    layout = spec.splits[split]
    path = Path(data_dir) / layout.file
    rows = _rows(_read_text(path, spec), path)
    width, text_columns, label_column = _find_columns(rows, layout, path)
    header = rows[0][1] if layout.header else None
    skip_short_rows = spec.skip_short_rows and layout.label_required  # of a test file every row is asked for
    whole = []
    for line, fields in rows[layout.header :]:
        if len(fields) == width:
            whole.append((line, fields))
        elif not skip_short_rows:
            raise DataError(
                f"{path}, line {line}: {len(fields)} tab-separated fields, but line {rows[0][0]} has {width}. "
                "Texts may hold no tabs or line breaks; mend or remove the line"
            )
    if not whole:
        raise DataError(f"{path} holds no rows; give a file with at least one example")
    return Table(path, header, whole, tuple(text_columns), label_column, len(rows) - layout.header - len(whole))


def parse_labels(spec: TaskSpec, table: Table, split: str) -> Labels | None:
    """Return the labels of all rows, None where the file has none.

    Raises:
        DataError: something that is no label or score of the task; names file, line and column.
    """
    if table.label_column is None:
        return None
    known_labels = label_ids(spec)
    label = spec.splits[split].label
    labels = [
        _parse_label(fields[table.label_column], spec, known_labels, f"{table.path}, line {line}, column {label!r}")
        for line, fields in table.rows
    ]
    return np.asarray(labels, dtype=np.float32 if spec.is_regression else np.int64)


def _read_text(path: Path, spec: TaskSpec) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        folder = path.parent
        found = ", ".join(sorted(p.name for p in folder.iterdir())[:10]) if folder.is_dir() else "no such folder"
        raise DataError(
            f"cannot read {path}: {error.strerror}. Task {spec.name} needs this file in --data_dir; "
            f"found there: {found or 'nothing'}"
        ) from error
    try:
        return content.decode("utf-8-sig")  # MRPC starts with a byte-order mark
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}, line {line}: byte {error.start} is not UTF-8; convert the file to UTF-8") from error


def _rows(text: str, path: Path) -> list[tuple[int, list[str]]]:
    """Return (1-based line number, fields) of every line that is not blank."""
    rows = list(_split(text))
    if not rows:
        raise DataError(f"{path} is empty; give a file with at least one example")
    return rows


def _split(text: str) -> Iterator[tuple[int, list[str]]]:
    # Not str.splitlines: it also breaks lines at form feeds and Unicode separators, which texts do hold.
    for number, line in enumerate(text.split("\n"), start=1):
        content = line.removesuffix("\r")
        if content.strip():
            yield number, content.split("\t")


def _find_columns(
    rows: list[tuple[int, list[str]]], layout: SplitFile, path: Path
) -> tuple[int, list[int], int | None]:
    """Return the number of fields of a row, the positions of the texts, and that of the label if the file has it."""
    first = [field.strip() for field in rows[0][1]]
    positions = [_position(column, first, layout.header) for column in layout.texts]
    label = None if layout.label is None else _position(layout.label, first, layout.header)
    missing = [column for column, at in zip(layout.texts, positions, strict=True) if at is None]
    if layout.label is not None and label is None and layout.label_required:
        missing.append(layout.label)
    if missing:
        found = f"the columns {', '.join(first)}" if layout.header else f"{len(first)} fields and no header"
        raise DataError(
            f"{path}, line {rows[0][0]}: no column {', '.join(repr(column) for column in missing)}; found "
            f"{found}. Columns are separated by tabs; name the right ones in the task file or rename them in the data"
        )
    return len(first), [at for at in positions if at is not None], label


def _position(column: Column, first: list[str], header: bool) -> int | None:
    """Return where a column is: by its name in the header, else by its number."""
    if header and column in first:
        return first.index(str(column))
    if str(column).isdecimal() and int(column) < len(first):
        return int(column)
    return None


def _parse_label(text: str, spec: TaskSpec, known: dict[str, int], where: str) -> float:
    """Return the class id or the score that a field spells; raises DataError."""
    if not spec.is_regression:
        label = known.get(text.strip().lower())
        if label is None:
            raise DataError(
                f"{where}: task {spec.name} has no label {text!r}; it has {describe_labels(spec)}. "
                "Mend the row, or list the label in a task file (--task_file)"
            )
        return label
    try:
        score = float(text)
    except ValueError:
        score = math.nan
    low, high = spec.score_range or (-math.inf, math.inf)
    if not (math.isfinite(score) and low <= score <= high):
        raise DataError(
            f"{where}: {text!r} is no score of task {spec.name}; scores are numbers from {low:g} to {high:g}"
        )
    return score
