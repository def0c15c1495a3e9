"""Which inputs a command line names, and how each of them is read."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data_tools.prose_check import TABLE_WAY, find_no_prose
from data_tools.record_input import JsonLinesReader
from data_tools.text_input import TextReader
from data_tools.text_units import PartReader, UnreadableInputError
from tinybert_ds.errors import DataError, raise_all
from tinybert_ds.foreign_text import COMPRESSED

_JSON_LINES = (".jsonl", ".ndjson", ".json")
_TABLE_SUFFIXES = (".csv", ".tsv")
_UNREADABLE = (
    *(".bz2", ".zip", ".7z", ".rar", ".tar", ".tgz", ".arrow", ".pdf", ".doc", ".docx", ".odt", ".rtf", ".epub"),
    *(".xls", ".xlsx", ".html", ".htm", ".xml", *_TABLE_SUFFIXES),
)
_JUDGED_FIRST = 64
"""So many texts are looked at before any work begins; all of them when they are read."""
_IN_DIRECTORIES = (".txt", ".text", ".jsonl", ".ndjson", ".parquet")
_ALLOWED = "text and JSON lines, plain or as .gz, .xz or .zst, and .parquet"
_NAMED_FILES = 1000
"""So many files that are left out are named; of the others the suffixes are."""


class TextInput(NamedTuple):
    """An input and the name that the manifest gives it."""

    name: str
    path: Path | None  # None: a piece of a dataset
    dataset: Any = None  # a DatasetName

    @property
    def is_exclusive(self) -> bool:
        """Whether it costs much to read it twice, so that one process at a time should."""
        return self.dataset is not None

    @property
    def size(self) -> int:
        """Bytes of the file; 0 where nobody knows."""
        return 0 if self.path is None else self.path.stat().st_size

    @property
    def text_bytes(self) -> int:
        """About how many bytes of text are in it."""
        return self.size * (4 if self.path is not None and self.path.suffix.lower() in COMPRESSED else 1)


def find_inputs(patterns: Sequence[str], *, judge: bool = True) -> list[TextInput]:
    """The input files in lexical order of the names that the manifest gives them.

    A name is the path below the deepest directory that all inputs share, so that it does not depend on where they lie.

    Args:
        patterns: files, directories (all texts in them and below), or patterns with `*`, `**`, `?` and `[...]`.
        judge: look into the first texts at once; False where those that hold no prose are left out as they are read.

    Raises:
        DataError: a file is missing, cannot be read by its name, holds no prose or is given twice; all are reported
            together.
    """
    problems: list[str] = []
    found: dict[Path, str] = {}
    for given in patterns:
        for path in _matches(given, problems):
            if path in found:
                problems.append(f"{str(path)!r} is given more than once, by {found[path]!r} and {given!r}")
            found[path] = given
    raise_all(problems, DataError)
    texts = [path for path in found if _format_suffix(path) not in (*_JSON_LINES, ".parquet")] if judge else []
    raise_all([_no_prose(path, reason) for path in texts[:_JUDGED_FIRST] if (reason := find_no_prose(path))], DataError)
    root = os.path.commonpath([path.parent for path in found])
    inputs = (TextInput(path.relative_to(root).as_posix(), path) for path in found)
    return sorted(inputs, key=lambda item: item.name)


def find_dataset(path: str, config: str | None, split: str, revision: str | None) -> list[TextInput]:
    """The pieces of a dataset that `datasets.load_dataset` opens.

    Raises:
        DataError: it cannot be opened.
    """
    from data_tools import table_input as tables  # noqa: PLC0415 - see open_input

    name = tables.DatasetName(path, config, split, revision, 0)
    count = tables.open_dataset(name).num_shards
    names = (name._replace(piece=piece) for piece in range(count))
    return [TextInput(str(piece), None, piece) for piece in names]


def describe_left_out(patterns: Sequence[str]) -> list[str]:
    """Lines about the files of the directories among some patterns that are no inputs by their names.

    Hidden files do not count.
    """
    folders = [Path(os.path.abspath(given)) for given in patterns if Path(given).is_dir()]
    files = {path: None for folder in folders for path in _visible_files(folder)}
    left_out = [path for path in files if _format_suffix(path) not in _IN_DIRECTORIES]
    if not left_out:
        return []
    lines = [
        f"note: files of the directories that are of no known kind by their names are left out ({len(left_out):,}):"
    ]
    lines += [f"    {path}" for path in left_out[:_NAMED_FILES]]
    rest = Counter(path.suffix or "no suffix" for path in left_out[_NAMED_FILES:])
    return lines + [f"    and {count:,} more with {suffix}" for suffix, count in rest.most_common()]


def open_input(item: TextInput, part_bytes: int, text_field: str) -> PartReader:
    """The reader of an input.

    Raises:
        DataError: it cannot be opened.
        UnreadableInputError: it is given as a text, and holds no prose.
    """
    if item.dataset is not None:
        from data_tools.table_input import DatasetReader  # noqa: PLC0415 - see below

        return DatasetReader(item.dataset, part_bytes, text_field)
    assert item.path is not None
    suffix = _format_suffix(item.path)
    if suffix == ".parquet":
        from data_tools.table_input import ParquetReader  # noqa: PLC0415 - pyarrow takes its time, and few need it

        return ParquetReader(item.path, part_bytes, text_field)
    if suffix in _JSON_LINES:
        return JsonLinesReader(item.path, part_bytes, text_field)
    if reason := find_no_prose(item.path):
        raise UnreadableInputError(_no_prose(item.path, reason))
    return TextReader(item.path, part_bytes)


def _no_prose(path: Path, reason: str) -> str:
    return f"{str(path)!r} is given as plain text, but {reason}"


def _visible_files(folder: Path) -> list[Path]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return [path for path in files if not any(part.startswith(".") for part in path.relative_to(folder).parts)]


def _matches(given: str, problems: list[str]) -> list[Path]:
    path = Path(os.path.abspath(given))
    if path.is_dir():
        matches = [inside for inside in _visible_files(path) if _format_suffix(inside) in _IN_DIRECTORIES]
        if not matches:
            problems.append(f"the directory {given!r} holds no file that ends in {', '.join(_IN_DIRECTORIES)}")
        return matches
    if not path.exists() and glob.has_magic(given):
        matches = [Path(os.path.abspath(match)) for match in sorted(glob.glob(given, recursive=True))]
        matches = [match for match in matches if match.is_file()]
        if not matches:
            problems.append(f"no file matches {given!r}")
    else:
        matches = [path]
        if not path.is_file():
            problems.append(f"the text file {given!r} does not exist")
    problems += [
        f"{str(match)!r} is no text by its name; allowed are {_ALLOWED}. "
        f"{TABLE_WAY if _format_suffix(match) in _TABLE_SUFFIXES else 'Convert it'}"
        for match in matches
        if _format_suffix(match) in _UNREADABLE or (_format_suffix(match) == ".parquet" and match.suffix != ".parquet")
    ]
    return matches


def _format_suffix(path: Path) -> str:
    """What a file's name says about its content, once it is decompressed."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""
