"""Derived data that is made once: directories that are whole or not there, written by one process at a time.

They may be deleted at any moment; what needs them makes them anew.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from tinybert_ds.errors import ConfigError
from tinybert_ds.files import fsync_directory
from tinybert_ds.shared_work.claims import POLL_SECONDS, lock_file

logger = logging.getLogger(__name__)

Content = TypeVar("Content")

CACHE_FOLDER = ".tinybert_cache"
HEAD_START_SECONDS = 2.0


def cache_home(data_dir: str | Path | None, cache_dir: str | Path | None) -> Path:
    """Return the folder of a task's derived data, and make it.

    Args:
        cache_dir: `--cache_dir`. Without it the folder is inside `data_dir` if that can be written, else inside the
            user's own cache ($XDG_CACHE_HOME, or ~/.cache).

    Raises:
        ConfigError: It cannot be made or written.
    """
    if cache_dir is not None:
        home = Path(cache_dir)
    elif data_dir is not None and os.access(data_dir, os.W_OK | os.X_OK):
        home = Path(data_dir) / CACHE_FOLDER
    else:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tinybert_ds"
    with writing(home):
        home.mkdir(parents=True, exist_ok=True)
    if not os.access(home, os.W_OK | os.X_OK):
        raise ConfigError(f"the folder of derived data {home} cannot be written; give another one with --cache_dir")
    return home


def obtain(
    directory: Path,
    read: Callable[[Path], Content | None],
    build: Callable[[Path], None],
    *,
    first: bool = True,
) -> Content:
    """Return what a directory of derived data holds, after making it if it is not there.

    Any number of processes may ask at the same time: one of them makes it, the others look now and then, outside of
    any collective. When the maker dies, the next one takes its place.

    Args:
        directory: Below a folder that exists.
        read: From the directory to its content; None where it is missing or damaged.
        build: Fills an empty directory, which is then moved into place. Its errors are raised here.
        first: Whether this process is the one that makes and reports it; others give it a head start.

    Raises:
        ConfigError: The directory cannot be written.
    """
    own_turn = time.monotonic() + (0.0 if first else HEAD_START_SECONDS)
    while (content := read(directory)) is None:
        if time.monotonic() >= own_turn:
            with try_lock(directory) as locked:
                content = read(directory) if locked else None  # somebody may have been faster
                if locked and content is None:
                    _write_whole(directory, build)
                    content = read(directory)
                    assert content is not None, f"{directory} cannot be read after it was written"
            if content is not None:
                break
        time.sleep(POLL_SECONDS)
    return content


@contextmanager
def try_lock(directory: Path) -> Iterator[bool]:
    """Hold the lock of a directory of derived data, if nobody else does.

    Raises:
        ConfigError: The file of the lock cannot be made or locked.
    """
    path = directory.with_name(f"{directory.name}.lock")
    with ExitStack() as stack:
        with writing(directory):
            locked = stack.enter_context(lock_file(path)) is not None
        if locked:
            stack.callback(path.unlink, missing_ok=True)
        yield locked


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise ConfigError that says what to do where derived data cannot be written."""
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"cannot write the derived data {path}: {error.strerror or error}; make room there, or give another folder "
            "with --cache_dir, where the command takes it"
        ) from error


def save_array(path: Path, array: NDArray) -> None:
    """Write a .npy file that is on the disk when the call returns."""
    with path.open("wb") as handle:
        np.save(handle, array, allow_pickle=False)
        handle.flush()
        os.fsync(handle.fileno())


def map_array(path: Path) -> NDArray:
    """Map a .npy file.

    Raises:
        OSError: It cannot be read.
        ValueError: It holds no array.
    """
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError:
        raise
    except Exception as error:  # numpy parses the head as Python and lets every error of that out
        raise ValueError(f"{path} holds no array: {error}") from error


def _write_whole(directory: Path, build: Callable[[Path], None]) -> None:
    """Fill a directory under another name and move it into place; only with its lock."""
    temporary = directory.with_name(f"{directory.name}.tmp")
    if directory.exists():  # and yet it is written: nobody could read it
        logger.warning("%s is damaged or out of date and is made anew", directory)
    try:
        with writing(directory):
            shutil.rmtree(temporary, ignore_errors=True)  # of a process that was killed
            temporary.mkdir()
            build(temporary)
            fsync_directory(temporary)
            shutil.rmtree(directory, ignore_errors=True)
            temporary.replace(directory)
            fsync_directory(directory.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
