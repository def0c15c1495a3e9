"""Rows of files that name the values of each row: JSON, Parquet, and directories of the `datasets` library."""

from __future__ import annotations

import importlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow
from pyarrow import parquet

from tinybert_ds.data.text_forms import FORMS
from tinybert_ds.data.text_lines import read_lines
from tinybert_ds.errors import DataError
from tinybert_ds.foreign_text import listed, shown, without_compression
from tinybert_ds.strict_formats import NoJsonError, parse_json

_ROWS_AT_ONCE = 4096
_LARGEST_DOCUMENT = 1 << 30  # characters of a JSON document, which is read as a whole
_SURROGATE = re.compile("[\ud800-\udfff]")  # JSON can spell it, UTF-8 cannot
_MISSING = object()
_LIST_KEY = "data"


class Records(NamedTuple):
    """The rows of a file as text, blank ones left out; the file is read while they are taken."""

    unit: str  # what the file counts in: "line", "row" or "record"
    names: list[str] | None  # of the columns, where the format has them; else the first row may hold them
    rows: Iterator[tuple[int, list[str]]]  # (1-based number, fields)
    class_names: Mapping[str, Sequence[str]] = {}  # column -> what its numbers stand for, where the file says it


class Objects(NamedTuple):
    """The rows of a file as they are, each an object; the file is read while they are taken."""

    unit: str  # what the file counts in, see `Records`
    rows: Iterator[tuple[int, Mapping[str, Any]]]  # (1-based number, object)
    class_names: Mapping[str, Sequence[str]] = {}  # column -> what its numbers stand for


def find_column(names: Sequence[str], wanted: str) -> list[int]:
    """Return the positions of a column's name: as it is written, or else whatever its capitals."""
    exact = [at for at, name in enumerate(names) if name.strip() == wanted]
    return exact or [at for at, name in enumerate(names) if name.strip().lower() == wanted.lower()]


def json_records(
    path: Path, needed: Sequence[str], encoding: str, arrays: Sequence[str] = (), form: str = ""
) -> Records:
    """Read JSON lines; a `.json` file may also be one list of objects, or hold one under "data".

    Args:
        path, needed, encoding, arrays: See `read_records`.
        form: Of `text_forms.FORMS`, how texts are put together.

    Raises:
        OSError, DataError: See `read_records`.
    """
    return _object_records(path, json_objects(path, encoding, form), needed, arrays)


def json_objects(path: Path, encoding: str, form: str = "") -> Objects:
    """Read the objects of JSON lines or of a JSON list; `form` as in `json_records`."""
    document = None
    if without_compression(path).suffix.lower() == ".json":
        document = _document(path, encoding)
    if document is None:
        return Objects("line", _formed(path, "line", _objects_of_lines(path, encoding), form))
    return Objects("record", _formed(path, "record", _objects_of_list(path, document), form))


def _formed(
    path: Path, unit: str, objects: Iterator[tuple[int, dict[str, Any]]], form: str
) -> Iterator[tuple[int, Mapping[str, Any]]]:
    return ((number, FORMS[form](item, f"{path}, {unit} {number}") if form else item) for number, item in objects)


def parquet_records(path: Path, needed: Sequence[str], arrays: Sequence[str] = ()) -> Records:
    """Read a Parquet file; what its numbers stand for is known where `datasets` wrote it."""
    return _object_records(path, parquet_objects(path), needed, arrays)


def parquet_objects(path: Path) -> Objects:
    """Read the rows of a Parquet file."""
    file = open_parquet(path)
    batches = file.iter_batches(batch_size=_ROWS_AT_ONCE)
    rows = _arrow_objects(path, "as Parquet", file.schema_arrow.names, batches)
    return Objects("row", rows, _stated_classes(file.schema_arrow))


def dataset_records(path: Path, needed: Sequence[str], arrays: Sequence[str] = ()) -> Records:
    """Read a directory that `save_to_disk` of the `datasets` library wrote."""
    return _object_records(path, dataset_objects(path), needed, arrays)


