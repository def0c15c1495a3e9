"""Reading the files of a task: its texts by column, its labels by name. N rows."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tinybert_ds.data.table_formats import file_format, read_records
from tinybert_ds.data.task_spec import Column, SplitFile, TaskSpec, describe_labels, label_ids
from tinybert_ds.errors import DataError

Labels = NDArray[np.int64 | np.float32]
"""(N,) class ids, int64, or scores, float32."""

BLOCK_ROWS = 8192
"""Rows that are read and tokenised at once: enough for all threads of the tokeniser, few enough for the memory."""


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
    rows: list[tuple[int, list[str]]]  # (1-based number, fields)
    text_columns: tuple[int, ...]
    label_column: int | None  # None in an unlabelled file
    skipped_rows: int = 0  # rows with missing fields, where the task allows them
    unit: str = "line"  # what the numbers count, see `Records`


def read_split(spec: TaskSpec, data_dir: str | Path, split: str) -> Examples:
    """Read one split of a task, see `read_split_in_blocks`."""
    blocks = list(read_split_in_blocks(spec, data_dir, split))
    labels = [block.labels for block in blocks if block.labels is not None]
    return Examples(
        blocks[0].path,
        tuple(list(chain.from_iterable(columns)) for columns in zip(*(block.texts for block in blocks), strict=True)),
        np.concatenate(labels) if labels else None,
        sum(block.skipped_rows for block in blocks),
    )


def read_split_in_blocks(spec: TaskSpec, data_dir: str | Path, split: str) -> Iterator[Examples]:
    """Read one split of a task, some thousand rows after the other; a block may be empty.

    Raises:
        DataError: the file is missing, empty or not UTF-8, or a row does not fit; names the file, line and column.
    """
    for table in read_table_in_blocks(spec, data_dir, split):
        texts = tuple([fields[column] for _, fields in table.rows] for column in table.text_columns)
        yield Examples(table.path, texts, parse_labels(spec, table, split), table.skipped_rows)


def read_table(spec: TaskSpec, data_dir: str | Path, split: str) -> Table:
    """Read one split of a task with all its columns, as they are, see `read_table_in_blocks`."""
    blocks = list(read_table_in_blocks(spec, data_dir, split))
    rows = [row for block in blocks for row in block.rows]
    return replace(blocks[0], rows=rows, skipped_rows=sum(block.skipped_rows for block in blocks))


def read_table_in_blocks(spec: TaskSpec, data_dir: str | Path, split: str) -> Iterator[Table]:
    """Read one split of a task with all its columns, some thousand rows after the other; a block may be empty.

    Raises:
        DataError: the file is missing, empty or not UTF-8, or a row has missing or surplus fields; names file and line.
    """
    if split not in spec.splits:
        raise DataError(f"task {spec.name} has no split {split!r}; it has {', '.join(spec.splits)}")
    layout = spec.splits[split]
    path = spec.split_path(data_dir, split)
    try:
        yield from _read_blocks(path, spec, layout)
    except OSError as error:
        maker = ": data_tools/data_augmentation.py writes it" if path.stem.endswith("_aug") else ""
        raise DataError(
            f"cannot read {path}: {error.strerror}. Task {spec.name} needs this file in --data_dir{maker}; "
            f"found there: {_listing(path.parent)}"
        ) from error


def require_file(spec: TaskSpec, data_dir: str | Path, split: str) -> Path:
    """Return the file of a split.

    Raises:
        DataError: It is not there; says what is in its place.
    """
    path = spec.split_path(data_dir, split)
    if not path.is_file():
        next(read_table_in_blocks(spec, data_dir, split))  # says what is wrong
    return path


def without_tabs(table: Table) -> Table:
    """Return a table whose fields can be written tab-separated: tabs and line breaks inside them become spaces.

    A tab-separated file's own fields stay as they are.
    """
    if file_format(table.path) == "tsv":
        return table
    clean = {ord(character): " " for character in "\t\r\n"}
    rows = [(number, [field.translate(clean) for field in fields]) for number, fields in table.rows]
    header = None if table.header is None else [name.translate(clean) for name in table.header]
    return replace(table, header=header, rows=rows)


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
        parse_label(
            fields[table.label_column], spec, known_labels, f"{table.path}, {table.unit} {line}, column {label!r}"
        )
        for line, fields in table.rows
    ]
    return np.asarray(labels, dtype=np.float32 if spec.is_regression else np.int64)


def _listing(folder: Path) -> str:
    if not folder.is_dir():
        return "no such folder"
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    return (", ".join(names[:10]) or "nothing") + (" ..." if len(names) > 10 else "")


def _read_blocks(path: Path, spec: TaskSpec, layout: SplitFile) -> Iterator[Table]:
    needed = [str(column) for column in (*layout.texts, layout.label) if column is not None]
    unit, header, rows = read_records(path, needed)
    first = next(rows, None)
    if first is None:
        raise DataError(f"{path} is empty; give a file with at least one example")
    line = first[0]
    if header is None and layout.header:
        header = first[1]
    else:
        rows = chain([first], rows)
    width, text_columns, label_column = _find_columns(header or first[1], header is not None, layout, path, line)
    skip_short_rows = spec.skip_short_rows and layout.label_required  # of a test file every row is asked for
    found = 0
    while block := list(islice(rows, BLOCK_ROWS)):
        whole = [row for row in block if len(row[1]) == width]
        if len(whole) < len(block) and not skip_short_rows:
            number, fields = next(row for row in block if len(row[1]) != width)
            count = "1 field" if len(fields) == 1 else f"{len(fields)} fields"
            raise DataError(
                f"{path}, {unit} {number}: {count}, but line {line} has {width}. Texts of a tab-separated file may "
                "hold no tabs or line breaks, those of a .csv with commas stand in quotation marks; mend or remove "
                "the row"
            )
        found += len(whole)
        yield Table(path, header, whole, tuple(text_columns), label_column, len(block) - len(whole), unit)
    if not found:
        raise DataError(f"{path} holds no rows; give a file with at least one example")


def _find_columns(
    first: list[str], header: bool, layout: SplitFile, path: Path, line: int
) -> tuple[int, list[int], int | None]:
    """Return the number of fields of a row, the positions of the texts, and that of the label if the file has it.

    Args:
        first: The header, or the fields of the first row; it stands in line `line`.
    """
    first = [field.strip() for field in first]
    positions = [_position(column, first, header) for column in layout.texts]
    label = None if layout.label is None else _position(layout.label, first, header)
    missing = [column for column, at in zip(layout.texts, positions, strict=True) if at is None]
    if layout.label is not None and label is None and layout.label_required:
        missing.append(layout.label)
    if missing:
        found = f"the columns {', '.join(first)}" if header else f"{len(first)} fields and no header"
        raise DataError(
            f"{path}, line {line}: no column {', '.join(repr(column) for column in missing)}; found "
            f"{found}. Columns are separated by tabs, in a .csv by commas; name the right ones in the task file or "
            "rename them in the data"
        )
    return len(first), [at for at in positions if at is not None], label


def _position(column: Column, first: list[str], header: bool) -> int | None:
    """Return where a column is: by its name in the header, else by its number."""
    if header and column in first:
        return first.index(str(column))
    if str(column).isdecimal() and int(column) < len(first):
        return int(column)
    return None


def parse_label(text: str, spec: TaskSpec, known: dict[str, int], where: str) -> float:
    """Return the class id or the score that a field spells.

    Args:
        known: From `label_ids`.
        where: File, row and column, for the message.

    Raises:
        DataError: It is no label or score of the task.
    """
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
