"""Files of rows, whatever their format: tab-separated, comma-separated, JSON lines or Parquet, by the file's suffix.

Tab-separated files are those of GLUE: never quoted, because their texts hold single quotation marks that belong to
them; lines end at LF or CRLF only. Comma-separated ones are quoted as spreadsheets do (RFC 4180).
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import pyarrow
from pyarrow import parquet

from tinybert_ds.errors import DataError

FORMATS = {".csv": "csv", ".jsonl": "json", ".ndjson": "json", ".json": "json", ".parquet": "parquet"}
"""Suffix -> format; all others are tab-separated."""


class Records(NamedTuple):
    """The rows of a file as text, blank ones left out."""

    unit: str  # what the file counts in: "line" or "row"
    names: list[str] | None  # of the columns, where the format has them; else the first row may hold them
    rows: list[tuple[int, list[str]]]  # (1-based number, fields)


def file_format(file: str | PurePath) -> str:
    """Return the format of a file by its name: tsv, csv, json (lines) or parquet."""
    return FORMATS.get(PurePath(file).suffix.lower(), "tsv")


def names_its_columns(file: str | PurePath) -> bool:
    """Whether files of this format always name their columns."""
    return file_format(file) in ("json", "parquet")


def augmented_file(file: str | PurePath) -> PurePath:
    """Return the name of a training file's augmented one, beside it: always tab-separated."""
    path = PurePath(file)
    suffix = path.suffix if file_format(path) == "tsv" else ".tsv"
    return path.with_name(f"{path.stem}_aug{suffix}")


def read_records(path: Path, needed: Sequence[str]) -> Records:
    """Read all rows of a file.

    Args:
        path: Its suffix says the format.
        needed: Columns that no row may lack, if the file has them.

    Raises:
        OSError: The file cannot be read.
        DataError: It is empty, not of its format or not UTF-8, or a row lacks a value; names file, line and column.
    """
    kind = file_format(path)
    if kind == "parquet":
        records = _parquet(path, needed)
    else:
        text = _decode(path)
        if kind == "json":
            records = _json_lines(path, text, needed)
        else:
            records = Records("line", None, list(_tab_separated(text) if kind == "tsv" else _quoted(path, text)))
    if not records.rows:
        raise DataError(f"{path} is empty; give a file with at least one example")
    return records


def _decode(path: Path) -> str:
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")  # MRPC starts with a byte-order mark
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}, line {line}: byte {error.start} is not UTF-8; convert the file to UTF-8") from error


def _tab_separated(text: str) -> Iterator[tuple[int, list[str]]]:
    # Not str.splitlines: it also breaks lines at form feeds and Unicode separators, which texts do hold.
    for number, line in enumerate(text.split("\n"), start=1):
        content = line.removesuffix("\r")
        if content.strip():
            yield number, content.split("\t")


def _quoted(path: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    line = 1
    try:
        for fields in reader:
            if any(field.strip() for field in fields):
                yield line, fields
            line = reader.line_num + 1  # a quoted field may go over several lines
    except csv.Error as error:
        raise DataError(
            f"{path}, line {line}: not comma-separated as spreadsheets write it ({error}); fields with commas, line "
            'breaks or quotation marks stand in "...", a quotation mark inside them is doubled'
        ) from error


def _json_lines(path: Path, text: str, needed: Sequence[str]) -> Records:
    names: list[str] | None = None
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            item = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{path}, line {number}: no JSON at character {error.colno} ({error.msg}); JSON lines have an object "
                "on each line"
            ) from error
        if not isinstance(item, dict):
            raise DataError(
                f"{path}, line {number}: a JSON {type(item).__name__}; JSON lines have an object on each line"
            )
        names = list(item) if names is None else names
        place = f"{path}, line {number}"
        rows.append((number, [_text(item.get(name), name, place, name in needed) for name in names]))
    return Records("line", names, rows)


def _parquet(path: Path, needed: Sequence[str]) -> Records:
    try:
        table = parquet.read_table(path)
    except (pyarrow.ArrowInvalid, pyarrow.ArrowNotImplementedError) as error:
        reason = str(error).partition("\n")[0]
        raise DataError(f"{path} cannot be read as Parquet: {reason}") from error
    names = [str(name) for name in table.column_names]
    columns = [
        [_text(value, name, f"{path}, row {row}", name in needed) for row, value in enumerate(column.to_pylist(), 1)]
        for name, column in zip(names, table.columns, strict=True)
    ]
    return Records("row", names, [(row, list(fields)) for row, fields in enumerate(zip(*columns, strict=True), 1)])


def _text(value: Any, name: str, place: str, needed: bool) -> str:
    """Return a value as text; raises DataError where a needed one is missing or is no plain value."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if not needed:
        return ""
    found = "no value" if value is None else f"a {type(value).__name__}"
    raise DataError(f"{place}, column {name!r}: {found}; texts are strings, labels strings or numbers")
