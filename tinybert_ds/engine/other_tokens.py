"""Teachers that are asked about batches of other tokens than their own: a student's, of another vocabulary."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from tinybert_ds.data.batching import RowLayout, collate, padded_length
from tinybert_ds.data.task_batches import EncodedExamples, take_rows
from tinybert_ds.engine.teacher import Teacher
from tinybert_ds.types import Batch, EncoderOutput, move


def translated(teacher: Teacher, ids: NDArray[np.int64] | None, device: torch.device) -> Teacher:
    """Return the teacher, reading each token of a batch by its own id.

    Args:
        ids: (V,) its id of each of the student's tokens; None where both have one vocabulary.
    """
    if ids is None:
        return teacher
    table = torch.from_numpy(np.ascontiguousarray(ids)).to(device)

    def teach(batch: Batch) -> EncoderOutput:
        return teacher(batch._replace(input_ids=table[batch.input_ids]))

    return teach


def reading_own_rows(teacher: Teacher, rows: EncodedExamples, layout: RowLayout, device: torch.device) -> Teacher:
    """Return a teacher that is asked about batches of other tokens and answers about the same rows of its own.

    Args:
        rows: All rows as the teacher's tokens; row i belongs to sample id i.
        layout: How they become batches: padding stands behind them, whatever side the tokeniser names, because
            positions are then those of a row by itself.
    """

    def teach(batch: Batch) -> EncoderOutput:
        numbers = batch.sample_ids.clamp_min(0).cpu().numpy()  # a filler row counts for nothing
        read = take_rows(rows, numbers)._replace(labels=None)
        own = collate(read, padded_length(read.lengths, layout), layout, batch.counts)
        return teacher(move(own, device))

    return teach
