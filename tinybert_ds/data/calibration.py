"""The text that a student's closed-form start is fitted on: the first rows of a source, in small blocks."""

from __future__ import annotations

from tinybert_ds.data.batching import BatchSource
from tinybert_ds.errors import DataError
from tinybert_ds.types import Batch

BLOCK_ROWS = 32


def calibration_blocks(source: BatchSource, tokens: int) -> list[Batch]:
    """Return the first micro-batches of a source's first epoch, all of it where it has less text.

    They are the same on every rank and for any number of ranks.

    Args:
        source: Of training batches.
        tokens: How many real ones there shall be at least.

    Raises:
        DataError: The source has no rows.
    """
    blocks: list[Batch] = []
    found = 0
    for position in range(source.steps_in_epoch(0)):
        parts = -(-source.samples_in_step(0, position) // BLOCK_ROWS)
        for batch in source.micro_batches(0, position, rank=0, world_size=1, accumulation=parts):
            blocks.append(batch._replace(labels=None))
            found += int(batch.attention_mask.sum())
            if found >= tokens:
                return blocks
    if not blocks:
        raise DataError("there is no text to start the student on; give a corpus or a task with rows")
    return blocks
