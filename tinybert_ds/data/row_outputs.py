"""What a model says of all rows of a split: computed part by part, put together in the order of the rows.

N rows, C outputs. A unit is what has an output of its own: a row, or each of some tokens of it (`Batch.units`).
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from tinybert_ds.data.batching import BatchSource
from tinybert_ds.files import write_atomically
from tinybert_ds.types import Batch

Outputs = NDArray[np.float32]
"""(units of all rows, C); without units of their own row i is the output of row i."""


def count_parts(source: BatchSource, steps: int) -> int:
    """Return into how many parts of so many steps a source falls."""
    return -(-source.steps_in_epoch(0) // steps)


def part_batches(source: BatchSource, number: int, steps: int) -> Iterator[Batch]:
    """Yield the batches of a part, each whole."""
    begin = number * steps
    for step in range(begin, min(begin + steps, source.steps_in_epoch(0))):
        yield from source.micro_batches(0, step, rank=0, world_size=1, accumulation=1)


def write_part(path: Path, ask: Callable[[Batch], Tensor], batches: Iterable[Batch]) -> None:
    """Write the number of each unit's row (n,) and the outputs (n, C) of some batches, whole or not at all."""
    ids, found = [], []
    for batch in batches:
        ids.append(unit_rows(batch))
        found.append(ask(batch).float().cpu().numpy())
    content = io.BytesIO()
    for array in (np.concatenate(ids), np.concatenate(found)):
        np.save(content, array, allow_pickle=False)
    write_atomically(path, content.getvalue())


def read_parts(paths: Iterable[Path]) -> Outputs:
    """Return the outputs of all parts in the order of the rows, and of the units in each."""
    ids, found = [], []
    for path in paths:
        with path.open("rb") as handle:
            ids.append(np.load(handle, allow_pickle=False))
            found.append(np.load(handle, allow_pickle=False))
    return in_order(np.concatenate(ids), np.concatenate(found))


def in_order(ids: NDArray[np.int64], outputs: NDArray) -> NDArray:
    """Return outputs (n, C) in the order of the rows that they belong to (n,), those of one row as they come."""
    return outputs[np.argsort(ids, kind="stable")]


def unit_rows(batch: Batch) -> NDArray[np.int64]:
    """Return the row number of each unit of a batch, in the order of its outputs; fillers have none."""
    ids = batch.sample_ids.numpy()
    if batch.units is None:
        return ids[ids >= 0]
    return np.repeat(ids, batch.units.sum(dim=1).numpy())
