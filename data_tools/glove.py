"""Word vectors out of GloVe and fastText text files, read once and memory-mapped from then on.

V words, D dimensions. A line is a word, a space and D numbers; fastText's `.vec` begins with a line of V and D. A word
may itself hold spaces.
"""

from __future__ import annotations

import contextlib
import json
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tinybert_ds.data.indexed import FileRecord, hash_file
from tinybert_ds.errors import DataError
from tinybert_ds.files import write_atomically
from tinybert_ds.foreign_text import DAMAGED, open_decompressed, quoted
from tinybert_ds.progress import progress_bar
from tinybert_ds.shared_work.derived import obtain
from tinybert_ds.strict_formats import parse_json

FORMAT_VERSION = 1
_WORDS, _VECTORS, _RECORD = "words.txt", "vectors.f32", "vectors.json"
_BATCH_LINES = 4096
_UNKNOWN = "<unk>"


@dataclass(frozen=True)
class WordVectors:
    """The first words of a file, in its order."""

    words: list[str]
    vectors: NDArray[np.float32]  # (V, D), a view of a file


def cache_directory(path: Path, vocab_size: int, fallback: Path) -> Path:
    """Where the memory-mapped form of a file is kept: beside it, or below `fallback` where nothing can be written."""
    home = path.parent if os.access(path.parent, os.W_OK) else fallback
    return home / f"{path.name}.{vocab_size}.vectors"


def build_cache(path: Path, vocab_size: int, directory: Path, *, first: bool = True) -> FileRecord:
    """Read the first `vocab_size` words of a file into `directory`, unless they are there; return the file's record.

    Any number of processes may ask for it: one reads, the others wait.

    Args:
        first: Whether this process is the one of its host that reads and reports, if there is something to read.

    Raises:
        ConfigError: the directory cannot be written.
        DataError: the file is missing, unreadable or malformed; the message names the line.
    """
    if not path.is_file():
        raise DataError(f"the GloVe file {str(path)!r} does not exist; give a text file of word vectors, or --no_glove")
    record = hash_file(path)

    def read(directory: Path) -> FileRecord | None:
        return record if _cached_record(directory) == (record, vocab_size) else None

    def build(directory: Path) -> None:
        shape = _convert(path, vocab_size, directory)
        content = {"version": FORMAT_VERSION, "file": record._asdict(), "vocab_size": vocab_size, "shape": shape}
        write_atomically(directory / _RECORD, json.dumps(content) + "\n")

    return obtain(directory, read, build, first=first)


def open_cache(directory: Path) -> WordVectors:
    """Map what `build_cache` has written."""
    rows, width = json.loads((directory / _RECORD).read_text(encoding="utf-8"))["shape"]
    vectors = np.memmap(directory / _VECTORS, dtype=np.float32, mode="r", shape=(rows, width))
    words = (directory / _WORDS).read_text(encoding="utf-8").split("\n")
    assert len(words) == rows, f"{directory}: {len(words)} words for {rows} vectors"
    return WordVectors(words, vectors)


def _cached_record(directory: Path) -> tuple[FileRecord, int] | None:
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # not there, or not ours: written anew
        content = parse_json((directory / _RECORD).read_bytes())
        rows, width = content["shape"]
        whole = (directory / _VECTORS).stat().st_size == 4 * rows * width and (directory / _WORDS).is_file()
        if content["version"] == FORMAT_VERSION and whole:
            return FileRecord(**content["file"]), content["vocab_size"]
    return None


def _convert(path: Path, vocab_size: int, directory: Path) -> tuple[int, int]:
    """Write words and vectors; return (V, D)."""
    words: list[str] = []
    batch: list[NDArray[np.float32]] = []
    bar = progress_bar(total=vocab_size, desc=f"reading {path.name}", unit="word")
    with (directory / _VECTORS).open("wb") as output, bar:
        for word, vector in _read(path):
            words.append(word)
            batch.append(vector)
            if len(batch) == _BATCH_LINES or len(words) == vocab_size:
                output.write(np.stack(batch).data)
                bar.update(len(batch))
                batch = []
            if len(words) == vocab_size:
                break
        if batch:
            output.write(np.stack(batch).data)
            bar.update(len(batch))
        bar.total = len(words)
    if not words:
        raise DataError(f"the GloVe file {str(path)!r} holds no vectors; give a text file of word vectors")
    (directory / _WORDS).write_text("\n".join(words), encoding="utf-8")
    return len(words), (directory / _VECTORS).stat().st_size // (4 * len(words))


def _read(path: Path) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Yield the words of a file with their vectors (D,).

    Raises:
        DataError: a line that is no word and D numbers, or a file that cannot be read.
    """
    width = 0
    number = 0
    try:
        with open_decompressed(path) as file:
            for number, data in enumerate(file, start=1):
                line = _decode(data, path, number).rstrip("\r\n ")
                fields = line.split(" ")
                if number == 1 and len(fields) == 2 and all(field.isdecimal() for field in fields):
                    width = int(fields[1])  # fastText: number of words, dimensions
                elif line.strip():
                    width = width or len(fields) - 1
                    yield _parse(line, width, path, number)
    except (OSError, *DAMAGED) as error:
        raise DataError(
            f"cannot read the GloVe file {str(path)!r} after line {number}: {error}. It is cut off, damaged or not "
            "readable; copy it again"
        ) from error


def _decode(data: bytes, path: Path, number: int) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{str(path)!r}, line {number}: not UTF-8 (byte 0x{data[error.start]:02x}). Give the text form of the "
            "vectors, plain or gzip"
        ) from error


def _parse(line: str, width: int, path: Path, number: int) -> tuple[str, NDArray[np.float32]]:
    word, _, rest = line.partition(" ")
    vector = _numbers(rest)
    if vector is None or len(vector) != width:
        word, *fields = line.rsplit(" ", width)  # a word with spaces
        vector = _numbers(" ".join(fields)) if len(fields) == width else None
    if vector is None or len(vector) != width or width < 2 or not np.isfinite(vector).all():
        raise DataError(
            f"{str(path)!r}, line {number}: not a word and {width} numbers: {quoted(line, 60)}. Mend or remove the "
            "line, or give a GloVe text file or a fastText .vec"
        )
    return " ".join(word.split()) or _UNKNOWN, vector


def _numbers(text: str) -> NDArray[np.float32] | None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # older numpy only warns of text that is no number
        try:
            return np.fromstring(text, dtype=np.float32, sep=" ")
        except (ValueError, DeprecationWarning):
            return None
