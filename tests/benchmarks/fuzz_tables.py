"""What `fuzz.py` damages of others' files: tables of a task in every format, and texts of a corpus."""

from __future__ import annotations

import gzip
import json
import lzma
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import datasets

from data_tools.input_files import find_inputs, open_input
from data_tools.text_units import Problems
from tests.benchmarks.fuzzed_file import Target
from tests.benchmarks.mutations import damage_bytes, damage_json, damage_json_lines, damage_numbers, damage_words
from tinybert_ds.data.table_formats import estimate_rows
from tinybert_ds.data.task_files import read_split
from tinybert_ds.data.task_yaml import load_task_file
from tinybert_ds.foreign_text import zstd

ROWS = [{"text": f"a good film, {n}", "label": "yes" if n % 2 else "no", "n": {"a": [n]}} for n in range(12)]
TASK = """\
text: text
label: label
labels: [no, yes]
metric: accuracy
skip_labels: ['-']
"""
SAVED = "saved"
DAMAGES = {
    ".jsonl": (damage_bytes, damage_json_lines),
    ".json": (damage_bytes, damage_json),
    ".csv": (damage_bytes, damage_words),
    ".tsv": (damage_bytes, damage_words),
    ".txt": (damage_bytes, damage_words),
}
COMPRESSED_OR_BINARY = (damage_bytes, damage_numbers)


def make_tables(folder: Path) -> None:
    """Write the same rows in every format that is read."""
    folder.mkdir()
    comma = "text,label\n" + "".join(f'"{row["text"]}",{row["label"]}\n' for row in ROWS)
    tabs = "text\tlabel\n" + "".join(f"{row['text']}\t{row['label']}\n" for row in ROWS)
    contents = {
        "t.csv": comma.encode(),
        "t.tsv": tabs.encode(),
        "t.jsonl": "".join(f"{json.dumps(row)}\n" for row in ROWS).encode(),
        "t.json": json.dumps({"data": ROWS}, indent=1).encode(),
        "t.csv.gz": gzip.compress(comma.encode()),
        "t.csv.xz": lzma.compress(comma.encode()),
        "t.tsv.zst": zstd.compress(tabs.encode()),
        "prose.txt": "".join(f"It was a good film. We saw it {n} times.\n\n" for n in range(40)).encode(),
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    datasets.disable_progress_bars()
    table = datasets.Dataset.from_list(ROWS).cast_column("label", datasets.ClassLabel(names=["no", "yes"]))
    table.to_parquet(str(folder / "t.parquet"))
    table.save_to_disk(str(folder / SAVED))
    for name in (*(path.name for path in folder.glob("t.*")), SAVED):
        files = f"files: {{train: {name}, dev: {name}}}\n"
        (folder / f"task of {name}.yaml").write_text(files + TASK, encoding="utf-8")


def table_targets(folder: Path) -> Mapping[str, Callable[[], Target]]:
    """Return the targets by name."""
    names = sorted(path.name for path in folder.glob("t.*"))
    saved = {
        f"saved data set's {path.suffix}": partial(_target, path, SAVED) for path in sorted((folder / SAVED).iterdir())
    }
    corpora = {f"corpus {suffix}": partial(_corpus, folder / name) for suffix, name in CORPORA.items()}
    return {f"task {name[1:]}": partial(_target, folder / name, name) for name in names} | saved | corpora


CORPORA = {".txt": "prose.txt", ".jsonl": "t.jsonl", ".parquet": "t.parquet"}


def _target(file: Path, name: str) -> Target:
    return Target(file, partial(read_table, file.parents[name == SAVED], name), _damages(file))


def _corpus(file: Path) -> Target:
    return Target(file, partial(read_text, file), _damages(file))


def _damages(file: Path) -> Any:
    return DAMAGES.get(file.suffix, COMPRESSED_OR_BINARY)


def read_table(folder: Path, name: str) -> Any:
    """Return what a task takes from its files."""
    spec = load_task_file(folder / f"task of {name}.yaml")
    estimate_rows([folder / name])
    examples = read_split(spec, folder, "train")
    return examples.texts, examples.labels


def read_text(path: Path) -> Any:
    """Return the sentences that the preparation of a corpus takes from a file."""
    (found,) = find_inputs([str(path)])
    opened = open_input(found, 1000, "text")
    return [
        list(opened.read(part, Problems(fail_on_error)))
        for part in range(opened.num_parts or 1)
        for fail_on_error in (False, True)
    ]
