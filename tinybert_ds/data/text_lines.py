"""Rows of text files: tab-separated, quoted, or with any other separator.

Tab-separated files are those of GLUE: never quoted, because their texts hold single quotation marks that belong to
them; lines end at LF or CRLF only. Others are quoted as spreadsheets do (RFC 4180).
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from tinybert_ds.data.task_spec import TextFormat
from tinybert_ds.errors import DataError
from tinybert_ds.foreign_text import DAMAGED, find_undecodable, how_to_decode, open_decompressed

_LONGEST_FIELD = (1 << 31) - 1  # of the csv module, whose default of 131,072 characters is shorter than some texts


def read_lines(path: Path, line_end: str, encoding: str = "") -> Iterator[str]:
    """Yield the lines of a text file, decompressed, with their ends.

    Args:
        line_end: As `open` takes it for `newline`.
        encoding: "": UTF-8, with or without a byte-order mark, as which MRPC's begins.

    Raises:
        OSError: It cannot be read.
        DataError: It is damaged, or not in the encoding; names file, line and byte.
    """
    try:
        with open_decompressed(path) as raw, io.TextIOWrapper(raw, encoding or "utf-8-sig", newline=line_end) as file:
            yield from file
    except UnicodeDecodeError as error:
        raise _undecodable(path, encoding) from error
    except UnicodeError as error:  # such as UTF-16 without a byte-order mark
        raise DataError(f"{path} is not {encoding}: {error}; mend `encoding` in the task file") from error
    except DAMAGED as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: BaseException) -> DataError:
    return DataError(f"{path} is damaged or cut off ({error}); copy it again")


def _undecodable(path: Path, encoding: str) -> DataError:
    try:
        place = find_undecodable(path, encoding or "utf-8")
    except DAMAGED as error:  # behind the place
        return _damaged(path, error)
    where = f"{path}, line {place.line}: byte {place.byte} is not"
    if encoding:
        likely = f"; it looks like {place.likely}" if place.likely else ""
        return DataError(
            f"{where} {encoding}, which `encoding` of the task file says{likely}; mend the one or the other"
        )
    stated = f", or say `encoding: {place.likely}` in the task file" if place.likely else ""
    return DataError(f"{where} UTF-8; {how_to_decode(place.likely)}{stated}")


def unquoted_rows(path: Path, separator: str, encoding: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the fields of each line that is not blank, and its 1-based number; quotation marks are text."""
    # Not str.splitlines: it also breaks lines at form feeds and Unicode separators, which texts do hold.
    for number, line in enumerate(read_lines(path, "\n", encoding), start=1):
        content = line.removesuffix("\n").removesuffix("\r")
        if content.strip():
            yield number, content.split(separator)


def quoted_rows(path: Path, separator: str, encoding: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the fields of each row that is not blank, and the 1-based number of its first line."""
    csv.field_size_limit(_LONGEST_FIELD)
    reader = csv.reader(read_lines(path, "", encoding), delimiter=separator, strict=True)
    line = 1
    try:
        for fields in reader:
            if any(field.strip() for field in fields):
                yield line, fields
            line = reader.line_num + 1  # a quoted field may go over several lines
    except csv.Error as error:
        kind = "comma-separated" if separator == "," else f"separated by {separator!r}"
        raise DataError(
            f"{path}, line {line}: not {kind} as spreadsheets write it ({error}); fields with separators, line "
            'breaks or quotation marks stand in "...", a quotation mark inside them is doubled'
        ) from error


def text_rows(path: Path, text_format: TextFormat, *, separator: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows of a text file."""
    between = text_format.separator or separator
    rows = quoted_rows if is_quoted(text_format, separator) else unquoted_rows
    return rows(path, between, text_format.encoding)


def is_quoted(text_format: TextFormat, separator: str) -> bool:
    """Whether fields of a text file may stand in quotation marks."""
    if text_format.quotes is not None:
        return text_format.quotes
    between = text_format.separator or separator
    return between != "\t" and len(between) == 1
