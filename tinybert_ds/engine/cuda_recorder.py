"""The recording of CUDA graphs, one after the other, and what is left when CUDA refuses one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

LEAST_FREE_SHARE = 0.2
"""Of the device's memory, that is to be free beside what a step needs: with less, no more shapes are recorded, as each
keeps its outputs."""

Work = Callable[[], Sequence[Tensor]]


class Recorded(NamedTuple):
    """What has been recorded: the places of its outputs, and the call that fills them."""

    outputs: tuple[Tensor, ...]
    replay: Callable[[], object]


class CudaRecorder:
    """Records CUDA graphs whose inner memory is shared: they are replayed one after the other."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        self._failed: list[torch.cuda.CUDAGraph] = []

    def record(self, work: Work) -> Recorded:
        """Record what `work` does, its outputs not filled yet."""
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self._device)
        try:
            # Other threads may allocate pinned memory meanwhile, which only "global" forbids them.
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                outputs = tuple(work())
        except RuntimeError:
            self._recover(graph, stream)
            raise
        return Recorded(outputs, graph.replay)

    def _recover(self, graph: torch.cuda.CUDAGraph, stream: torch.cuda.Stream) -> None:
        """Undo what torch leaves behind when CUDA calls a recording invalid.

        Its stream is still the current one then, its memory pool still takes what is recorded, and the random
        generator waits for the end of the recording: dropout would fail in the next step.

        Raises:
            RuntimeError: CUDA does not record at all.
        """
        torch.cuda.set_stream(stream)
        self._failed.append(graph)  # the allocator may still ask it
        try:
            # Its end is one for the generator, too.
            with torch.cuda.graph(torch.cuda.CUDAGraph(), capture_error_mode="thread_local"):
                torch.zeros((), device=self._device)
        finally:
            torch.cuda.set_stream(stream)
        with contextlib.suppress(RuntimeError, AttributeError):  # it has ended, or torch calls it otherwise
            place = self._device.index or 0, self._pool
            torch._C._cuda_endAllocateToPool(*place)
            torch._C._cuda_releasePool(*place)
        self._pool = torch.cuda.graph_pool_handle()

    def has_room(self) -> bool:
        """Whether there is memory for one more shape."""
        free, total = torch.cuda.mem_get_info(self._device)
        # What recorded steps need is theirs for good, and steps that are looked at need as much once more.
        return free > torch.cuda.max_memory_allocated(self._device) + LEAST_FREE_SHARE * total
