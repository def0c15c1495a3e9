"""A teacher that reads the rows of a task by its own tokeniser, while the student's batches say only which rows."""

from __future__ import annotations

import torch

from tinybert_ds.data.batching import RowLayout, collate, padded_length
from tinybert_ds.data.task_batches import EncodedExamples, take_rows
from tinybert_ds.engine.teacher import Teacher
from tinybert_ds.types import Batch, EncoderOutput, move


def reading_own_rows(teacher: Teacher, rows: EncodedExamples, layout: RowLayout, device: torch.device) -> Teacher:
    """Return a teacher that is asked about batches of other tokens and answers about the same rows of its own.

    Args:
        rows: All rows as the teacher's tokens; row i belongs to sample id i.
        layout: How they become batches: padding stands behind them, whatever side the tokeniser names, because
            positions are then those of a row by itself.
        device: Where the teacher is.
    """

    def teach(batch: Batch) -> EncoderOutput:
        numbers = batch.sample_ids.clamp_min(0).cpu().numpy()  # a filler row counts for nothing
        read = take_rows(rows, numbers)._replace(labels=None)
        own = collate(read, padded_length(read.lengths, layout), layout, batch.counts)
        return teacher(move(own, device))

    return teach