def dataset_objects(path: Path) -> Objects:
    """Read the rows of such a directory."""
    if (path / "dataset_dict.json").is_file():
        splits = sorted(inner.name for inner in path.iterdir() if inner.is_dir())
        raise DataError(
            f"{path} holds several splits: {listed(splits)}; name one of them, such as {path.name}/{splits[0]}"
        )
    if not (path / "state.json").is_file():
        raise DataError(
            f"{path} is a directory, and none that `save_to_disk` of `datasets` wrote; name its files, for instance "
            f"with a pattern such as {path.name}/*.parquet"
        )
    datasets = importlib.import_module("datasets")  # here, because it takes long and few need it
    try:
        for file in sorted(path.glob("*.arrow")):
            _check_arrow(file)
        dataset = datasets.load_from_disk(str(path))
    except Exception as error:  # of whatever kind: it reads three files that anybody may have changed
        raise DataError(f"{path} cannot be read by `datasets`: {shown(error, 200)}") from error
    inner = {name: getattr(feature, "feature", feature) for name, feature in dataset.features.items()}
    classes = {name: feature.names for name, feature in inner.items() if isinstance(feature, datasets.ClassLabel)}
    batches = dataset.with_format("arrow").iter(_ROWS_AT_ONCE)
    return Objects("row", _arrow_objects(path, "by `datasets`", dataset.column_names, batches), classes)


