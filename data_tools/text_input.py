"""Text files as units of whole lines: plain, .gz or .xz, read once from front to back, hashed on the way."""

from __future__ import annotations

import gzip
import io
import lzma
import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, NamedTuple

import xxhash

from tinybert_ds.data.indexed import FileRecord, hash_file
from tinybert_ds.errors import DataError, raise_all

UNIT_BYTES = 1 << 20
_READ_BYTES = 1 << 20
_UNREADABLE_SUFFIXES = (".zst", ".bz2", ".zip", ".7z", ".tar", ".parquet", ".arrow", ".json", ".jsonl", ".pdf")


class TextInput(NamedTuple):
    """An input file and the name that the manifest gives it."""

    path: Path
    name: str


class TextUnit(NamedTuple):
    """Consecutive whole lines of one input."""

    path: str
    begin: int  # offset in the decompressed text
    first_line: int  # from 1
    data: bytes
    ends_input: bool


class InputReader:
    """Reads one input; knows how far it has come in the file, and the file's hash at the end."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._hash = xxhash.xxh3_64()
        self.file_position = 0  # bytes of the file, compressed where it is
        self.file_bytes = path.stat().st_size

    @property
    def record(self) -> FileRecord:
        """Size and hash of what was read of the file; of all of it, once `units` is exhausted."""
        return FileRecord(self.file_position, self._hash.hexdigest())

    def units(self) -> Iterator[TextUnit]:
        """The text in units of about a megabyte, cut at ends of lines.

        Raises:
            DataError: the file cannot be read or decompressed.
        """
        begin, line = 0, 1
        try:
            with ExitStack() as stack:
                raw = stack.enter_context(self._path.open("rb", buffering=0))
                text = stack.enter_context(io.BufferedReader(_decompressed(self._path, _Tap(raw, self)), _READ_BYTES))
                data = _whole_lines(text)
                while data:
                    following = _whole_lines(text)
                    yield TextUnit(str(self._path), begin, line, data, ends_input=not following)
                    begin, line = begin + len(data), line + data.count(b"\n")
                    data = following
        except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
            raise DataError(
                f"cannot read {str(self._path)!r} after {begin} bytes of text: {error}. "
                "The file is cut off, damaged or not readable; copy it again."
            ) from error

    def saw(self, data: bytes) -> None:
        """Take note of bytes read from the file."""
        self._hash.update(data)
        self.file_position += len(data)


class _Tap(io.RawIOBase):
    """A file whose reader is told of all that is read."""

    def __init__(self, raw: IO[bytes] | io.RawIOBase, reader: InputReader) -> None:
        self._raw = raw
        self._reader = reader

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._raw.read(len(buffer)) or b""
        buffer[: len(data)] = data
        self._reader.saw(data)
        return len(data)


def find_inputs(paths: Sequence[str]) -> list[TextInput]:
    """The input files in lexical order of the names that the manifest gives them.

    A name is the path below the deepest directory that all inputs share, so that it does not depend on where they lie.

    Raises:
        DataError: a file is missing, no text file by its name, or given twice; all are reported together.
    """
    problems = []
    absolute = [Path(os.path.abspath(path)) for path in paths]
    for path, given in zip(absolute, paths, strict=True):
        if path.is_dir():
            problems.append(f"{given!r} is a directory; give its text files")
        elif not path.is_file():
            problems.append(f"the text file {given!r} does not exist")
        elif path.suffix.lower() in _UNREADABLE_SUFFIXES:
            problems.append(f"{given!r} is no text file by its name; allowed are plain text, .gz and .xz. Convert it")
        elif absolute.count(path) > 1:
            problems.append(f"{given!r} is given more than once")
    raise_all(problems, DataError)
    root = os.path.commonpath([path.parent for path in absolute])
    return sorted((TextInput(path, path.relative_to(root).as_posix()) for path in absolute), key=lambda item: item.name)


def hash_inputs(inputs: Sequence[TextInput]) -> dict[str, FileRecord]:
    """Size and hash of every input, by name."""
    return {item.name: hash_file(item.path) for item in inputs}


def _decompressed(path: Path, raw: io.RawIOBase) -> io.RawIOBase:
    buffered = io.BufferedReader(raw, _READ_BYTES)
    if path.suffix.lower() == ".gz":
        return gzip.GzipFile(fileobj=buffered, mode="rb")  # type: ignore[return-value]
    if path.suffix.lower() == ".xz":
        return lzma.LZMAFile(buffered, mode="rb")  # type: ignore[return-value]
    return buffered  # type: ignore[return-value]


def _whole_lines(text: IO[bytes] | io.BufferedReader) -> bytes:
    return text.read(UNIT_BYTES) + text.readline()
