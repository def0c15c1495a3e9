"""Text that others wrote: opening it, decoding it, and quoting it in a message."""

from __future__ import annotations

import codecs
import contextlib
import gzip
import io
import lzma
import sys
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path, PurePath
from typing import IO, Any, NamedTuple

from tinybert_ds.errors import ConfigError, UserError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

COMPRESSED: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".xz": lzma.open, ".zst": zstd.open}
"""Suffix -> what opens such a file."""

DAMAGED = (gzip.BadGzipFile, EOFError, lzma.LZMAError, zlib.error, zstd.ZstdError)
"""What reading a damaged compressed file raises."""

SHOWN_CHARACTERS = 80
PATH_CHARACTERS = 400
SHOWN_ITEMS = 12
_CHUNK_BYTES = 1 << 16
_SAMPLE_BYTES = 1 << 15
_LARGEST_BYTES = 1 << 24


def shown(text: object, limit: int = SHOWN_CHARACTERS) -> str:
    """Return foreign text as a message may hold it: one line, nothing unprintable, at most about `limit` characters."""
    whole = str(text)
    clean = "".join(character if character.isprintable() else repr(character)[1:-1] for character in whole[: limit + 1])
    return (
        clean if len(whole) <= limit and len(clean) <= 4 * limit else f"{clean[:limit]}... ({len(whole):,} characters)"
    )


def quoted(text: str, limit: int = SHOWN_CHARACTERS) -> str:
    """Return foreign text in quotation marks, shortened as by `shown`."""
    return repr(text) if len(text) <= limit else f"{text[:limit]!r}... ({len(text):,} characters)"


def table_cell(text: object) -> str:
    """Return foreign text as a cell of a Markdown table, or a heading, holds it."""
    return " ".join(str(text).splitlines()).replace("|", "\\|")


def listed(items: Iterable[object], limit: int = SHOWN_ITEMS, characters: int = SHOWN_CHARACTERS) -> str:
    """Return foreign names with commas: the first `limit` of them, each shortened, and how many more there are."""
    names = list(items)
    rest = f" and {len(names) - limit:,} more" if len(names) > limit else ""
    return ", ".join(shown(name, characters) for name in names[:limit]) + rest


def listed_paths(paths: Iterable[object]) -> str:
    """Return `listed` for paths, which are of use as a whole only."""
    return listed(paths, characters=PATH_CHARACTERS)


def without_compression(file: str | PurePath) -> PurePath:
    """Return a file's name without the suffix of a compression."""
    path = PurePath(file)
    return path.with_suffix("") if path.suffix.lower() in COMPRESSED else path


def open_decompressed(path: Path) -> IO[bytes]:
    """Open a file for reading, decompressed as its suffix says.

    Raises:
        OSError: It cannot be opened.
        EOFError: A compressed file without a byte, which gzip would let pass as an empty text.
    """
    opener = COMPRESSED.get(path.suffix.lower())
    if opener is None:
        return path.open("rb")
    if path.stat().st_size == 0:
        raise EOFError("a compressed file is never empty")
    return opener(path, "rb")


class Undecodable(NamedTuple):
    """Where a file stops being text of an encoding."""

    line: int  # 1-based
    byte: int  # 0-based, of the decompressed file
    likely: str | None  # the encoding that it is probably in


def find_undecodable(path: Path, encoding: str = "utf-8") -> Undecodable:
    """Return where a file, which cannot be decoded, stops being text of an encoding; raises as reading it does."""
    decoder = codecs.getincrementaldecoder("utf-8" if encoding == "utf-8-sig" else encoding)()
    line, begin, before = 1, 0, b""
    with open_decompressed(path) as file:
        while True:
            chunk = file.read(_CHUNK_BYTES)
            state = decoder.getstate()
            try:
                line += decoder.decode(chunk, final=not chunk).count("\n")
            except UnicodeDecodeError as error:
                good = max(0, error.start - (len(error.object) - len(chunk)))
                decoder.setstate(state)
                with contextlib.suppress(UnicodeError):  # no byte-order mark in the first place
                    line += decoder.decode(chunk[:good]).count("\n")
                sample = before[-_SAMPLE_BYTES:] + chunk + file.read(_SAMPLE_BYTES)
                return Undecodable(line, begin + good, likely_encoding(sample))
            assert chunk, f"{path} is {encoding}, or has changed while it was read"
            begin, before = begin + len(chunk), chunk


def likely_encoding(sample: bytes) -> str | None:
    """Return the name of the encoding that some bytes of a text are probably in, None where nothing fits."""
    from charset_normalizer import from_bytes  # noqa: PLC0415 - for messages only

    best = from_bytes(sample).best()
    return None if best is None or best.encoding in ("ascii", "utf_8") else best.encoding


def how_to_decode(likely: str | None) -> str:
    """Return the end of a message: what a file that is not UTF-8 looks like, and the command that converts it."""
    name = likely or "latin1"
    looks = f"it looks like {likely}" if likely else "its encoding cannot be told"
    return f"{looks}; convert the file, for instance with: iconv -f {name} -t UTF-8"


def read_text(path: Path, what: str, error: type[UserError] = ConfigError) -> str:
    """Read a small file of UTF-8 text, with or without a byte-order mark.

    Args:
        what: What it was given as, such as "--task_file", for messages.

    Raises:
        UserError: `error`: it cannot be read, is not UTF-8, or is too large to be what it was given as.
    """
    try:
        with open_decompressed(path) as file:
            data = file.read(_LARGEST_BYTES + 1)
    except OSError as problem:
        raise error(f"{what}: cannot read {shown(path, 400)}: {problem.strerror or problem}") from problem
    except DAMAGED as problem:
        raise error(f"{what}: {shown(path, 400)} is damaged or cut off ({problem}); copy it again") from problem
    if len(data) > _LARGEST_BYTES:
        raise error(f"{what}: {shown(path, 400)} has more than {_LARGEST_BYTES:,} bytes; this cannot be meant")
    try:
        return io.TextIOWrapper(io.BytesIO(data), encoding="utf-8-sig").read()
    except UnicodeDecodeError as problem:
        place = find_undecodable(path)
        raise error(
            f"{what}: {shown(path, 400)}, line {place.line}: byte {place.byte} is not UTF-8 text; "
            f"{how_to_decode(place.likely)}"
        ) from problem
