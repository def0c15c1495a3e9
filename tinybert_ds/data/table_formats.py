"""Files of rows, whatever their format: tab-separated, comma-separated, JSON lines or Parquet, by the file's suffix.

Tab-separated files are those of GLUE: never quoted, because their texts hold single quotation marks that belong to
them; lines end at LF or CRLF only. Comma-separated ones are quoted as spreadsheets do (RFC 4180).
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import pyarrow
from pyarrow import parquet

from tinybert_ds.errors import DataError

FORMATS = {".csv": "csv", ".jsonl": "json", ".ndjson": "json", ".json": "json", ".parquet": "parquet"}
"""Suffix -> format; all others are tab-separated."""

_PARQUET_ROWS = 4096
_COUNT_BYTES = 1 << 20
_UNREADABLE = (pyarrow.ArrowInvalid, pyarrow.ArrowNotImplementedError)  # damaged, or a feature that pyarrow lacks
_SURROGATE = re.compile("[\ud800-\udfff]")  # JSON can spell it, UTF-8 cannot


class Records(NamedTuple):
    """The rows of a file as text, blank ones left out; the file is read while they are taken."""

    unit: str  # what the file counts in: "line" or "row"
    names: list[str] | None  # of the columns, where the format has them; else the first row may hold them
    rows: Iterator[tuple[int, list[str]]]  # (1-based number, fields)


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
    """Read a file row by row, so that its size does not matter.

    Args:
        path: Its suffix says the format.
        needed: Columns that no row may lack, if the file has them.

    Raises:
        OSError: The file cannot be read.
        DataError: It is not of its format or not UTF-8, or a row lacks a value; names file, line and column. Both also
            while rows are taken.
    """
    kind = file_format(path)
    if kind == "parquet":
        return _parquet(path, needed)
    if kind == "csv":
        return Records("line", None, _quoted(path))
    return _json_lines(path, needed) if kind == "json" else Records("line", None, _tab_separated(path))


def estimate_rows(path: Path) -> int:
    """Return about how many rows a file has, for progress bars: the rows of a Parquet file, the lines of another."""
    if file_format(path) == "parquet":
        return int(_open_parquet(path).metadata.num_rows)
    with path.open("rb") as file:
        return sum(block.count(b"\n") for block in iter(partial(file.read, _COUNT_BYTES), b""))


def _lines(path: Path, line_end: str) -> Iterator[str]:
    """Yield the lines of a text file with their ends; `line_end` as `open` takes it for `newline`."""
    try:
        with path.open(encoding="utf-8-sig", newline=line_end) as file:  # MRPC starts with a byte-order mark
            yield from file
    except UnicodeDecodeError as error:
        line, byte = _first_undecodable(path)
        raise DataError(f"{path}, line {line}: byte {byte} is not UTF-8; convert the file to UTF-8") from error


def _first_undecodable(path: Path) -> tuple[int, int]:
    """Return the 1-based line and the 0-based byte of a file where it stops being UTF-8."""
    begin = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                return number, begin + error.start
            begin += len(line)
    raise AssertionError(f"{path} is UTF-8, or has changed while it was read")


def _tab_separated(path: Path) -> Iterator[tuple[int, list[str]]]:
    # Not str.splitlines: it also breaks lines at form feeds and Unicode separators, which texts do hold.
    for number, line in enumerate(_lines(path, "\n"), start=1):
        content = line.removesuffix("\n").removesuffix("\r")
        if content.strip():
            yield number, content.split("\t")


def _quoted(path: Path) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(_lines(path, ""), strict=True)
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


def _json_lines(path: Path, needed: Sequence[str]) -> Records:
    objects = _json_objects(path)
    first = next(objects, None)
    if first is None:
        return Records("line", [], iter(()))
    names = list(first[1])
    rows = (
        (number, [field_text(item.get(name), name, f"{path}, line {number}", needed=name in needed) for name in names])
        for number, item in chain([first], objects)
    )
    return Records("line", names, rows)


def _json_objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(_lines(path, "\n"), start=1):
        if not line.strip():
            continue
        try:
            item = json.loads(line.rstrip())  # a place behind the line break would be in the next line
        except (ValueError, RecursionError) as error:
            place = f" at character {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
            reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
            raise DataError(
                f"{path}, line {number}: no JSON{place} ({reason}); JSON lines have an object on each line"
            ) from error
        if not isinstance(item, dict):
            raise DataError(
                f"{path}, line {number}: a JSON {type(item).__name__}; JSON lines have an object on each line"
            )
        yield number, item


def _parquet(path: Path, needed: Sequence[str]) -> Records:
    file = _open_parquet(path)
    names = [str(name) for name in file.schema_arrow.names]
    return Records("row", names, _parquet_rows(path, file, names, needed))


def _open_parquet(path: Path) -> parquet.ParquetFile:
    try:
        return parquet.ParquetFile(path)
    except _UNREADABLE as error:
        raise _unreadable_parquet(path, error) from error


def _parquet_rows(
    path: Path, file: parquet.ParquetFile, names: Sequence[str], needed: Sequence[str]
) -> Iterator[tuple[int, list[str]]]:
    number = 0
    try:
        for batch in file.iter_batches(batch_size=_PARQUET_ROWS):
            for values in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                number += 1
                place = f"{path}, row {number}"
                yield (
                    number,
                    [
                        field_text(value, name, place, needed=name in needed)
                        for name, value in zip(names, values, strict=True)
                    ],
                )
    except _UNREADABLE as error:
        raise _unreadable_parquet(path, error) from error


def _unreadable_parquet(path: Path, error: Exception) -> DataError:
    reason = str(error).partition("\n")[0]
    return DataError(f"{path} cannot be read as Parquet: {reason}")


def field_text(value: Any, name: str, place: str, *, needed: bool) -> str:
    """Return a value of a column as text.

    Args:
        value: A string or a number; one of another kind is empty.
        place: File and row, for the message.
        needed: Whether the task reads the column.

    Raises:
        DataError: A needed value is missing or is no plain one.
    """
    missing = value is None or (isinstance(value, float) and math.isnan(value))  # JSON written by pandas says NaN
    if isinstance(value, str) and not _SURROGATE.search(value):
        return value
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float) and not missing:
        return repr(value)
    if not needed:
        return ""
    found = "no value" if missing else f"a {type(value).__name__}"
    if isinstance(value, str):
        found = f"{_SURROGATE.findall(value)[0]!r}, half of a surrogate pair"
    raise DataError(f"{place}, column {name!r}: {found}; texts are strings, labels strings or numbers")
