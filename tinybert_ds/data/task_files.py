"""Reading the files of a task: its texts by column, its labels by name. N rows."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from tinybert_ds.data.span_files import first_span, question_blocks
from tinybert_ds.data.table_formats import file_format, is_pattern
from tinybert_ds.data.task_checks import SplitAudit, tell_findings
from tinybert_ds.data.task_labels import Labels, parse_labels
from tinybert_ds.data.task_spec import GROUPS, SplitFile, TaskSpec, TextFormat
from tinybert_ds.data.task_tables import Table, read_tables
from tinybert_ds.data.teacher_columns import COLUMNS, parse_teacher
from tinybert_ds.data.teacher_words import parse_word_answers
from tinybert_ds.data.token_files import Sentence, sentence_blocks
from tinybert_ds.errors import DataError
from tinybert_ds.foreign_text import listed_paths, quoted, shown
from tinybert_ds.targets import target_of


@dataclass(frozen=True)
class Examples:
    """The rows of one split, in the order of the file."""

    path: Path
    texts: tuple[list[str], ...]  # one list of N texts, or two for pairs
    labels: Labels | None  # None in an unlabelled file
    skipped_rows: int = 0  # rows with missing fields, where the task allows them
    columns: Mapping[str, NDArray] = field(default_factory=dict)  # (N, ...) by name, see `more_columns`

    def __len__(self) -> int:
        return len(self.texts[0])


def read_split(spec: TaskSpec, data_dir: str | Path, split: str) -> Examples:
    """Read one split of a task, see `read_split_in_blocks`."""
    blocks = list(read_split_in_blocks(spec, data_dir, split))
    labels = [block.labels for block in blocks if block.labels is not None]
    return Examples(
        blocks[0].path,
        tuple(list(chain.from_iterable(columns)) for columns in zip(*(block.texts for block in blocks), strict=True)),
        np.concatenate(labels) if labels else None,
        sum(block.skipped_rows for block in blocks),
        {name: np.concatenate([block.columns[name] for block in blocks]) for name in blocks[0].columns},
    )


def read_split_in_blocks(spec: TaskSpec, data_dir: str | Path, split: str) -> Iterator[Examples]:
    """Read one split of a task, some thousand rows after the other; a block may be empty.

    Raises:
        DataError: see `read_labelled_blocks`.
    """
    blocks_of = {"word": _token_blocks, "piece": _span_blocks}.get(target_of(spec).unit)
    if blocks_of is not None:
        yield from blocks_of(spec, data_dir, split)
        return
    for table, labels in read_labelled_blocks(spec, data_dir, split):
        texts = tuple([fields[column] for _, fields in table.rows] for column in table.text_columns)
        yield Examples(table.path, texts, labels, table.skipped_rows, more_columns(spec, table, split))


def _token_blocks(spec: TaskSpec, data_dir: str | Path, split: str) -> Iterator[Examples]:
    """Read the words of a split, and which sentence each belongs to."""
    layout, target, paths = _layout(spec, split), target_of(spec), split_files(spec, data_dir, split)
    parse, audit, number, words = target.parser(spec), target.audit(spec), 0, 0
    found: set[bool] = set()  # whether sentences have tags
    for path in paths:
        try:
            for block in sentence_blocks(path, layout):
                labels = [
                    parse(tag, _word_place(sentence, at, layout))
                    for sentence in block
                    for at, tag in enumerate(sentence.tags or ())
                ]
                sizes = [len(sentence.words) for sentence in block]
                groups = np.repeat(np.arange(number, number + len(block)), sizes)
                number, words = number + len(block), words + len(groups)
                found.update(sentence.tags is not None for sentence in block)
                if len(found) > 1:
                    raise DataError(
                        f"{path}: some sentences have tags, others have none; give each of a split its tags, or none"
                    )
                tags = target.as_labels(spec, labels) if True in found else None
                if tags is not None:
                    audit.look(tags)
                texts = ([word for sentence in block for word in sentence.words],)
                columns: dict[str, NDArray] = {GROUPS: groups}
                if COLUMNS in layout.more_columns:
                    columns[COLUMNS] = parse_word_answers(spec, block)
                yield Examples(path, texts, tags, columns=columns)
        except OSError as error:
            raise _cannot_read(spec, path, error) from error
    tell_findings(audit, words, split, str(paths[-1]))


def _span_blocks(spec: TaskSpec, data_dir: str | Path, split: str) -> Iterator[Examples]:
    """Read the questions of a split, each with its context, its number and the characters of its answer."""
    layout, target, paths = _layout(spec, split), target_of(spec), split_files(spec, data_dir, split)
    audit, number = target.audit(spec), 0
    said: set[bool] = set()  # whether questions say what their answers are
    try:
        for path, block in question_blocks(paths, layout):
            said.update(question.answers is not None for question in block)
            if len(said) > 1:
                raise DataError(
                    f"{path}: some questions have answers, others say nothing of them; give each of a split its "
                    "answers, an empty list where there is none"
                )
            labels = target.as_labels(spec, [first_span(question) for question in block]) if True in said else None
            if labels is not None:
                audit.look(labels)
            texts = [question.question for question in block], [question.context for question in block]
            yield Examples(path, texts, labels, columns={GROUPS: np.arange(number, number + len(block))})
            number += len(block)
    except OSError as error:
        raise _cannot_read(spec, paths[0], error) from error
    tell_findings(audit, number, split, str(paths[-1]))


def _word_place(sentence: Sentence, at: int, layout: SplitFile) -> str:
    """File and line of a word, and the column of its tag, for a message."""
    place = f"{sentence.place.rpartition(' ')[0]} {sentence.lines[at]}" if sentence.lines else sentence.place
    return f"{place}, column {layout.label!r}" + ("" if sentence.lines else f", word {at + 1}")


def read_labelled_blocks(spec: TaskSpec, data_dir: str | Path, split: str) -> Iterator[tuple[Table, Labels | None]]:
    """Read one split of a task with all its columns and its labels; what is odd about its rows is told at the end.

    Raises:
        DataError: see `read_table_in_blocks` and `SplitAudit`, or a label is none of the task's; names the file, line
            and column.
    """
    audit = SplitAudit(spec, split, _layout(spec, split))
    for table in read_table_in_blocks(spec, data_dir, split):
        labels = parse_labels(spec, table, split)
        audit.look(table, labels)
        yield table, labels
    audit.finish()


def more_columns(spec: TaskSpec, table: Table, split: str) -> dict[str, NDArray]:
    """Return what else is read of each row of a block, beside its texts and its label, by name.

    Raises:
        DataError: A row without its group, or see `parse_teacher`.
    """
    found: dict[str, NDArray] = {}
    if COLUMNS in table.more:
        found[COLUMNS] = parse_teacher(spec, table)
    if GROUPS in table.more:
        (at,) = table.more[GROUPS]
        names = [fields[at].strip().encode() for _, fields in table.rows]
        if b"" in names:
            column, (number, _) = spec.splits[split].more_columns[GROUPS][0], table.rows[names.index(b"")]
            raise DataError(
                f"{table.path}, {table.unit} {number}, column {quoted(str(column))}: no value; it says which rows "
                "belong together. Name the group, or remove the row"
            )
        # A hash of the name, so that no block needs to know of the others.
        found[GROUPS] = np.array([xxhash.xxh3_64_intdigest(name) >> 1 for name in names], dtype=np.int64)
    return found


def read_table(spec: TaskSpec, data_dir: str | Path, split: str) -> Table:
    """Read one split of a task with all its columns, as they are, see `read_table_in_blocks`."""
    blocks = list(read_table_in_blocks(spec, data_dir, split))
    rows = [row for block in blocks for row in block.rows]
    return replace(blocks[0], rows=rows, skipped_rows=sum(block.skipped_rows for block in blocks))


def read_table_in_blocks(spec: TaskSpec, data_dir: str | Path, split: str) -> Iterator[Table]:
    """Read one split of a task with all its columns, some thousand rows after the other; a block may be empty.

    Raises:
        DataError: a file is missing, empty or not UTF-8, or a row has missing or surplus fields; names file and line.
    """
    paths = split_files(spec, data_dir, split)
    try:
        yield from read_tables(paths, spec, split)
    except OSError as error:
        path = Path(error.filename) if isinstance(error.filename, str) else paths[0]
        raise _cannot_read(spec, path, error) from error


def split_files(spec: TaskSpec, data_dir: str | Path, split: str) -> list[Path]:
    """Return the files of a split, and directories of `datasets`, in the order in which they are read.

    The files of a pattern are in the order of their names; a file that is named need not be there.

    Raises:
        DataError: No such split, no file that a pattern matches, or a file that is named twice.
    """
    layout = _layout(spec, split)
    found: list[Path] = []
    for name in (layout.file, *layout.more_files):
        path = spec.file_path(data_dir, name)
        matches = [path]
        if is_pattern(name) and not path.exists():
            pattern = os.path.normpath(os.path.join(glob.escape(str(data_dir)), name))
            matches = [Path(match) for match in sorted(glob.glob(pattern, recursive=True))]
            if not matches:
                raise DataError(
                    f"task {spec.name}: no file matches {shown(name)!r} of split {split} in --data_dir; found in "
                    f"{data_dir}: {_listing(Path(data_dir))}"
                )
        found += matches
    twice = sorted({str(path) for path in found if found.count(path) > 1})
    if twice:
        raise DataError(
            f"task {spec.name}, split {split}: {listed_paths(twice)} would be read twice; name each file once"
        )
    return found


def require_files(spec: TaskSpec, data_dir: str | Path, split: str) -> list[Path]:
    """Return the files of a split, see `split_files`.

    Raises:
        DataError: One is not there; says what is in its place.
    """
    paths = split_files(spec, data_dir, split)
    for path in paths:
        try:
            path.stat()
        except OSError as error:
            raise _cannot_read(spec, path, error) from error
    return paths


def content_files(paths: list[Path]) -> list[Path]:
    """Return the files whose bytes decide what is read: all of a directory's, in the order of their names."""
    return [
        file
        for path in paths
        for file in (sorted(inner for inner in path.rglob("*") if inner.is_file()) if path.is_dir() else [path])
    ]