def open_parquet(path: Path) -> parquet.ParquetFile:
    """Open a Parquet file; raises DataError where it is none."""
    try:
        return parquet.ParquetFile(path)
    except (pyarrow.ArrowException, UnicodeDecodeError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise _unreadable(path, "as Parquet", error) from error


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
    inside = f" with {listed(value)}; a key in it is written {name}.KEY" if isinstance(value, dict) else ""
    raise DataError(f"{place}, column {shown(name)!r}: {found}{inside}; texts are strings, labels strings or numbers")


def _object_records(path: Path, found: Objects, needed: Sequence[str], arrays: Sequence[str] = ()) -> Records:
    """The rows of objects, in the columns of the first one, and in those inside its values that are asked for.

    Values of `arrays` may be lists, which become JSON.
    """
    unit, objects = found.unit, found.rows
    first = next(objects, None)
    if first is None:
        return Records(unit, [], iter(()))
    names = [str(name) for name in first[1]]
    names += [
        wanted
        for wanted in dict.fromkeys(needed)
        if "." in wanted and not find_column(names, wanted) and _value(first[1], wanted) is not _MISSING
    ]
    read = {names[at] for wanted in needed for at in find_column(names, wanted)}
    lists = {names[at] for wanted in arrays for at in find_column(names, wanted)}

    def text_of(item: Mapping[str, Any], name: str, number: int) -> str:
        value = _value(item, name)
        if name in lists and isinstance(value, list):
            return json.dumps(value)
        place = f"{path}, {unit} {number}"
        return field_text(None if value is _MISSING else value, name, place, needed=name in read)

    rows = ((number, [text_of(item, name, number) for name in names]) for number, item in chain([first], objects))
    return Records(unit, names, rows, found.class_names)


def find_value(item: Mapping[str, Any], name: str) -> Any:
    """Return the value of a key, or of keys within keys, None where there is none; capitals do not count."""
    value = _value(item, name)
    if value is _MISSING:
        near = [key for key in item if key.lower() == name.lower()]
        value = item[near[0]] if near else None
    return value


def _value(item: Any, name: str) -> Any:
    """The value of a key, or of keys within keys: `answer.text`, `choices.0`; `_MISSING` where there is none."""
    if name in item:
        return item[name]
    for key in name.split(".") if "." in name else [name]:
        if isinstance(item, dict) and key in item:
            item = item[key]
        elif isinstance(item, list) and key.isdecimal() and len(key) < 9 and int(key) < len(item):
            item = item[int(key)]
        else:
            return _MISSING
    return item


def with_value(item: Mapping[str, Any], name: str, value: Any) -> dict[str, Any]:
    """Return an object with another value where `find_value` finds one, or at its end under the name itself."""
    if name not in item and _value(item, name) is _MISSING:
        name = next((key for key in item if key.lower() == name.lower()), name)
    key, _, inside = name.partition(".")
    if name not in item and isinstance(item.get(key), dict):
        return {**item, key: with_value(item[key], inside, value)}
    return {**item, name: value}


def _objects_of_lines(path: Path, encoding: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(read_lines(path, "\n", encoding), start=1):
        if not line.strip():
            continue
        try:
            item = parse_json(line.rstrip())  # a place behind the line break would be in the next line
        except NoJsonError as error:
            place = f" at character {error.column}" if error.column else ""
            raise DataError(
                f"{path}, line {number}: no JSON{place} ({error.reason}); JSON lines have an object on each line"
            ) from error
        if not isinstance(item, dict):
            raise DataError(
                f"{path}, line {number}: a JSON {type(item).__name__}; JSON lines have an object on each line"
            )
        yield number, item


def _document(path: Path, encoding: str) -> Any:
    """The value of a file that is one JSON document; None of one that has an object on each line."""
    lines = (line for line in read_lines(path, "\n", encoding))
    skipped = 0
    for first in lines:
        if first.strip():
            break
        skipped += 1
    else:
        return None
    try:
        item = parse_json(first.rstrip())
    except NoJsonError:
        item = None  # it goes on behind the line, or is no JSON
    if isinstance(item, dict) and (not isinstance(item.get(_LIST_KEY), list) or any(line.strip() for line in lines)):
        return None
    pieces, size = ["\n" * skipped, first], 0
    for line in lines:
        pieces.append(line)
        size += len(line)
        if size > _LARGEST_DOCUMENT:
            raise DataError(
                f"{path} is one JSON document of more than 2^30 characters; write an object a line (.jsonl)"
            )
    try:
        return parse_json("".join(pieces))
    except NoJsonError as error:
        place = f", line {error.line}, character {error.column}" if error.line else ""
        raise DataError(
            f"{path}{place}: no JSON ({error.reason}); a .json file is a list of objects, or has an object on each line"
        ) from error


def _objects_of_list(path: Path, document: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    items = document.get(_LIST_KEY) if isinstance(document, dict) else document
    if not isinstance(items, list):
        inside = f"an object with the keys {listed(document)}" if isinstance(document, dict) else shown(document)
        raise DataError(f"{path} is {inside}; a .json file is a list of objects, or has one under {_LIST_KEY!r}")
    for number, item in enumerate(items, start=1):
        if not isinstance(item, dict):
            raise DataError(f"{path}, record {number}: a JSON {type(item).__name__}; a list of objects is expected")
        yield number, item


def _arrow_objects(
    path: Path, how: str, names: Sequence[str], batches: Iterable[Any]
) -> Iterator[tuple[int, dict[str, Any]]]:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"{path}: the columns {listed(twice)} stand there twice; rename or remove one of each")
    number = 0
    try:
        for batch in batches:
            for values in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                number += 1
                yield number, dict(zip(names, values, strict=True))
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise _unreadable(path, how, error) from error
    except OSError as error:
        if error.errno is not None:
            raise
        raise _unreadable(path, how, error) from error  # damaged pages


def _check_arrow(file: Path) -> None:
    """Raise unless all offsets of an Arrow file lie inside it: where it is mapped, a wrong one ends the process."""
    with pyarrow.OSFile(str(file)) as source, pyarrow.ipc.open_stream(source) as reader:
        for batch in reader:
            batch.validate(full=True)


def _unreadable(path: Path, how: str, error: Exception) -> DataError:
    reason = str(error).partition("\n")[0]
    return DataError(f"{path} cannot be read {how}: {shown(reason, 200)}")


def _stated_classes(schema: pyarrow.Schema) -> dict[str, Sequence[str]]:
    """What the numbers of columns stand for, as `datasets` writes it into the schema of its Parquet files."""
    try:
        features = parse_json((schema.metadata or {}).get(b"huggingface", b"{}").decode())["info"]["features"]
        inner = {name: feature.get("feature", feature) for name, feature in features.items()}  # of lists
        stated = {name: feature["names"] for name, feature in inner.items() if feature.get("_type") == "ClassLabel"}
    except (ValueError, KeyError, TypeError, AttributeError):  # of another writer: the numbers stand for themselves
        return {}
    return {
        name: names
        for name, names in stated.items()
        if isinstance(names, list) and all(isinstance(word, str) for word in names)
    }
