"""A teacher that is asked about batches in the ids of a student's vocabulary, which is a part of its own."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from tinybert_ds.engine.teacher import Teacher
from tinybert_ds.types import Batch, EncoderOutput


def translated(teacher: Teacher, ids: NDArray[np.int64] | None, device: torch.device) -> Teacher:
    """Return the teacher, reading each token of a batch by its own id.

    Args:
        ids: (V,) its id of each of the student's tokens; None where both have one vocabulary.
        device: Where batches are.
    """
    if ids is None:
        return teacher
    table = torch.from_numpy(np.ascontiguousarray(ids)).to(device)

    def teach(batch: Batch) -> EncoderOutput:
        return teacher(batch._replace(input_ids=table[batch.input_ids]))

    return teach
