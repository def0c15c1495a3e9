"""The text that a student's closed-form start is fitted on: the first rows of a source, in small blocks."""

from __future__ import annotations

import torch

from tinybert_ds.data.batching import BatchSource
from tinybert_ds.errors import DataError
from tinybert_ds.types import Batch

BLOCK_ROWS = 32


def calibration_blocks(source: BatchSource, tokens: int, *, token_types: bool = True) -> list[Batch]:
    """Return the first micro-batches of a source's first epoch, all of it where it has less text.

    They are the same on every rank and for any number of ranks.

    Args:
        tokens: How many real ones there shall be at least.
        token_types: Whether the tokeniser returns token types; if not, all are of the first.

    Raises:
        DataError: The source has no rows.
    """
    blocks: list[Batch] = []
    found = 0
    for position in range(source.steps_in_epoch(0)):
        parts = -(-source.samples_in_step(0, position) // BLOCK_ROWS)
        for batch in source.micro_batches(0, position, rank=0, world_size=1, accumulation=parts):
            types = batch.token_type_ids if token_types else torch.zeros_like(batch.token_type_ids)
            blocks.append(batch._replace(labels=None, token_type_ids=types))
            found += int(batch.attention_mask.sum())
            if found >= tokens:
                return blocks
    if not blocks:
        raise DataError("there is no text to start the student on; give a corpus or a task with rows")
    return blocks
