"""What readers of inputs hand on: lines of text, and a list of what could not be used."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple, Protocol

from tinybert_ds.errors import DataError

UNIT_BYTES = 1 << 20
LISTED_PROBLEMS = 1000
"""So many are listed of a part; all are counted."""


class Unit(NamedTuple):
    """Consecutive lines of one part of an input; part after part holds the whole input."""

    lines: list[str]  # stripped; an empty one ends a document, as does the end of the part
    text_bytes: int


class UnreadableInputError(DataError):
    """An input that cannot be read to its end."""


class PartReader(Protocol):
    """Reads an input forward, part by part; each part begins and ends at the end of a document."""

    num_parts: int | None
    """None: it is not known before the last one has been read."""

    begin: int
    end: int
    """Where the part read last begins and ends in the text."""

    ended: bool
    """Whether that part was the last one with text in it."""

    def read(self, part: int, problems: Problems) -> Iterator[Unit]:
        """The text of a part, which comes after those read before.

        Raises:
            UnreadableInputError: the input is damaged before the end of the part.
            DataError: text that cannot be used, unless `problems` skips it.
        """

    def close(self) -> None:
        """Close the input."""


class Problems:
    """What of a part could not be used: an error, or counted and listed where it is to be skipped."""

    def __init__(self, skip: bool) -> None:
        self.skip = skip
        self.counts: Counter[str] = Counter()
        self.listed: list[str] = []

    def found(self, kind: str, message: str, advice: str) -> None:
        """Take note of a problem of a kind (a plural, such as "records without text").

        Raises:
            DataError: problems are not skipped.
        """
        if not self.skip:
            raise DataError(f"{message}. {advice}, or leave such places out with --skip_bad_input.")
        self.counts[kind] += 1
        if len(self.listed) < LISTED_PROBLEMS:
            self.listed.append(message)
