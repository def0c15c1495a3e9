"""The rows of a split as they are written, file after file: where its columns are, and which rows are left out."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path

from tinybert_ds.data.object_records import Records, find_column
from tinybert_ds.data.table_formats import read_records
from tinybert_ds.data.task_spec import LABEL_COLUMNS, Column, SplitFile, TaskSpec, find_label, label_ids
from tinybert_ds.errors import DataError
from tinybert_ds.foreign_text import listed, quoted, shown
from tinybert_ds.strict_formats import parse_json
from tinybert_ds.targets import target_of

BLOCK_ROWS = 8192
"""Rows that are read and tokenised at once: enough for all threads of the tokeniser, few enough for the memory."""

_HIDDEN_LABELS = ("-1", "-1.0")  # what data sets hold in place of the labels of their test splits
_OTHER_SEPARATORS = {"\t": "a tab", ";": "';'", "|": "'|'", ",": "a comma"}

Row = tuple[int, list[str]]
"""1-based number in its file, and the fields."""


@dataclass(frozen=True)
class Table:
    """The rows of one split as they are written, in the order of the file; rows of another width are left out."""

    path: Path
    header: list[str] | None
    rows: list[Row]
    text_columns: tuple[int, ...]
    label_column: int | None  # None in an unlabelled file
    skipped_rows: int = 0  # rows with missing fields, where the task allows them
    unit: str = "line"  # what the numbers count, see `Records`
    skipped_labels: int = 0  # rows whose label the task skips
    more: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # where `SplitFile.more_columns` are


def read_tables(paths: Iterable[Path], spec: TaskSpec, split: str) -> Iterator[Table]:
    """Read the files of a split, some thousand rows after the other; a block may be empty.

    Raises:
        OSError: A file cannot be read.
        DataError: A file is empty or not as its task and its suffix say, or has other columns than the first one.
    """
    first: Table | None = None
    for path in paths:
        for table in _read_blocks(path, spec, split):
            first = first or table
            yield table if table.path == first.path else _arranged(table, first)


def _arranged(table: Table, first: Table) -> Table:
    """A block of a further file, its columns in the order of the first file's."""
    if (table.label_column is None) != (first.label_column is None):
        raise DataError(
            f"{table.path} and {first.path} belong to one split, but only one has labels; give files of one kind"
        )
    if table.header is None or first.header is None or table.header == first.header:
        width, expected = _width(table), _width(first)
        if width != expected:
            raise DataError(f"{table.path} has {width} columns, but {first.path} of the same split has {expected}")
        return table
    if sorted(table.header) != sorted(first.header):
        raise DataError(
            f"{table.path} has the columns {listed(table.header)}, but {first.path} of the same split has "
            f"{listed(first.header)}; give files with the same columns"
        )
    order = [table.header.index(name) for name in first.header]
    rows = [(number, [fields[place] for place in order]) for number, fields in table.rows]
    return replace(
        table,
        header=first.header,
        rows=rows,
        text_columns=first.text_columns,
        label_column=first.label_column,
        more=first.more,
    )


def _width(table: Table) -> int:
    return len(table.header or (table.rows[0][1] if table.rows else []))


def _read_blocks(path: Path, spec: TaskSpec, split: str) -> Iterator[Table]:
    layout = spec.splits[split]
    more_columns = [column for columns in layout.more_columns.values() for column in columns]
    needed = [str(column) for column in (*layout.texts, layout.label, *more_columns) if column is not None]
    arrays = [str(column) for column in (*more_columns, *([layout.label] if target_of(spec).reads_arrays else []))]
    records = read_records(path, needed, layout.text_format, arrays=arrays, form=spec.text_form)
    unit, header, rows = records.unit, records.names, records.rows
    first = next(rows, None)
    if first is None:
        raise DataError(f"{path} is empty; give a file with at least one example")
    line = first[0]
    if header is None and layout.header:
        header = first[1]
    else:
        rows = chain([first], rows)
    width, texts, label, more = _find_columns(header or first[1], header is not None, layout, path, line)
    name_of = _class_namer(records, header, label, spec, path)
    left_out = {word.strip().lower() for word in spec.skip_labels if layout.label_required or split in spec.eval_splits}
    skip_short_rows = spec.skip_short_rows and layout.label_required  # of a test file every row is asked for
    found, begun = 0, False
    while block := list(islice(rows, BLOCK_ROWS)):
        whole = [row for row in block if len(row[1]) == width]
        if len(whole) < len(block) and not skip_short_rows:
            raise _other_width(next(row for row in block if len(row[1]) != width), width, path, unit, line)
        if label is not None and not layout.label_required and not begun and _are_hidden(whole, label, spec):
            label = None
        begun = True
        if label is not None and name_of is not None:
            whole = [(number, _with(fields, label, name_of(fields[label]))) for number, fields in whole]
        kept = whole
        if label is not None and left_out:
            kept = [row for row in whole if row[1][label].strip().lower() not in left_out]
        found += len(kept)
        yield Table(
            path,
            header,
            kept,
            tuple(texts),
            label,
            len(block) - len(whole),
            unit,
            skipped_labels=len(whole) - len(kept),
            more=more,
        )
    if not found:
        raise DataError(f"{path} holds no rows; give a file with at least one example")


