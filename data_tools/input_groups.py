"""Small inputs that lie behind each other as one, so that a shard is not made of each of many small files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

from data_tools.input_files import TextInput, open_input
from data_tools.text_units import PartReader, Problems, Unit, UnreadableInputError

Source = tuple[TextInput, ...]
"""One input, or several that are read as one part."""


class Range(NamedTuple):
    """What a part holds of an input."""

    place: int  # of the input in its source
    begin: int
    end: int


class SourceReader:
    """Reads a source part by part; the `PartReader` of its only input, or one part of all of them.

    Raises:
        DataError: its only input cannot be opened.
    """

    def __init__(self, source: Source, part_bytes: int, text_field: str) -> None:
        self._source = source
        self._open_one = partial(open_input, part_bytes=part_bytes, text_field=text_field)
        self._only: PartReader | None = None
        self._unreadable: UnreadableInputError | None = None
        if len(source) == 1:
            try:
                self._only = self._open_one(source[0])
            except UnreadableInputError as error:
                self._unreadable = error  # raised where it is read, as of one that cannot be read to its end
        self.num_parts = 1 if self._only is None else self._only.num_parts
        self.ended = True
        self.ranges: list[Range] = []
        """What the part read last holds."""

    def read(self, part: int, problems: Problems) -> Iterator[Unit]:
        """The text of a part (see `PartReader`).

        An input among several that cannot be read is left out as a whole if problems are to be skipped.
        """
        self.ranges = []
        if self._unreadable is not None:
            raise self._unreadable
        if self._only is not None:
            yield from self._only.read(part, problems)
            self.ended = self._only.ended
            self.ranges = [Range(0, self._only.begin, self._only.end)]
            return
        for place in range(len(self._source)):
            if not problems.skip or self._is_readable(place, problems):
                yield from self._read_all(place, problems)
                yield Unit([""], 0)

    def close(self) -> None:
        """Close the inputs."""
        if self._only is not None:
            self._only.close()

    def _read_all(self, place: int, problems: Problems) -> Iterator[Unit]:
        reader = self._open_one(self._source[place])
        begin, end, part = 0, 0, 0
        try:
            while True:
                yield from reader.read(part, problems)
                begin, end = (reader.begin if part == 0 else begin), reader.end
                if reader.ended:
                    break
                part += 1
        finally:
            reader.close()
        self.ranges.append(Range(place, begin, end))

    def _is_readable(self, place: int, problems: Problems) -> bool:
        ranges = list(self.ranges)
        try:
            for _ in self._read_all(place, Problems(skip=True)):
                pass
        except UnreadableInputError as error:
            problems.found("unreadable inputs", str(error), "")
            return False
        finally:
            self.ranges = ranges
        return True


def group_inputs(inputs: Sequence[TextInput], part_bytes: int) -> tuple[Source, ...]:
    """Inputs in their order, those together that have about `part_bytes` of text, or less."""
    sources: list[Source] = []
    open_bytes: int | None = None  # text in the last source; None: nothing may be added to it
    for item in inputs:
        if item.path is None:
            sources.append((item,))
            open_bytes = None
        elif open_bytes is not None and open_bytes + item.text_bytes <= part_bytes:
            sources[-1] = (*sources[-1], item)
            open_bytes += item.text_bytes
        else:
            sources.append((item,))
            open_bytes = item.text_bytes
    return tuple(sources)
