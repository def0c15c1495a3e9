"""Records of Parquet files and of whatever `datasets` opens."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow
import pyarrow.parquet

from data_tools.record_input import records_unit
from data_tools.text_units import Problems, Unit, UnreadableInputError
from tinybert_ds.errors import ConfigError, DataError
from tinybert_ds.foreign_text import listed, shown

_ROWS_AT_ONCE = 256


class ParquetReader:
    """A `PartReader` of a Parquet file: a part is a run of whole row groups of about P bytes."""

    def __init__(self, path: Path, part_bytes: int, field: str) -> None:
        self._path, self._field = path, field
        try:
            self._file = pyarrow.parquet.ParquetFile(path, pre_buffer=False)
        except (OSError, UnicodeDecodeError, pyarrow.ArrowException) as error:
            raise UnreadableInputError(
                f"cannot read {str(path)!r} as Parquet: {shown(error, 300)}. Copy it again."
            ) from error
        names = self._file.schema_arrow.names
        if field not in names:
            raise ConfigError(f"{str(path)!r} has no column {field!r}; it has {listed(names)}. Give --text_field.")
        # All columns together: pyarrow ends the process where it reads a damaged description of a single one.
        sizes = [self._file.metadata.row_group(group).total_byte_size for group in range(self._file.num_row_groups)]
        self._groups = _runs(sizes, part_bytes)
        self.num_parts: int | None = max(1, len(self._groups))
        self.begin = self.end = 0
        self.ended = False

    def read(self, part: int, problems: Problems) -> Iterator[Unit]:
        """The rows of a part (see `PartReader`)."""
        self.ended = part + 1 >= len(self._groups)
        groups = self._groups[part] if self._groups else range(0)
        self.begin = self.end = sum(self._file.metadata.row_group(group).num_rows for group in range(groups.start))
        try:
            for batch in self._file.iter_batches(_ROWS_AT_ONCE, row_groups=list(groups), columns=[self._field]):
                unit = records_unit(_values(batch.column(0)), f"{str(self._path)!r}", self.end, self._field, problems)
                self.end += batch.num_rows
                yield unit
        except (OSError, pyarrow.ArrowException) as error:
            raise UnreadableInputError(
                f"cannot read {str(self._path)!r} behind row {self.end}: {shown(error, 300)}. Copy it again."
            ) from error

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class DatasetName(NamedTuple):
    """What `datasets.load_dataset` opens, and one of the files, or other pieces, that it consists of."""

    path: str
    config: str | None
    split: str
    revision: str | None
    piece: int

    def __str__(self) -> str:
        options = [f"{name}={value}" for name, value in self._asdict().items() if name != "path" and value is not None]
        return f"dataset {self.path} ({', '.join(options)})"


class DatasetReader:
    """A `PartReader` of one piece of a dataset, streamed.

    Part k holds the records that begin in bytes [k · P, (k + 1) · P) of all its texts.
    """

    def __init__(self, name: DatasetName, part_bytes: int, field: str) -> None:
        self.num_parts: int | None = None
        self.begin = self.end = 0  # bytes of text
        self.ended = False
        self._name, self._part_bytes, self._field = name, part_bytes, field
        self._dataset = open_dataset(name)
        count = self._dataset.num_shards
        if self._dataset.features is not None and field not in self._dataset.features:
            raise ConfigError(
                f"{name} has no column {field!r}; it has {listed(self._dataset.features)}. Give --text_field."
            )
        self._batches = iter(self._dataset.shard(count, name.piece).iter(_ROWS_AT_ONCE))
        self._waiting: list[Any] = []  # records that were read, but belong to a later part
        self._rows = 0
        self._offset = 0

    def read(self, part: int, problems: Problems) -> Iterator[Unit]:
        """The records of a part (see `PartReader`)."""
        begin, stop = part * self._part_bytes, (part + 1) * self._part_bytes
        for _ in self._records(begin):
            pass
        self.begin = self.end = self._offset
        records = self._records(stop)
        while batch := list(itertools.islice(records, _ROWS_AT_ONCE)):
            yield records_unit(batch, str(self._name), self._rows - len(batch), self._field, problems)
            self.end = self._offset
        self.ended = not self._fill()

    def close(self) -> None:
        """Forget the stream."""
        self._batches = iter(())

    def _records(self, stop: int) -> Iterator[Any]:
        """Records that begin before byte `stop` of the text."""
        while self._offset < stop and self._fill():
            text = self._waiting.pop()
            self._offset += len(text.encode("utf-8", errors="replace")) if isinstance(text, str) else 1
            self._rows += 1
            yield text

    def _fill(self) -> bool:
        while not self._waiting:
            try:
                batch: Mapping[str, list[Any]] = next(self._batches)
            except StopIteration:
                return False
            except (OSError, ValueError, pyarrow.ArrowException) as error:
                raise UnreadableInputError(
                    f"cannot read {self._name} behind row {self._rows}: {shown(error, 300)}"
                ) from error
            if self._field not in batch:
                raise ConfigError(
                    f"{self._name} has no column {self._field!r}; it has {listed(batch)}. Give --text_field."
                )
            self._waiting = batch[self._field][::-1]
        return True


def open_dataset(name: DatasetName) -> Any:
    """The dataset as `datasets` streams it.

    Raises:
        DataError: it cannot be opened.
    """
    import datasets  # noqa: PLC0415 - takes long, and few need it

    try:
        return datasets.load_dataset(name.path, name.config, split=name.split, revision=name.revision, streaming=True)
    except (OSError, ValueError, RuntimeError) as error:  # datasets' own errors are among these
        raise DataError(
            f"`datasets` cannot open {name}: {shown(error, 300)}. Check --dataset, its config and split, and the "
            "network."
        ) from error


def _values(column: Any) -> list[Any]:
    """What is in a column; of strings that are not UTF-8, which Parquet may hold, the bytes."""
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        return [_value(scalar) for scalar in column]


def _value(scalar: Any) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError as error:
        return error.object


def _runs(sizes: list[int], at_least: int) -> list[range]:
    """Runs of consecutive numbers whose sizes reach `at_least`, the last one perhaps not."""
    runs, begin, total = [], 0, 0
    for number, size in enumerate(sizes):
        total += size
        if total >= at_least:
            runs.append(range(begin, number + 1))
            begin, total = number + 1, 0
    if begin < len(sizes):
        runs.append(range(begin, len(sizes)))
    return runs
