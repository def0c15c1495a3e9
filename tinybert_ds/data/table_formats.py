"""Files of rows, whatever their format: tab-separated, comma-separated, JSON or Parquet, by the file's suffix.

Text files may be compressed, which a second suffix says; a directory is a data set of the `datasets` library.
"""

from __future__ import annotations

import glob
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePath

from tinybert_ds.data.object_records import (
    Objects,
    Records,
    as_records,
    dataset_objects,
    json_objects,
    open_parquet,
    parquet_objects,
)
from tinybert_ds.data.task_spec import SplitFile, TextFormat
from tinybert_ds.data.text_lines import is_quoted, text_rows
from tinybert_ds.errors import DataError
from tinybert_ds.foreign_text import COMPRESSED, DAMAGED, open_decompressed, without_compression

FORMATS = {".csv": "csv", ".jsonl": "json", ".ndjson": "json", ".json": "json", ".parquet": "parquet"}
"""Suffix -> format; all others are tab-separated."""

_OTHER_FORMATS = (".xlsx", ".xls", ".ods", ".arrow", ".feather", ".pkl", ".zip", ".bz2", ".7z", ".tar", ".db")
_SEPARATORS = {"csv": ",", "tsv": "\t"}
_COUNT_BYTES = 1 << 20


def file_format(file: str | PurePath) -> str:
    """Return the format of a file by its name, tsv, csv, json or parquet; of a directory that is there, dataset."""
    if isinstance(file, Path) and file.is_dir():
        return "dataset"
    return FORMATS.get(without_compression(file).suffix.lower(), "tsv")


def names_its_columns(file: str | PurePath) -> bool:
    """Whether files of this format always name their columns."""
    return file_format(file) in ("json", "parquet")


def may_be_quoted(file: PurePath, text_format: TextFormat) -> bool:
    """Whether fields of a file may stand in quotation marks that are no part of the text."""
    kind = file_format(file)
    return kind not in _SEPARATORS or is_quoted(text_format, _SEPARATORS[kind])


def is_pattern(file: str) -> bool:
    """Whether a name in a task file may stand for several files."""
    return glob.has_magic(file)


def augmented_file(file: str | PurePath) -> PurePath:
    """Return the name of a training file's augmented one, beside it: always tab-separated."""
    path = without_compression(file)
    if is_pattern(path.name):
        path = path.with_name("train.tsv")
    suffix = path.suffix if file_format(path) == "tsv" else ".tsv"
    folder = PurePath() if is_pattern(str(path.parent)) else path.parent
    return folder / f"{path.stem}_aug{suffix}"


def augmented_split(layout: SplitFile) -> SplitFile:
    """Return the layout of a training split's augmented file, one for all its files."""
    first = PurePath(layout.file).with_name("train.tsv") if layout.more_files else layout.file
    return replace(layout, file=str(augmented_file(first)), more_files=(), text_format=TextFormat(quotes=False))


def read_records(
    path: Path, needed: Sequence[str], text_format: TextFormat, *, arrays: Sequence[str] = (), form: str = ""
) -> Records:
    """Read a file row by row, so that its size does not matter; only a JSON document is read as a whole.

    Args:
        path: Its suffixes say the format; a directory is one of `datasets`.
        needed: Columns that no row may lack, if the file has them.
        arrays: Those of them whose values may be lists, which are handed on as JSON.
        form: Of `text_forms.FORMS`, how the texts of JSON are put together.

    Raises:
        OSError: The file cannot be read.
        DataError: It is not of its format or not UTF-8, or a row lacks a value; names file, line and column. Both also
            while rows are taken.
    """
    kind = file_format(path)
    if kind not in _SEPARATORS:
        return as_records(path, read_objects(path, text_format, form), needed, arrays)
    if without_compression(path).suffix.lower() in _OTHER_FORMATS:
        raise DataError(
            f"{path}: {path.suffix} is not read; give .tsv, .csv, .jsonl, .json (text may be .gz, .xz or .zst), "
            ".parquet, or the whole directory that `save_to_disk` of `datasets` wrote"
        )
    return Records("line", None, text_rows(path, text_format, separator=_SEPARATORS[kind]))


def read_objects(path: Path, text_format: TextFormat, form: str = "") -> Objects:
    """Read a file of objects, JSON, Parquet or a directory of `datasets`, row by row; see `read_records`."""
    kind = file_format(path)
    if kind == "dataset":
        return dataset_objects(path)
    if kind == "json":
        return json_objects(path, text_format.encoding, form)
    if path.suffix.lower() in COMPRESSED:
        raise DataError(f"{path}: Parquet is compressed inside; decompress the file and name it .parquet")
    return parquet_objects(path)


def estimate_rows(paths: Sequence[Path]) -> int | None:
    """Return about how many rows files have, for progress bars: those of Parquet files, the lines of texts.

    None where nobody knows before they are read.
    """
    counts = [_count_rows(path) for path in paths]
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


def _count_rows(path: Path) -> int | None:
    kind = file_format(path)
    if kind == "dataset":
        return None
    if kind == "parquet" and path.suffix.lower() not in COMPRESSED:
        return int(open_parquet(path).metadata.num_rows)
    try:
        with open_decompressed(path) as file:
            return sum(block.count(b"\n") for block in iter(partial(file.read, _COUNT_BYTES), b""))
    except DAMAGED:
        return None  # reading it says so
