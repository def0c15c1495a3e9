"""What is known of each row beside its tokens and its label, on disk: written block after block, and mapped."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ColumnShape = dict[str, Any]
"""{"dtype": of a value, "shape": of all rows}, as a record keeps it."""


class ColumnWriter:
    """Appends the columns of blocks to a file each, so that they need no memory for all rows.

    Args:
        directory: Where the files are made, one for each name.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._shapes: dict[str, ColumnShape] = {}

    def add(self, columns: Mapping[str, NDArray]) -> None:
        """Append some rows; every block has the same columns, but one without rows may have them in another width."""
        for name, values in columns.items():
            if not len(values) and name in self._shapes:
                continue
            shape = self._shapes.get(name)
            if shape is None or not shape["shape"][0]:
                self._shapes[name] = {"dtype": str(values.dtype), "shape": list(values.shape)}
                mode = "wb"
            else:
                assert [str(values.dtype), *values.shape[1:]] == [shape["dtype"], *shape["shape"][1:]], name
                shape["shape"][0] += len(values)
                mode = "ab"
            with _file(self._directory, name).open(mode) as handle:
                handle.write(np.ascontiguousarray(values).data)

    def finish(self) -> dict[str, ColumnShape]:
        """Let the files be on the disk; return the shapes that `map_column` needs."""
        for name in self._shapes:
            with _file(self._directory, name).open("rb") as handle:
                os.fsync(handle.fileno())
        return self._shapes


def map_column(directory: Path, name: str, shape: ColumnShape) -> NDArray:
    """Map a column.

    Raises:
        OSError: It cannot be read.
        ValueError: It is shorter than its shape says.
    """
    dtype, dimensions = np.dtype(shape["dtype"]), tuple(shape["shape"])
    if not np.prod(dimensions):
        return np.zeros(dimensions, dtype)
    return np.memmap(_file(directory, name), dtype=dtype, mode="r", shape=dimensions)


def _file(directory: Path, name: str) -> Path:
    return directory / f"{name}.bin"