def without_tabs(table: Table, text_format: TextFormat) -> Table:
    """Return a table whose fields can be written tab-separated: tabs and line breaks inside them become spaces.

    A tab-separated file's own fields stay as they are.
    """
    if file_format(table.path) == "tsv" and replace(text_format, encoding="", quotes=bool(text_format.quotes)) in (
        TextFormat(quotes=False),
        TextFormat(separator="\t", quotes=False),
    ):
        return table
    clean = {ord(character): " " for character in "\t\r\n"}
    rows = [(number, [field.translate(clean) for field in fields]) for number, fields in table.rows]
    header = None if table.header is None else [name.translate(clean) for name in table.header]
    return replace(table, header=header, rows=rows)


def _layout(spec: TaskSpec, split: str) -> SplitFile:
    if split not in spec.splits:
        raise DataError(f"task {spec.name} has no split {split!r}; it has {', '.join(spec.splits)}")
    return spec.splits[split]


def _cannot_read(spec: TaskSpec, path: Path, error: OSError) -> DataError:
    maker = ": data_tools/data_augmentation.py writes it" if path.stem.endswith("_aug") else ""
    return DataError(
        f"cannot read {path}: {error.strerror or error}. Task {spec.name} needs this file in --data_dir{maker}; "
        f"found there: {_listing(path.parent)}"
    )


def _listing(folder: Path) -> str:
    if not folder.is_dir():
        return "no such folder"
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    return listed_paths(names) or "nothing"
