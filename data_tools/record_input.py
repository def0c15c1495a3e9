"""Records with a text, each of them a document: here JSON lines, and what all kinds of records share.

The lines of a record's text are its sentences; blank ones are passed over.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from data_tools.text_input import LineParts
from data_tools.text_units import Problems, Unit
from tinybert_ds.foreign_text import shown
from tinybert_ds.strict_formats import NoJsonError, parse_json

_UNPAIRED = re.compile("[\ud800-\udfff]")


class JsonLinesReader(LineParts):
    """A `PartReader` of JSON lines: part k holds the records that begin in bytes [k · P, (k + 1) · P) of the text."""

    def __init__(self, path: Path, part_bytes: int, field: str) -> None:
        super().__init__(path, part_bytes, blank_lines=False)
        self._field = field

    def read(self, part: int, problems: Problems) -> Iterator[Unit]:
        """The records of a part (see `PartReader`)."""
        for piece in self.pieces(part):
            records = [self._record_lines(line, problems) for line in self.decoded(piece, problems) if line]
            yield Unit(list(itertools.chain.from_iterable(records)), len(piece))

    def _record_lines(self, line: str, problems: Problems) -> list[str]:
        advice = f"Each line must be an object with the text in {self._field!r} (--text_field)"
        if line.startswith("["):
            advice += "; a list of records becomes such lines with: jq -c '.[]'"
        try:
            record = parse_json(line)
        except NoJsonError as error:
            message = f"{str(self._path)!r}: not JSON ({error}): {shown(line)}"
            problems.found("lines that are not JSON", message, advice)
            return []
        text = record.get(self._field) if isinstance(record, dict) else None
        if not isinstance(text, str):
            message = f"{str(self._path)!r}: no text in {self._field!r}: {shown(line)}"
            problems.found("records without text", message, advice)
            return []
        return record_lines(text, problems)


def record_lines(text: str, problems: Problems) -> list[str]:
    """The lines of one record, and the empty line that ends a document."""
    if _UNPAIRED.search(text):
        text, count = _UNPAIRED.subn("\ufffd", text)
        problems.counts["unpaired surrogates that became U+FFFD"] += count
    return [*(line for line in map(str.strip, text.split("\n")) if line), ""]


def records_unit(texts: Iterable[Any], place: str, first_row: int, field: str, problems: Problems) -> Unit:
    """The unit of some texts, consecutive rows of one input; what is no text is a problem."""
    lines: list[str] = []
    size = 0
    for row, text in enumerate(texts, first_row):
        if isinstance(text, str):
            size += len(text.encode("utf-8", errors="replace"))
            lines += record_lines(text, problems)
        else:
            problems.found(
                "records without text",
                f"{place}: row {row} has no text in {field!r}, but {shown(repr(text))}",
                "Give another --text_field, or write strings in UTF-8",
            )
    return Unit(lines, size)
