"""Files whose rows are words with a tag each: columns of words (CoNLL), or objects with two lists.

Text files have a word a line and a blank line between sentences, columns by position from 0 (-1 is the last), separated
by tabs where there are any and by spaces elsewhere; where the task file names columns the first line does too. JSON,
Parquet and `datasets` have an object for each sentence, with a list of words and a list of tags.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from tinybert_ds.data.object_records import Objects, field_text, find_value, with_value
from tinybert_ds.data.table_formats import file_format, read_objects
from tinybert_ds.data.task_spec import Column, SplitFile
from tinybert_ds.data.text_lines import read_lines
from tinybert_ds.errors import DataError
from tinybert_ds.foreign_text import listed, quoted, shown

SENTENCES_AT_ONCE = 2048
_DOCUMENT_MARK = "-DOCSTART-"
_RANGE = re.compile(r"\d+[-.]\d+")
_CONLL_U_COLUMNS = 10


class Sentence(NamedTuple):
    """A sentence of a file."""

    place: str  # file and line of its first word, or of its object
    words: list[str]
    tags: list[str] | None  # as the file spells them; None without them
    lines: list[int]  # of the words, in a text file
    tag_at: int | None = None  # the column of the tags there
    item: Mapping[str, Any] | None = None  # what a file of objects has of it


def sentence_blocks(path: Path, layout: SplitFile) -> Iterator[list[Sentence]]:
    """Read a file, some thousand sentences after the other.

    Raises:
        OSError: It cannot be read.
        DataError: It is damaged, a word lacks its tag, or it has no sentence; names file and line.
    """
    read = _of_objects if _has_objects(path) else _of_lines
    sentences = (sentence for sentence in read(path, layout) if sentence.words)
    found = False
    while block := list(islice(sentences, SENTENCES_AT_ONCE)):
        found = True
        yield block
    if not found:
        raise DataError(f"{path} holds no sentence; give a file with at least one word")


def with_tags(path: Path, layout: SplitFile, tags: Iterator[list[str]]) -> Iterator[str]:
    """Yield the lines of a file with other tags in the place of its own, or behind its words where it has none.

    Args:
        tags: Of each sentence in turn.
    """
    if _has_objects(path):
        for sentence in _of_objects(path, layout):
            item = with_value(sentence.item or {}, str(layout.label), next(tags) if sentence.words else [])
            yield json.dumps(item, ensure_ascii=False, default=str) + "\n"  # Parquet has dates
        return
    found: dict[int, tuple[int | None, str]] = {}
    for block in sentence_blocks(path, layout):
        for sentence in block:
            for place, tag in zip(sentence.lines, next(tags), strict=True):
                found[place] = (sentence.tag_at, tag)
    for number, line in enumerate(read_lines(path, "\n", layout.text_format.encoding), start=1):
        yield _replaced(line, layout, *found[number]) if number in found else line


def suffix_of(path: Path) -> str:
    """Return the suffix of a file with other tags."""
    return ".jsonl" if _has_objects(path) else path.suffixes[0] if path.suffixes else ".txt"


def _has_objects(path: Path) -> bool:
    return file_format(path) in ("json", "parquet", "dataset")


def _of_lines(path: Path, layout: SplitFile) -> Iterator[Sentence]:
    rows: list[tuple[int, list[str]]] = []
    width, tabbed = _shape(path, layout)
    header = _names_columns(layout)
    places: tuple[int, int | None] | None = None
    for number, line in enumerate(read_lines(path, "\n", layout.text_format.encoding), start=1):
        fields = _fields(line, layout)
        if not fields or fields[0] == _DOCUMENT_MARK:
            if rows:
                yield _sentence(path, layout, rows, places)
                rows = []
            continue
        if line.startswith("#") and (len(fields) != width or ("\t" in line) != tabbed):
            continue  # a comment, as CoNLL-U has them; a word # has as many columns as the others
        if places is None:
            width, places = len(fields), _places(path, number, fields, layout)
            if header:
                continue
        if len(fields) != width:
            raise DataError(
                f"{path}, line {number}: {_counted(len(fields))}, but the lines before it have {width}; each line has "
                "a word and its tag, a blank line stands between sentences"
            )
        if width == _CONLL_U_COLUMNS and _RANGE.fullmatch(fields[0]):
            continue  # a word of several, or one that is not written
        rows.append((number, fields))
    if rows:
        yield _sentence(path, layout, rows, places)


def _sentence(
    path: Path, layout: SplitFile, rows: Sequence[tuple[int, list[str]]], places: tuple[int, int | None] | None
) -> Sentence:
    assert places is not None
    text, label = places
    words = [fields[text] for _, fields in rows]
    tags = None if label is None else [fields[label] for _, fields in rows]
    return Sentence(f"{path}, line {rows[0][0]}", words, tags, [number for number, _ in rows], label)


def _fields(line: str, layout: SplitFile) -> list[str]:
    content = line.rstrip("\r\n")
    if not content.strip():
        return []
    separator = layout.text_format.separator or ("\t" if "\t" in content else None)
    fields = content.split(separator)
    return [field.strip() for field in fields] if separator else fields


def _names_columns(layout: SplitFile) -> bool:
    return not all(_position(column) is not None for column in (layout.texts[0], layout.label) if column is not None)


def _position(column: Column) -> int | None:
    word = str(column)
    return int(word) if re.fullmatch(r"-?\d{1,8}", word) else None


def _shape(path: Path, layout: SplitFile) -> tuple[int, bool]:
    """How many columns the lines of a file have, and whether there are tabs in them.

    The first one says so that cannot be a comment, or the task file where there is none.
    """
    for line in read_lines(path, "\n", layout.text_format.encoding):
        fields = _fields(line, layout)
        if fields and fields[0] != _DOCUMENT_MARK and not line.startswith("#"):
            return len(fields), "\t" in line
    return max(2, *(1 + (_position(column) or 0) for column in (layout.texts[0], layout.label or 0))), False


def _places(path: Path, line: int, first: list[str], layout: SplitFile) -> tuple[int, int | None]:
    """Where the words and the tags are in a line."""

    def find(column: Column) -> int | None:
        at = _position(column)
        if _names_columns(layout):
            names = [name.lower() for name in first]
            return names.index(str(column).lower()) if str(column).lower() in names else None
        assert at is not None
        return at % len(first) if -len(first) <= at < len(first) else None

    text = find(layout.texts[0])
    label = None if layout.label is None else find(layout.label)
    required = layout.label_required and not layout.may_lack_label
    if len(first) == 1 and not required:
        label = None  # -1 would be the word itself
    if text is None or (required and (label is None or label == text)):
        column = layout.texts[0] if text is None else layout.label
        raise DataError(
            f"{path}, line {line}: no column {quoted(str(column))}; found {_counted(len(first))}: {listed(first)}. "
            "Name the columns of words (`text`) and tags (`label`) by their position from 0, -1 for the last, or by "
            "their names in the first line"
        )
    return text, label if label != text else None


def _counted(fields: int) -> str:
    return "1 column" if fields == 1 else f"{fields} columns"


def _replaced(line: str, layout: SplitFile, at: int | None, tag: str) -> str:
    """A line with another tag, in the place of its own or at its end."""
    content = line.rstrip("\r\n")
    end = line[len(content) :] or "\n"
    separator = layout.text_format.separator or ("\t" if "\t" in content else None)
    fields = content.split(separator)
    fields = [*fields, tag] if at is None else [*fields[:at], tag, *fields[at + 1 :]]
    return (separator or " ").join(fields) + end


def _of_objects(path: Path, layout: SplitFile) -> Iterator[Sentence]:
    objects: Objects = read_objects(path, layout.text_format)
    text, label = str(layout.texts[0]), None if layout.label is None else str(layout.label)
    required = layout.label_required and not layout.may_lack_label
    names = objects.class_names.get(label or "")
    name_of = _namer(names)
    for number, item in objects.rows:
        place = f"{path}, {objects.unit} {number}"
        words = _list(find_value(item, text), text, place)
        given = None if label is None else find_value(item, label)
        tags = None
        if given is not None or required:
            tags = [name_of(tag) for tag in _list(given, str(label), place)]
            if len(tags) != len(words):
                raise DataError(
                    f"{place}: {len(words)} words in {quoted(text)}, {len(tags)} tags in {quoted(str(label))}"
                )
        yield Sentence(place, words, tags, [], item=item)


def _namer(names: Sequence[str] | None) -> Callable[[str], str]:
    """What turns the numbers of a column into the names that the file gives them."""
    spelled = {str(number): name for number, name in enumerate(names or ())}
    return lambda tag: spelled.get(tag, tag)


def _list(value: Any, name: str, place: str) -> list[str]:
    if not isinstance(value, list):
        found = "nothing" if value is None else shown(value, 100)
        raise DataError(
            f"{place}, column {quoted(name)}: a list with an entry for each word is expected, found {found}"
        )
    return [field_text(entry, name, place, needed=True) for entry in value]
