"""Putting an export in place: report.json comes last, so that a directory that has it is whole.

A directory whose export was interrupted has the table alone, which says whose it is: the same command repeats it.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tinybert_ds.errors import ConfigError
from tinybert_ds.export.record import REPORT_FILE, TABLE_FILE, TITLE, is_export
from tinybert_ds.files import fsync_directory

logger = logging.getLogger(__name__)

_SCRATCH_PREFIX = ".exporting-"
_FOLDERS = ("onnx", "openvino")
_OF_SENTENCE_ENCODERS = (
    *("modules.json", "config_sentence_transformers.json", "sentence_bert_config.json"),
    *("*_Pooling", "*_Dense", "*_Normalize"),
)
"""What other exports do not write over."""


@contextmanager
def scratch_inside(output_dir: Path) -> Iterator[Path]:
    """A folder in the output directory, which is held until the end of the block by this process alone.

    Directories that were made for it and that nothing was put into are removed, as is what killed exports have left.

    Raises:
        ConfigError: Another process exports to the directory.
        OSError: It cannot be made or written.
    """
    missing = [path for path in (output_dir, *output_dir.absolute().parents) if not path.is_dir()]
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        with _held(output_dir), tempfile.TemporaryDirectory(prefix=_SCRATCH_PREFIX, dir=output_dir) as name:
            yield Path(name)
    finally:
        for path in missing:
            with suppress(OSError):  # something was put there
                path.rmdir()


def may_take_export(directory: Path) -> bool:
    """Whether a directory is empty, but for what a killed export has left, or holds an export, whole or not."""
    names = [path.name for path in directory.iterdir() if not path.name.startswith(_SCRATCH_PREFIX)]
    return not names or is_export(directory) or _is_begun(directory)


def put_in_place(source: Path, output_dir: Path) -> None:
    """Move all that a folder holds, the reports among it, over the files of an earlier export."""
    for file in (path for path in source.rglob("*") if path.is_file()):
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
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


@contextmanager
def _held(output_dir: Path) -> Iterator[None]:
    """Lock a directory and rid it of what killed exports have left."""
    descriptor = os.open(output_dir, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for path in output_dir.glob(f"{_SCRATCH_PREFIX}*"):
            logger.info("removing %s: an export that was killed has left it", path)
            shutil.rmtree(path, ignore_errors=True)  # what cannot be removed does no harm
    except BlockingIOError as error:
        os.close(descriptor)
        raise ConfigError(
            f"another export writes to --output_dir {output_dir}; wait for it, stop it, or give another directory "
            "(nothing was changed)"
        ) from error
    except OSError as error:  # a file system without locks
        logger.warning("%s cannot be locked (%s): take care to start one export there", output_dir, error.strerror)
    try:
        yield
    finally:
        os.close(descriptor)
