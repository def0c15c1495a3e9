"""Plain text, which may be compressed, as parts that begin and end at the end of a document.

Part k of a text begins behind the first blank line that starts at byte k · P or later, and ends where part k + 1
begins; part 0 begins with the text. So a part is found by reading from byte k · P on, by anyone, in any order, and each
document lies in one part. A part inside a long document is empty.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from data_tools.text_units import UNIT_BYTES, Problems, Unit, UnreadableInputError
from tinybert_ds.foreign_text import COMPRESSED, DAMAGED, how_to_decode, likely_encoding, open_decompressed

BLOCK_BYTES = 1 << 20
LONGEST_LINE_BYTES = 1 << 26
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_ENCODING_BYTES = 1 << 15  # around a byte that is not UTF-8, from which its encoding is guessed


class LineReader:
    """A text, read forward in whole lines.

    The file is read in blocks that do not depend on where reading begins, so that a damaged one gives the same text to
    everyone.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.offset = 0  # in the decompressed text
        self._handle: IO[bytes] | None = None
        self._seekable = path.suffix.lower() not in COMPRESSED
        self._data, self._base = b"", 0  # a piece of the text and its offset

    def take_lines(self, size: int, stop: int | None = None) -> bytes:
        """The next whole lines, at least `size` bytes if there are so many; none starts at `stop` or behind it."""
        last = self.offset + size - 1 if stop is None else min(self.offset + size, stop) - 1
        if last < self.offset:
            return b""
        search = last
        while True:
            found = self._data.find(b"\n", max(0, search - self._base))
            if found >= 0:
                end = self._base + found + 1
                break
            search = max(last, self._base + len(self._data))
            if not self._read_block():
                end = self._base + len(self._data)
                break
            if search - last > LONGEST_LINE_BYTES:
                raise UnreadableInputError(
                    f"cannot read {str(self.path)!r}: the line at offset {self.offset} or behind it is longer than "
                    f"{LONGEST_LINE_BYTES} bytes; a sentence a line is expected. Is it a text?"
                )
        lines = self._data[self.offset - self._base : end - self._base]
        self.offset = end
        return lines

    def skip_to(self, offset: int) -> None:
        """Go on at an offset behind the present one, or at the end of the text."""
        if self._seekable and offset >= self._base + len(self._data):
            self._base = offset - offset % BLOCK_BYTES
            self._data = b""
            self._open().seek(self._base)
        while self._base + len(self._data) < offset:
            self.offset = self._base + len(self._data)
            if not self._read_block():
                return
        self.offset = offset

    def at_end(self) -> bool:
        """Whether no text is left."""
        return self.offset == self._base + len(self._data) and not self._read_block()

    def close(self) -> None:
        """Close the file."""
        if self._handle is not None:
            self._handle.close()

    def _open(self) -> IO[bytes]:
        if self._handle is None:
            try:
                self._handle = open_decompressed(self.path)
            except OSError as error:
                raise _unreadable(self.path, 0, error) from error
        return self._handle

    def _read_block(self) -> bool:
        """Append the next block; forget what lies before the present offset."""
        try:
            block = self._open().read(BLOCK_BYTES)
        except (OSError, *DAMAGED) as error:
            raise _unreadable(self.path, self._base + len(self._data), error) from error
        passed = min(self.offset - self._base, len(self._data)) if self.offset > self._base else 0
        self._data, self._base = self._data[passed:] + block, self._base + passed
        return bool(block)


