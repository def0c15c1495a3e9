"""Files that are whole or not there, directories that are ours or not touched, and what to tell of those that the
system refuses."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from tinybert_ds.errors import ConfigError, FileError

_PROGRAM = Path(__file__).resolve().parent
_NO_RIGHT = "this user may not do that there: give the right (chmod, chown), or give another path"
_MAKE_ROOM = "make room there, or give a path on another disk, and start the same command again"
_REMEDIES = {
    errno.ENOENT: "give a path that exists; what was there when the command started was moved away or removed",
    errno.ENOTDIR: "a part of the path is a file where a directory is needed: give another path",
    errno.EISDIR: "it is a directory where a file is needed: give the path of a file",
    errno.EACCES: _NO_RIGHT,
    errno.EPERM: _NO_RIGHT,
    errno.EROFS: "its file system can only be read: give a path on another one",
    errno.ENAMETOOLONG: "most file systems allow 255 bytes for a name and 4,095 for a path: give a shorter one",
    errno.ELOOP: "links lead in a circle: mend the link, or give another path",
    errno.EEXIST: "something of that name is there already: remove it, or give another path",
    errno.ENOTEMPTY: "the directory holds files: empty it, or give another path",
    errno.EBUSY: "another process uses it: wait for that, or give another path",
    errno.ETXTBSY: "another process runs it: wait for that, or give another path",
    errno.ENXIO: "it is a pipe or a device that nobody serves: give an ordinary file",
    errno.ENODEV: "it is no ordinary file: give one",
    errno.ESTALE: "its file system was changed on the server: mount it again and start the same command again",
    errno.EIO: "the disk or its server fails: mend that and start the same command again",
    errno.EMFILE: "this process may not open more files: raise `ulimit -n`",
    errno.ENFILE: "the machine may not open more files: end other processes, or raise fs.file-max",
    errno.ENOSPC: _MAKE_ROOM,
    errno.EDQUOT: _MAKE_ROOM,
    errno.EFBIG: "the system lets no file grow so large: raise `ulimit -f`, or give a path on another file system",
}
_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)
"""What writing into an open file can meet; Python leaves its name out then."""
_NUMBERS = {
    FileNotFoundError: errno.ENOENT,
    NotADirectoryError: errno.ENOTDIR,
    IsADirectoryError: errno.EISDIR,
    PermissionError: errno.EACCES,
    FileExistsError: errno.EEXIST,
}
"""Libraries written in Rust raise these with a sentence alone."""


def file_error(error: OSError) -> FileError | None:
    """Return what to tell the user of an error of the system, None where this program is at fault.

    The number of the error decides, and the name of the file. The world's are the numbers that say something of a
    file or a disk, provided that a file is named, or that the number is one of a disk. A number that a wrong call gives
    (EBADF, EINVAL), one of a pipe or a socket, and a file missing from this program's own installation are faults,
    which keep their traceback.
    """
    number = error.errno if error.errno is not None else _NUMBERS.get(type(error))
    names = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
    if number not in _REMEDIES or not (names or error.errno is None or number in _OF_THE_DISK):
        return None
    if number in (errno.ENOENT, errno.ENOTDIR) and any(_is_own(name) for name in names):
        return None
    said = error.strerror or str(error)
    what = " -> ".join(_shown(name) for name in names) or "a file"
    room = f" ({free_megabytes(Path(names[0]))} MB are free there)" if names and number in _OF_THE_DISK[:2] else ""
    return FileError(f"{what} cannot be read or written: {said}{room}; {_REMEDIES[number]}")


def is_text(path: Path) -> bool:
    """Whether a path is text as libraries in C++ want it; others hold bytes that no UTF-8 has."""
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def free_megabytes(path: Path) -> int:
    """Return the room on the disk of a path, which need not exist."""
    place = next((parent for parent in (path, *path.absolute().parents) if os.path.isdir(parent)), Path("/"))
    return shutil.disk_usage(place).free // 2**20


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a small file so that a reader sees the old content or the new, never a part: temp name, fsync, rename.

    Args:
        content: Bytes, or text, in which those bytes of a path that are no text are spelled out.

    Raises:
        OSError: With the name of the file; nothing of it is left behind.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    data = content.encode("utf-8", errors="backslashreplace") if isinstance(content, str) else content
    try:
        with temporary.open("wb") as handle:
            handle.write(data)
            handle.flush()
            os.fsync(handle.fileno())
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):  # such as a name that is too long to be removed, too
            temporary.unlink()
        raise OSError(error.errno, error.strerror, str(path)) from error
    fsync_directory(path.parent)


def fsync_directory(directory: Path) -> None:
    """Make renames inside a directory durable."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_output_directory(directory: Path) -> None:
    """Make a directory that results go to; raises ConfigError where it is a file."""
    refuse_file(directory)
    directory.mkdir(parents=True, exist_ok=True)


def refuse_file(directory: Path, flag: str = "--output_dir") -> None:
    """Raise ConfigError where a file stands in the place of a directory for results."""
    if directory.exists() and not directory.is_dir():
        raise ConfigError(f"{flag} {directory} is a file; give a directory")


def refuse_foreign_files(directory: Path, names: Iterable[str], state: str, flag: str = "--output_dir") -> None:
    """Raise ConfigError that names the files of a directory for results which are somebody else's, if there are any.

    Args:
        state: What is said of the directory, such as "holds files that are no run of this program".
        flag: What names it on the command line.
    """
    foreign = sorted(names)
    if foreign:
        raise ConfigError(
            f"{flag} {directory} {state}: {', '.join(foreign[:5])}{' ...' if len(foreign) > 5 else ''}; give an "
            "empty or new directory (nothing was changed)"
        )


def _is_own(name: str) -> bool:
    return Path(os.path.abspath(name)).is_relative_to(_PROGRAM)


def _shown(name: str, most: int = 300) -> str:
    """Return a path as a message has it: whole unless it is endless, and in characters that every terminal takes."""
    text = repr(name)
    return text if len(text) <= most else f"{text[: most // 2]} ... {text[-most // 2 :]} ({len(name):,} characters)"
