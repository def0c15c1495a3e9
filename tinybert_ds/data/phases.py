"""Phases of a run: one sequence length after the other, each a share of the optimizer steps."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import xxhash

from tinybert_ds.data.batching import BatchSource
from tinybert_ds.types import Batch


class _Part(NamedTuple):
    """What is read of an epoch of a source."""

    source: BatchSource
    steps: int


def phase_steps(shares: Sequence[float], total_steps: int) -> list[int]:
    """Optimizer steps of each phase; they sum to the total."""
    # Edges are rounded, not lengths: so the phases sum to the total, and none is off by more than a step.
    edges = np.rint(np.cumsum(shares) / np.sum(shares) * total_steps).astype(np.int64)
    return np.diff(edges, prepend=0).tolist()


class PhasedSource:
    """Sources one after the other; a `BatchSource`.

    A phase begins with an epoch of its own, in whose number the epochs of the phases before are counted.
    """

    def __init__(self, sources: Sequence[BatchSource], steps: Sequence[int]) -> None:
        self._sources = sources
        self._steps = list(steps)
        self._parts: list[_Part] = []
        for source, of_phase in zip(sources, steps, strict=True):
            done = 0
            while done < of_phase:
                part = _Part(source, min(of_phase - done, source.steps_in_epoch(len(self._parts))))
                self._parts.append(part)
                done += part.steps

    @property
    def fingerprint(self) -> str:
        """Names the data of all phases and their steps."""
        content = [self._steps, [source.fingerprint for source in self._sources]]
        return xxhash.xxh3_128_hexdigest(json.dumps(content).encode())

    def samples_in_epoch(self, epoch: int) -> int:
        """Samples of the steps that are read of an epoch."""
        part = self._part(epoch)
        if part.steps == part.source.steps_in_epoch(epoch):
            return part.source.samples_in_epoch(epoch)
        return part.steps * part.source.samples_in_step(epoch, 0)  # only an epoch's last step may be short

    def steps_in_epoch(self, epoch: int) -> int:
        """Optimizer steps that are read of an epoch."""
        return self._part(epoch).steps

    def samples_in_step(self, epoch: int, position: int) -> int:
        """Rows of the global batch at optimizer step `position` of `epoch`."""
        return self._part(epoch).source.samples_in_step(epoch, position)

    def micro_batches(self, epoch: int, position: int, *, rank: int, world_size: int, accumulation: int) -> list[Batch]:
        """The micro-batches that `rank` takes in optimizer step `position` of `epoch` (see `BatchSource`)."""
        source = self._part(epoch).source
        return source.micro_batches(epoch, position, rank=rank, world_size=world_size, accumulation=accumulation)

    def _part(self, epoch: int) -> _Part:
        """What is read of an epoch; behind the last phase, the last source goes on."""
        if epoch < len(self._parts):
            return self._parts[epoch]
        return _Part(self._sources[-1], self._sources[-1].steps_in_epoch(epoch))
