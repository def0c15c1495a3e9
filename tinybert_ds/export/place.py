"""Putting an export in place: report.json comes last, so that a directory that has it is whole.

A directory whose export was interrupted has the table alone, which says whose it is: the same command repeats it.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tinybert_ds.export.record import REPORT_FILE, TABLE_FILE, TITLE, is_export
from tinybert_ds.files import fsync_directory

_SCRATCH_PREFIX = ".exporting-"
_FOLDERS = ("onnx", "openvino")
_OF_SENTENCE_ENCODERS = (
    *("modules.json", "config_sentence_transformers.json", "sentence_bert_config.json"),
    *("*_Pooling", "*_Dense", "*_Normalize"),
)
"""What other exports do not write over."""


@contextmanager
def scratch_beside(output_dir: Path) -> Iterator[Path]:
    """A folder on the disk of the output directory, which is not made before there is something to put there."""
    parent = next(path for path in (output_dir.absolute(), *output_dir.absolute().parents) if path.is_dir())
    with tempfile.TemporaryDirectory(prefix=_SCRATCH_PREFIX, dir=parent) as name:
        yield Path(name)


def may_take_export(directory: Path) -> bool:
    """Whether a directory is empty, but for what a killed export has left, or holds an export, whole or not."""
    names = [path.name for path in directory.iterdir() if not path.name.startswith(_SCRATCH_PREFIX)]
    return not names or is_export(directory) or _is_begun(directory)


def put_in_place(source: Path, output_dir: Path) -> None:
    """Move all that a folder holds, the reports among it, over the files of an earlier export."""
    for file in (path for path in source.rglob("*") if path.is_file()):
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
    output_dir.mkdir(parents=True, exist_ok=True)
    (output_dir / REPORT_FILE).unlink(missing_ok=True)
    fsync_directory(output_dir)
    os.replace(source / TABLE_FILE, output_dir / TABLE_FILE)
    for pattern in (*_FOLDERS, *_OF_SENTENCE_ENCODERS):
        for path in output_dir.glob(pattern):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
    for path in sorted(path for path in source.iterdir() if path.name != REPORT_FILE):
        os.replace(path, output_dir / path.name)
    fsync_directory(output_dir)
    os.replace(source / REPORT_FILE, output_dir / REPORT_FILE)
    fsync_directory(output_dir)


def _is_begun(directory: Path) -> bool:
    try:
        return (directory / TABLE_FILE).read_text(encoding="utf-8").startswith(f"{TITLE}\n")
    except (OSError, ValueError):
        return False
