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
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tinybert_ds.errors import ConfigError
from tinybert_ds.foreign_text import shown
from tinybert_ds.strict_formats import parse_json

Record = dict[str, Any]

POLL_SECONDS = 0.2


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
            ConfigError: the file system has no locks.
            FileNotFoundError: the directory has gone: others have finished everything.
        """
        with lock_file(self.directory / f"{name}.json") as descriptor:
            free = descriptor is not None and (again or self.record(name) is None)
            yield Claim(descriptor) if free and descriptor is not None else None

    def share(
        self,
        names: Iterable[str],
        do: Callable[[str], Record],
        *,
        record: Callable[[str], Any] | None = None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        """Do what nobody else does of some tasks, until all are finished.

        Args:
            do: does a task; what it returns is noted.
            record: None of a task that is to be done; by default as the method of this name.
            stopped: asked before each task; True ends the work early.

        Raises:
            FileNotFoundError: the directory has gone: others have finished everything.
        """
        record = record or self.record
        while pending := [name for name in names if record(name) is None]:
            did = False
            for name in pending:
                if stopped():
                    return
                with self.take(name, again=True) as claim:
                    if claim is not None and record(name) is None:
                        claim.finish(do(name))
                        did = True
            if not did:
                time.sleep(POLL_SECONDS)

    def any_taken(self) -> bool:
        """Whether another process, or this one, has a task just now."""
        for path in self.directory.glob("*.json"):
            with self.take(path.stem, again=True) as claim:
                if claim is None:
                    return True
        return False


@contextlib.contextmanager
def lock_file(path: Path) -> Iterator[int | None]:
    """Make and lock a file for as long as the context lasts; the kernel frees it when a process dies.

    Returns:
        The file's descriptor. None: another process has the lock, or had it and has removed the file.

    Raises:
        ConfigError: the file system has no locks.
        OSError: the file cannot be made.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        yield descriptor if _lock(descriptor, path) and os.fstat(descriptor).st_nlink else None
    finally:
        os.close(descriptor)


def describe_differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """What differs between what work was begun with and what is wanted now, in words; empty if nothing does."""
    names = dict.fromkeys([*found, *wanted])
    different = [name for name in names if found.get(name) != wanted.get(name)]
    return "; ".join(
        f"{name} is {shown(repr(found.get(name)), 200)} there and {shown(repr(wanted.get(name)), 200)} now"
        for name in different
    )


def _lock(descriptor: int, path: Path) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise ConfigError(
            f"cannot lock {str(path)!r}: {error.strerror}. Give a directory on a file system with locks (on Lustre: "
            "mounted with -o flock), with --output_dir or --cache_dir"
        ) from error
    return True


def _parse(content: bytes) -> Record | None:
    """A whole record; None of one that a killed process has not completed."""
    try:
        record = parse_json(content)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None
