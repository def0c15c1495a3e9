"""Writes a data set of the `datasets` library, from its hub or a local copy, as the files of a task.

    python data_tools/export_dataset.py --dataset nyu-mll/glue --task_name mnli --output_dir glue

The files are those that the training commands read: of GLUE in GLUE's own layout (`--glue_dir`), of a task of your own
(`--task_file`) under its own names. Labels are written by name, whatever numbers the data set gives them.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any

import datasets

from tinybert_ds.arguments import parse
from tinybert_ds.arguments.data_sets import ExportArguments
from tinybert_ds.command_line import run_command
from tinybert_ds.data.glue import DIAGNOSTIC_SPLIT
from tinybert_ds.data.object_records import field_text
from tinybert_ds.data.table_formats import file_format, is_pattern
from tinybert_ds.data.task_spec import SplitFile, TaskSpec, TextFormat
from tinybert_ds.data.tasks import BENCHMARKS, TASKS, find_task
from tinybert_ds.errors import ConfigError, DataError
from tinybert_ds.files import write_atomically
from tinybert_ds.foreign_text import listed, shown, without_compression
from tinybert_ds.targets import target_of

HUB_SPLITS: Mapping[str, tuple[str, ...]] = {
    "train": ("train",),
    "dev": ("validation", "validation_matched", "dev"),
    "dev_mismatched": ("validation_mismatched",),
    "test": ("test", "test_matched"),
    "test_mismatched": ("test_mismatched",),
}
"""Split of a task -> what data sets call it; other splits go by their own name."""

_MNLI_TEXTS = ("premise", "hypothesis")
HUB_TEXTS: Mapping[str, tuple[str, ...]] = {
    "mrpc": ("sentence1", "sentence2"),
    "mnli": _MNLI_TEXTS,
    "mnli-mm": _MNLI_TEXTS,
}
"""Task of GLUE -> its columns on the hub, where they are not those of its files."""

_CLEAN = {ord(character): " " for character in "\t\r\n"}


def open_dataset(source: str, config: str | None) -> Mapping[str, Any]:
    """Open a data set, all splits of it.

    Args:
        source: A name of the hub, or a directory: one that `save_to_disk` wrote, one that holds such directories by
            configuration, or a copy of a repository of the hub.
        config: The configuration; None where there is one only.

    Raises:
        DataError: Nothing there that can be opened.
    """
    candidates = [Path(source) / (config or "."), Path(source)]
    saved = next((path for path in candidates if (path / "dataset_dict.json").is_file()), None)
    try:
        if saved is not None:
            return datasets.load_from_disk(str(saved))
        return datasets.load_dataset(source, config)
    except (datasets.exceptions.DatasetsError, OSError, ValueError) as error:
        what = f"{source}, configuration {config}" if config else source
        reason = shown(str(error).partition("\n")[0].rstrip("."), 300)
        raise DataError(
            f"--dataset {what} cannot be opened: {reason}. Give a name of the hub, such as "
            "nyu-mll/glue, or a directory with a copy of the data set"
        ) from error


def export_task(spec: TaskSpec, splits: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write every split of a task that the data set has; return the files.

    A file that is there already must be the same.

    Raises:
        DataError: No training split, columns or labels that are not the task's, or another file in a file's place.
    """
    written = []
    if target_of(spec).by_token or any(layout.more_columns for layout in spec.splits.values()):
        raise ConfigError(
            f"task {spec.name}: only texts with one label or score in a column are exported; name the data set's own "
            "directory, or its Parquet files, in the task file"
        )
    for split, layout in spec.splits.items():
        name = next((name for name in (*HUB_SPLITS.get(split, ()), split) if name in splits), None)
        if name is None:
            if split in ("train", *spec.eval_splits):
                raise DataError(f"task {spec.name} needs a split {split}; the data set has {listed(splits)}")
            continue
        labelled = layout.label_required or split in spec.eval_splits  # a task of the user's own may evaluate on test
        own_layout = replace(layout, label_required=labelled)
        content = format_split(spec, own_layout, splits[name], place=f"split {name}")
        path = folder / layout.file
        if path.is_file() and path.read_bytes() != content.encode():
            raise DataError(f"{path} is there and holds something else; give another --output_dir, or remove it")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)
        written.append(path)
    return written


