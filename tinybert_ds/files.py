"""Files that are whole or not there, and directories that are ours or not touched."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from tinybert_ds.errors import ConfigError


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a small file so that a reader sees the old content or the new, never a part: temp name, fsync, rename."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    data = content.encode("utf-8") if isinstance(content, str) else content
    with temporary.open("wb") as handle:
        handle.write(data)
        handle.flush()
        os.fsync(handle.fileno())
    temporary.replace(path)
    fsync_directory(path.parent)


def fsync_directory(directory: Path) -> None:
    """Make renames inside a directory durable."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_output_directory(directory: Path) -> None:
    """Make a directory that results go to.

    Raises:
        ConfigError: A file, or a place where it cannot be made.
    """
    refuse_file(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--output_dir {directory} cannot be made: {error.strerror}; give another one") from error


def refuse_file(directory: Path) -> None:
    """Raise ConfigError where a file stands in the place of a directory for results."""
    if directory.exists() and not directory.is_dir():
        raise ConfigError(f"--output_dir {directory} is a file; give a directory")


def refuse_foreign_files(directory: Path, names: Iterable[str], state: str) -> None:
    """Raise ConfigError that names the files of a directory for results which are somebody else's, if there are any.

    Args:
        state: What is said of the directory, such as "holds files that are no run of this program".
    """
    foreign = sorted(names)
    if foreign:
        raise ConfigError(
            f"--output_dir {directory} {state}: {', '.join(foreign[:5])}{' ...' if len(foreign) > 5 else ''}; give an "
            "empty or new directory (nothing was changed)"
        )
