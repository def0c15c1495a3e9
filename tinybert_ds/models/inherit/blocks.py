"""Calibration text in blocks: sums over all of them that no number of ranks changes, and states kept on disk.

A block is a batch of rows. Blocks belong to lanes, and sums are added up inside each lane, then lane by lane, always in
the same order; a rank works on whole lanes. (A block's own products depend on the number of threads, as all do.)
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from tinybert_ds.errors import FileError, ModelError
from tinybert_ds.files import free_megabytes
from tinybert_ds.models.inherit.sums import Sums
from tinybert_ds.types import Batch

LANES = 16
"""Most ranks that share the work."""


class Exchange(Protocol):
    """How ranks hand tensors to each other."""

    rank: int
    size: int

    def broadcast(self, tensors: Sums | None, source: int) -> Sums:
        """Return the tensors of rank `source`, on every rank; the others give None."""


class Alone:
    """A single process."""

    rank, size = 0, 1

    def broadcast(self, tensors: Sums | None, source: int) -> Sums:
        """Return its own tensors."""
        assert tensors is not None
        return tensors


class Blocks:
    """The calibration text of a run, with what is known about each block so far.

    Args:
        batches: All blocks, the same on every rank.
        directory: Where states of this rank's blocks are kept meanwhile; local and fast is best.
        device: Where the sums are computed.
        advance: Called with 1 for each block that is worked through.
    """

    def __init__(
        self,
        batches: Sequence[Batch],
        directory: Path,
        *,
        device: torch.device | None = None,
        exchange: Exchange | None = None,
        advance: Callable[[int], Any] = lambda count: None,
    ) -> None:
        assert batches
        self.batches = batches
        self.tokens = sum(int(batch.attention_mask.sum()) for batch in batches)
        self.device = device or torch.device("cpu")
        self._directory = directory
        self._exchange: Exchange = exchange or Alone()
        self._advance = advance

    def batch(self, number: int) -> Batch:
        """Return a block, on the device."""
        batch, device = self.batches[number], self.device
        return batch._replace(
            input_ids=batch.input_ids.to(device),
            attention_mask=batch.attention_mask.to(device),
            token_type_ids=batch.token_type_ids.to(device),
        )

    def mask(self, number: int) -> Tensor:
        """Return which positions of a block's rows are real, (B, S) bool on the device."""
        return self.batches[number].attention_mask.to(self.device).bool()

    def keep(self, number: int, name: str, states: Tensor) -> None:
        """Keep the states (T, ...) of a block of this rank under a name, in the place of earlier ones.

        Raises:
            FileError: There is no room for them.
        """
        content = io.BytesIO()  # torch's own writer of files says nothing of a full disk
        torch.save(states.detach().to("cpu", copy=True).contiguous(), content)
        try:
            self._file(number, name).write_bytes(content.getbuffer())
        except OSError as error:
            raise FileError(
                f"the states of the calibration text cannot be kept in {self._directory}: {error.strerror} "
                f"({free_megabytes(self._directory)} MB are free there; one state of the whole text takes "
                f"{content.tell() * len(self.batches) >> 20:,} MB, and there are several): make room there, name a "
                "directory on another disk in the environment variable TMPDIR, or give less text"
            ) from error

    def kept(self, number: int, name: str) -> Tensor:
        """Return what `keep` got, on the device."""
        return torch.load(self._file(number, name), weights_only=True).to(self.device)

    def sum(self, measure: Callable[[int], Sums], *, up_to_tokens: int | None = None) -> Sums:
        """Add up what `measure` returns for each block, over all ranks; call it on all of them.

        Args:
            measure: Takes the number of a block. It is called once for each block, on one rank.
            up_to_tokens: Only the first blocks, with about so many tokens; None: all.

        Raises:
            ModelError: A sum is not finite.
        """
        count = len(self.batches)
        if up_to_tokens is not None:
            count = min(count, max(1, count * up_to_tokens // self.tokens))
        size, lanes = self._exchange.size, min(LANES, count)
        total: Sums = {}
        for first in range(0, lanes, size):
            own = first + self._exchange.rank
            mine = self._lane_sum(range(own, count, lanes), measure) if own < lanes else None
            for lane in range(first, min(first + size, lanes)):
                total = _add(total, self._exchange.broadcast(mine if lane == own else None, lane - first))
        if not all(bool(value.isfinite().all()) for value in total.values()):
            raise ModelError(
                "what the models make of the calibration text is not finite, so that no student can be fitted to it; "
                "give --teacher_dtype fp32 (half precision may not hold the teacher's states), or another teacher"
            )
        return total

    def agree(self, tensors: Sequence[Tensor]) -> None:
        """Give every rank the first one's values, in place: what is solved on different hosts may differ in a bit."""
        if self._exchange.size == 1:
            return
        own = {str(place): tensor.detach() for place, tensor in enumerate(tensors)}
        first = self._exchange.broadcast(own if self._exchange.rank == 0 else None, 0)
        for place, tensor in enumerate(tensors):
            tensor.detach().copy_(first[str(place)])

    def _lane_sum(self, numbers: Iterable[int], measure: Callable[[int], Sums]) -> Sums:
        total: Sums = {}
        for number in numbers:
            total = _add(total, measure(number))
            self._advance(1)
        return total

    def _file(self, number: int, name: str) -> Path:
        return self._directory / f"{name}-{number}.pt"


def _add(total: Sums, part: Sums) -> Sums:
    return {name: total[name] + value for name, value in part.items()} if total else part