def format_split(spec: TaskSpec, layout: SplitFile, rows: Any, *, place: str) -> str:
    """Return a split as the content of its file, in the columns that the task's files have.

    Raises:
        DataError: A column or a value is missing, or a label is not the task's; names split, row and column.
    """
    texts = [str(column) for column in HUB_TEXTS.get(spec.name, layout.texts)]
    if spec.name == "cola":  # whose files have no header
        texts = ["sentence"]
    own_label = "label" if spec.name in TASKS else str(layout.label)
    missing = [name for name in texts if name not in rows.column_names]
    labelled = layout.label is not None and layout.label_required
    if labelled and own_label not in rows.column_names:
        missing.append(own_label)
    if missing:
        raise DataError(f"{place}: no column {', '.join(missing)}; it has {listed(rows.column_names)}")
    columns: list[Iterable[str]] = [_texts(rows, name, place) for name in texts]
    if labelled:
        columns.append(_labels(spec, rows, own_label, place))
    table = list(zip(*columns, strict=True))
    if not layout.header:
        return _join(layout, _without_header(layout, table))
    names = [str(column) for column in layout.texts]
    if labelled:
        return _join(layout, [[*names, str(layout.label)], *table])
    return _join(layout, [["index", *names], *([str(number), *row] for number, row in enumerate(table))])


def _texts(rows: Any, column: str, place: str) -> list[str]:
    """Return the texts of a column, each on one line."""
    values = enumerate(rows[column], start=1)
    return [field_text(value, column, f"{place}, row {row}", needed=True).translate(_CLEAN) for row, value in values]


def _labels(spec: TaskSpec, rows: Any, column: str, place: str) -> list[str]:
    """Return the labels as the task's files spell them: by name where they are numbered differently."""
    names = getattr(rows.features[column], "names", None)
    target, found = target_of(spec), []
    parse = target.parser(spec)
    for row, value in enumerate(rows[column], start=1):
        if names is not None and isinstance(value, int) and 0 <= value < len(names):
            word = names[value]
        else:
            word = field_text(value, column, f"{place}, row {row}", needed=True)
        found.append(target.field(spec, parse(word, f"{place}, row {row}, column {column!r}")))
    return found


def _without_header(layout: SplitFile, table: Sequence[Sequence[str]]) -> list[list[str]]:
    assert layout.label is not None
    places = [int(column) for column in (*layout.texts, layout.label)]
    rows = []
    for fields in table:
        row = ["" for _ in range(max(places) + 1)]
        for place, field in zip(places, fields, strict=True):
            row[place] = field
        rows.append(row)
    return rows


def _join(layout: SplitFile, rows: Sequence[Sequence[str]]) -> str:
    kind = file_format(layout.file)
    if layout.more_files or is_pattern(layout.file) or layout.text_format != TextFormat() or kind not in ("tsv", "csv"):
        raise ConfigError(
            f"{shown(layout.file)}: a split is exported as one .tsv or .csv in UTF-8; name such files in the task "
            "file, without separator, quotes and encoding"
        )
    if without_compression(layout.file) != PurePath(layout.file):
        raise ConfigError(f"{shown(layout.file)}: exported files are not compressed; name them so in the task file")
    if kind == "tsv":
        return "".join("\t".join(row) + "\n" for row in rows)
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue()


def main(arguments: Sequence[str] | None = None) -> None:
    """Export what the command line names."""
    options = parse(ExportArguments, arguments)
    names = options.task_names
    if names == ["all"]:
        names = [spec.name for spec in BENCHMARKS["all"]]
    output_dir = Path(options.output_dir)
    specs = [find_task(name, None) for name in names] or [find_task(None, options.task_file)]
    for spec in specs:
        config = options.dataset_config
        if config is None and spec.name in TASKS:
            config = spec.directory.lower().replace("-", "")
        splits = dict(open_dataset(options.dataset, config))
        if DIAGNOSTIC_SPLIT in spec.splits and config == "mnli":
            splits |= _diagnostic(options.dataset)
        folder = output_dir / spec.directory if spec.directory else output_dir
        for path in export_task(spec, splits, folder):
            print(path)


def _diagnostic(source: str) -> dict[str, Any]:
    """Return MNLI's diagnostic set, a configuration of its own, where the data set has it."""
    try:
        return {DIAGNOSTIC_SPLIT: open_dataset(source, "ax")["test"]}
    except (DataError, KeyError):
        return {}


if __name__ == "__main__":
    run_command(main)
