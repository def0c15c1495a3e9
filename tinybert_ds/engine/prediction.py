"""Running a model over a whole split: every row exactly once, shared among the ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from tinybert_ds.data.batching import BatchSource
from tinybert_ds.data.row_outputs import in_order, unit_rows
from tinybert_ds.engine.ranks.consensus import read_together
from tinybert_ds.engine.ranks.process_group import World, gather_objects, mean_over_ranks
from tinybert_ds.engine.teacher import Teacher
from tinybert_ds.progress import progress_bar
from tinybert_ds.types import Batch, EncoderOutput, LossTerms, move

Model = Callable[[Batch, EncoderOutput | None], LossTerms]
"""A DistilledStudent in eval mode, or the engine around one."""

_STEPS_READ_AHEAD = 32


def predict_logits(model: Model, source: BatchSource, world: World) -> NDArray[np.float32]:
    """Return the logits of all N rows of a source, in the order of their sample ids, on every rank: (N, C).

    Of a source whose batches have units those of the units, in the order of the rows.

    Args:
        source: Its sample ids must be the row numbers 0..N-1.
    """
    ids, logits, by_token = [], [], False
    for batches in _steps(source, world):
        for batch in batches:
            moved = move(batch._replace(labels=None), world.device)
            with torch.no_grad():
                output = model(moved, None)["logits"].float().cpu().numpy()
            if batch.units is None:
                output = output[(batch.sample_ids >= 0).numpy()]
            by_token = batch.units is not None
            ids.append(unit_rows(batch))
            logits.append(output)
    parts = gather_objects((np.concatenate(ids), np.concatenate(logits)))
    all_ids = np.concatenate([part[0] for part in parts])
    all_logits = np.concatenate([part[1] for part in parts])
    found, counts = np.unique(all_ids, return_counts=True)
    assert np.array_equal(found, np.arange(source.samples_in_epoch(0))), "some rows were lost"
    assert by_token or (counts == 1).all(), "some rows were repeated"
    return in_order(all_ids, all_logits)


def held_out_loss(model: Model, teacher: Teacher, source: BatchSource, world: World) -> dict[str, float]:
    """Return the scalar loss terms of a source, means over its steps weighted by their rows: "eval_loss", ..."""
    sums: dict[str, torch.Tensor] = {}
    for position, batches in enumerate(_steps(source, world)):
        rows = source.samples_in_step(0, position)
        for batch in batches:
            moved = move(batch, world.device)
            with torch.no_grad():
                terms = model(moved, teacher(moved))
            for name, value in terms.items():
                if value.dim() == 0 and "/" not in name:
                    sums[name] = sums.get(name, torch.zeros(())) + value.double().cpu() * rows
    total = source.samples_in_epoch(0)
    return mean_over_ranks({f"eval_{name}": float(value) / total for name, value in sums.items()}, world)


def _steps(source: BatchSource, world: World) -> Iterator[list[Batch]]:
    """Yield this rank's part of every step; the ranks settle beforehand whether all of them could read some steps."""
    total = source.steps_in_epoch(0)

    def read(begin: int) -> list[list[Batch]]:
        positions = range(begin, min(begin + _STEPS_READ_AHEAD, total))
        place = {"rank": world.rank, "world_size": world.size, "accumulation": 1}
        return [source.micro_batches(0, position, **place) for position in positions]

    with progress_bar(total=total, desc="evaluating", unit="batch") as bar:
        for begin in range(0, total, _STEPS_READ_AHEAD):
            for batches in read_together(partial(read, begin), world):
                yield batches
                bar.update()
