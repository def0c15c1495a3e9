"""Watching the collectives that DeepSpeed calls: the time this rank spends in them, and the bytes they carry."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from torch import Tensor

from tinybert_ds.engine.deepspeed_private import replaced_backend
from tinybert_ds.engine.watch.monitor import Stopwatch

COLLECTIVES = frozenset(
    """
    all_reduce all_reduce_coalesced inference_all_reduce reduce reduce_scatter reduce_scatter_tensor broadcast
    all_gather all_gather_into_tensor all_gather_base all_gather_coalesced all_to_all all_to_all_single
    """.split()
)


@contextmanager
def watched_collectives(stopwatch: Stopwatch, world_size: int) -> Iterator[None]:
    """Tell `stopwatch` of every collective that DeepSpeed starts or waits for inside the context.

    A single rank sends nothing, whatever it calls: there nothing is told.

    Its time is measured as "communication": on a CPU what the rank waits, on CUDA what the stream that asked for the
    collective waits, so that what overlaps with other work there is not counted.
    """
    with replaced_backend(lambda backend: _WatchedBackend(backend, stopwatch)) if world_size > 1 else nullcontext():
        yield


def payload_bytes(*values: object) -> int:
    """Bytes of the largest tensor, or list of tensors, among the arguments of a collective."""
    return max((_size(value) for value in values), default=0)


def _size(value: object) -> int:
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, list | tuple):
        return sum(_size(part) for part in value)
    return 0


class _WatchedBackend:
    """DeepSpeed's communication backend with its collectives watched."""

    def __init__(self, backend: Any, stopwatch: Stopwatch) -> None:
        self._backend = backend
        self._stopwatch = stopwatch

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._backend, name)
        if name not in COLLECTIVES:
            return found

        def call(*args: Any, **kwargs: Any) -> Any:
            self._stopwatch.carry(name, payload_bytes(*args, *kwargs.values()))
            with self._stopwatch.measure("communication"):
                handle = found(*args, **kwargs)
            return _WatchedHandle(handle, self._stopwatch) if hasattr(handle, "wait") else handle

        return call


class _WatchedHandle:
    """A collective under way whose waiting time is measured."""

    def __init__(self, handle: Any, stopwatch: Stopwatch) -> None:
        self._handle = handle
        self._stopwatch = stopwatch

    def wait(self, *args: Any, **kwargs: Any) -> Any:
        with self._stopwatch.measure("communication"):
            return self._handle.wait(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._handle, name)