class LineParts:
    """The lines of a text part by part, as bytes.

    Args:
        path: plain, .gz, .xz or .zst.
        blank_lines: documents end at blank lines; otherwise every line is one.
    """

    def __init__(self, path: Path, part_bytes: int, *, blank_lines: bool = True) -> None:
        self.num_parts = None
        if path.suffix.lower() not in COMPRESSED:
            self.num_parts = max(1, -(-path.stat().st_size // part_bytes))
        self.begin = self.end = 0
        self.ended = False
        self._path = path
        self._lines = LineReader(path)
        self._part_bytes = part_bytes
        self._blank_lines = blank_lines
        self._edge: int | None = 0
        """Where the line starts that decides that a part may begin at the reader's offset; None: none may."""

    def pieces(self, part: int) -> Iterator[bytes]:
        """Whole lines of a part, about UNIT_BYTES at a time; sets `begin`, `end` and `ended`."""
        lines, begin, stop = self._lines, part * self._part_bytes, (part + 1) * self._part_bytes
        for _ in self._to_edge(begin, stop):
            pass
        self.begin = self.end = lines.offset
        if self._edge is not None and self._edge < stop:
            self._edge = None
            while piece := lines.take_lines(UNIT_BYTES, stop):
                self.end = lines.offset
                yield piece
            if lines.offset >= stop:  # else the text has ended
                for piece in _gathered(self._to_edge(stop, None)):
                    self.end = lines.offset
                    yield piece
        self.ended = lines.at_end()

    def decoded(self, piece: bytes, problems: Problems) -> list[str]:
        """The lines of the piece that was taken last, see `decode_lines`."""
        return decode_lines(self._path, self.end - len(piece), piece, problems)

    def close(self) -> None:
        """Close the file."""
        self._lines.close()

    def _to_edge(self, begin: int, stop: int | None) -> Iterator[bytes]:
        """Go on to the first edge at `begin` or behind it, unless none lies before `stop`; yield the lines passed."""
        lines = self._lines
        if self._edge is not None and self._edge >= begin:
            return
        self._edge = None
        if lines.offset < begin:
            lines.skip_to(begin - 1)
            lines.take_lines(1)
        while stop is None or lines.offset < stop:
            start = lines.offset
            line = lines.take_lines(1) if self._blank_lines else b""
            if line:
                yield line
            if not line or is_blank(line):
                self._edge = start
                return


class TextReader(LineParts):
    """A `PartReader` of text: a sentence or paragraph a line, a blank line between documents."""

    def read(self, part: int, problems: Problems) -> Iterator[Unit]:
        """The text of a part (see `PartReader`)."""
        for piece in self.pieces(part):
            yield Unit(self.decoded(piece, problems), len(piece))


def decode_lines(path: Path, offset: int, data: bytes, problems: Problems) -> list[str]:
    """Lines of UTF-8 as stripped strings; one that is not UTF-8 is a problem, and left out.

    Args:
        offset: of `data` in the text.

    Raises:
        DataError: a bad line that is not to be skipped.
    """
    if offset == 0 and data.startswith(BYTE_ORDER_MARK):
        offset, data = len(BYTE_ORDER_MARK), data[len(BYTE_ORDER_MARK) :]
    try:
        lines = data.decode("utf-8").split("\n")
    except UnicodeDecodeError:
        lines = list(_decode_one_by_one(path, offset, data, problems))
    else:
        if not lines[-1]:
            lines.pop()  # what follows the last \n is no line
    return [line.strip() for line in lines]


def is_blank(line: bytes) -> bool:
    """Whether nothing but white space is in a line."""
    line = line.strip()
    unsure = b"\x1c\x1d\x1e\x1f"  # white space for str, but not for bytes
    return not line or ((line[0] >= 0x80 or line[0] in unsure) and not line.decode("utf-8", errors="replace").strip())


def line_number(path: Path, offset: int) -> int:
    """The number, from 1, of the line in which byte `offset` of a text lies; reads the text up to there."""
    lines = LineReader(path)
    number = 1
    while lines.offset <= offset and (piece := lines.take_lines(BLOCK_BYTES, offset + 1)):
        number += piece.count(b"\n", 0, offset - (lines.offset - len(piece)))
    lines.close()
    return number


def _decode_one_by_one(path: Path, offset: int, data: bytes, problems: Problems) -> Iterator[str]:
    begin = offset
    for line in io.BytesIO(data):
        try:
            yield line.decode("utf-8")
        except UnicodeDecodeError as error:
            place = offset + error.start
            around = max(0, place - begin - _ENCODING_BYTES)
            advice = how_to_decode(
                None if problems.skip else likely_encoding(data[around : around + 2 * _ENCODING_BYTES])
            )
            problems.found(
                "lines that are not UTF-8",
                f"{str(path)!r} is not UTF-8: byte 0x{line[error.start]:02x} at offset {place} of the text, line "
                f"{line_number(path, place)}",
                advice[0].upper() + advice[1:],
            )
        offset += len(line)


def _gathered(lines: Iterator[bytes]) -> Iterator[bytes]:
    gathered, size = [], 0
    for line in lines:
        gathered.append(line)
        size += len(line)
        if size >= UNIT_BYTES:
            yield b"".join(gathered)
            gathered, size = [], 0
    if gathered:
        yield b"".join(gathered)


def _unreadable(path: Path, offset: int, error: BaseException) -> UnreadableInputError:
    return UnreadableInputError(
        f"cannot read {str(path)!r} after {offset} bytes of text: {error}. The file is cut off, damaged or not "
        "readable; copy it again."
    )
