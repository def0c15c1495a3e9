"""Tasks that any number of processes take from each other's hands, with nothing between them but a directory.

A task is a file. Who locks it does it, and writes what came of it into the file; the lock of a process that dies is
free again. So processes of one machine or of many, started by whatever launcher, share the work, and a second start
goes on where the first one ended.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tinybert_ds.errors import DataError
from tinybert_ds.strict_formats import parse_json

Record = dict[str, Any]


class Claim:
    """A task that this process has taken."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def finish(self, record: Record) -> None:
        """Note what came of it; from now on it is finished, even if the machine fails."""
        content = f"{json.dumps(record)}\n".encode()
        os.ftruncate(self._descriptor, 0)
        if os.pwrite(self._descriptor, content, 0) < len(content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(self._descriptor)


class Claims:
    """The tasks of a directory, which is there already."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def record(self, name: str) -> Record | None:
        """What came of a task; None while it is unfinished."""
        try:
            return _parse((self.directory / f"{name}.json").read_bytes())
        except FileNotFoundError:
            return None

    @contextlib.contextmanager
    def take(self, name: str, *, again: bool = False) -> Iterator[Claim | None]:
        """Take a task for as long as the context lasts; None if it is finished or another process has it.

        Args:
            again: even if it is finished.

        Raises:
            DataError: the file system has no locks.
            FileNotFoundError: the directory has gone: others have finished everything.
        """
        descriptor = os.open(self.directory / f"{name}.json", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            free = self._lock(descriptor)
            if os.fstat(descriptor).st_nlink == 0:  # removed by whoever had the lock before
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self.directory))
            if free and not again:
                free = _parse(os.pread(descriptor, os.fstat(descriptor).st_size, 0)) is None
            yield Claim(descriptor) if free else None
        finally:
            os.close(descriptor)

    def any_taken(self) -> bool:
        """Whether another process, or this one, has a task just now."""
        for path in self.directory.glob("*.json"):
            with self.take(path.stem, again=True) as claim:
                if claim is None:
                    return True
        return False

    def _lock(self, descriptor: int) -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            raise DataError(
                f"cannot lock files in {str(self.directory)!r}: {error}. Give an --output_dir on a file system with "
                "locks (on Lustre: mounted with -o flock)."
            ) from error
        return True


def _parse(content: bytes) -> Record | None:
    """A whole record; None of one that a killed process has not completed."""
    try:
        record = parse_json(content)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None
