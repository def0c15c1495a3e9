"""What the teacher says of each batch, in time or, on a stream of its own, one batch ahead."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import NamedTuple

import torch
from torch import Tensor

from tinybert_ds.engine.teacher import Teacher
from tinybert_ds.types import Batch, EncoderOutput, move, tensors_of

logger = logging.getLogger(__name__)


class TaughtBatch(NamedTuple):
    """A batch on the device and the teacher's output for it; None without a teacher."""

    batch: Batch
    teacher_output: EncoderOutput | None


class SideStream:
    """A CUDA stream beside the one that the student runs in."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)
        self._stream.wait_stream(torch.cuda.current_stream(device))  # for the teacher's weights

    def work(self) -> AbstractContextManager[object]:
        """What is started inside the context is done in this stream."""
        return torch.cuda.stream(self._stream)

    def hand_over(self, tensors: Iterable[Tensor]) -> None:
        """Let the current stream wait for all that was started here so far, and own the tensors from now on."""
        current = torch.cuda.current_stream(self._stream.device)
        current.wait_stream(self._stream)
        for tensor in tensors:
            tensor.record_stream(current)  # or its memory would be free for the next batch while this one reads it


class TeacherPass:
    """Takes batches to the device and asks the teacher about them.

    Args:
        side: Where the next batch is prepared while the student works on this one; None: each batch in its turn.
    """

    def __init__(self, teacher: Teacher | None, device: torch.device, side: SideStream | None = None) -> None:
        self._teacher = teacher
        self._device = device
        self._side = side
        self._ahead: tuple[Batch, TaughtBatch] | None = None

    def __call__(self, batch: Batch, following: Batch | None) -> TaughtBatch:
        """Return the lesson of a batch; `following` is what the next call will be asked for, None at the end."""
        if self._side is None:
            return self._prepare(batch)
        announced, lesson = self._ahead or (batch, self._start(batch, self._side))
        assert announced is batch, "this batch is not the one that was announced as following"
        self._side.hand_over(tensors_of(lesson))
        # Only now: what is handed over must not wait for the next batch.
        self._ahead = None if following is None else (following, self._start(following, self._side))
        return lesson

    def _start(self, batch: Batch, side: SideStream) -> TaughtBatch:
        with side.work():
            return self._prepare(batch)

    def _prepare(self, batch: Batch) -> TaughtBatch:
        moved = move(batch, self._device)
        return TaughtBatch(moved, self._teacher(moved) if self._teacher else None)


def side_stream(device: torch.device) -> SideStream | None:
    """Return a stream for the teacher where the device has them."""
    if device.type == "cuda":
        return SideStream(device)
    logger.info("--overlap_teacher has no effect: a %s has no streams", device.type.upper())
    return None


def pin(batch: Batch, device: torch.device) -> Batch:
    """Return the batch in memory from which a CUDA device copies by itself; unchanged for other devices."""
    if device.type != "cuda":
        return batch
    with torch.cuda.device(device):  # a thread starts out on the first device, whatever rank it belongs to
        return Batch._make(value.pin_memory() if isinstance(value, Tensor) else value for value in batch)