def _with(fields: Sequence[str], place: int, field: str) -> list[str]:
    return [*fields[:place], field, *fields[place + 1 :]]


def _other_width(row: Row, width: int, path: Path, unit: str, line: int) -> DataError:
    number, fields = row
    count = "1 field" if len(fields) == 1 else f"{len(fields)} fields"
    return DataError(
        f"{path}, {unit} {number}: {count}, but line {line} has {width}. Texts of a tab-separated file may "
        "hold no tabs or line breaks, those of a .csv with commas stand in quotation marks; mend or remove "
        "the row, or say `quotes: true` or `separator` in the task file"
    )


def _are_hidden(rows: Sequence[Row], label: int, spec: TaskSpec) -> bool:
    """Whether the labels of a test file are only there in name: all are -1, which is none of the task's."""
    if not target_of(spec).may_be_hidden(spec):
        return False
    return bool(rows) and all(fields[label].strip() in _HIDDEN_LABELS for _, fields in rows)


def _class_namer(
    records: Records, header: list[str] | None, label: int | None, spec: TaskSpec, path: Path
) -> Callable[[str], str] | None:
    """What turns the numbers of a label column into the names that the file gives them, if the task knows these.

    Raises:
        DataError: The task gives a number another meaning than the file.
    """
    names = records.class_names.get(header[label]) if header is not None and label is not None else None
    known = label_ids(spec)
    if not names or any(find_label(known, name) is None for name in names):
        return None
    for number, name in enumerate(names):
        stated = find_label(known, str(number))
        if stated is not None and stated != find_label(known, name):
            raise DataError(
                f"{path} says that label {number} is {quoted(name)}, the task file that it is "
                f"{quoted(spec.label_names[stated])}; mend the task file's aliases or labels"
            )
    spellings = {str(number): name for number, name in enumerate(names)}

    def name_of(field: str) -> str:
        if not field.startswith("["):
            return spellings.get(field, field)
        return json.dumps([spellings.get(str(item), item) for item in parse_json(field)])

    return name_of


def _find_columns(
    first: list[str], header: bool, layout: SplitFile, path: Path, line: int
) -> tuple[int, list[int], int | None, dict[str, tuple[int, ...]]]:
    """Return the number of fields of a row, and the positions of the texts, of the label if there, and of what else.

    Args:
        first: The header, or the fields of the first row; it stands in line `line`.
    """
    first = [field.strip() for field in first]
    positions = [_position(column, first, header, path, line) for column in layout.texts]
    label = None if layout.label is None else _position(layout.label, first, header, path, line)
    missing = [column for column, at in zip(layout.texts, positions, strict=True) if at is None]
    more = {
        name: [_position(column, first, header, path, line) for column in columns]
        for name, columns in layout.more_columns.items()
    }
    for name, columns in layout.more_columns.items():
        if name != LABEL_COLUMNS or label is not None:
            missing += [column for column, at in zip(columns, more[name], strict=True) if at is None]
    if layout.label is not None and label is None and layout.label_required and not layout.may_lack_label:
        missing.append(layout.label)
    if missing:
        found = f"the columns {listed(first)}" if header else f"{len(first)} fields and no header"
        raise DataError(
            f"{path}, line {line}: no column {', '.join(map(named, missing))}; found "
            f"{found}. Columns are separated by tabs, in a .csv by commas; name the right ones in the task file or "
            f"rename them in the data{_hint(first, layout)}"
        )
    found_more = {name: tuple(at for at in places if at is not None) for name, places in more.items()}
    return len(first), [at for at in positions if at is not None], label, found_more


def named(column: Column | None) -> str:
    """Return a column as a message has it."""
    return quoted(column) if isinstance(column, str) else str(column)


def _hint(first: Sequence[str], layout: SplitFile) -> str:
    """What may be the matter with a file that lacks columns."""
    if len(first) == 1:
        for separator, name in _OTHER_SEPARATORS.items():
            if separator in first[0]:
                return f". Its first line holds {name}: should the task file say `separator: {quoted(separator)}`?"
    names = [str(column) for column in layout.texts]
    if any(f'"{name}"' in first for name in names):
        return ". They stand in quotation marks: should the task file say `quotes: true`?"
    return ""


def _position(column: Column, first: list[str], header: bool, path: Path, line: int) -> int | None:
    """Return where a column is: by its name in the header, else by its number."""
    if header:
        found = find_column(first, str(column))
        if len(found) > 1:
            places = " and the ".join(f"{at + 1}." for at in found[:4])
            raise DataError(
                f"{path}, line {line}: {len(found)} columns are called {shown(first[found[0]])!r}: the {places}; "
                "rename them, or give the position, from 0, in the task file"
            )
        if found:
            return found[0]
    word = str(column)
    if word.isdecimal() and len(word) < 9 and int(word) < len(first):
        return int(word)
    return None
