"""Watching the collectives that DeepSpeed calls: the time this rank spends in them, and the bytes they carry."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

from torch import Tensor

from tinybert_ds.engine.deepspeed_private import replaced_backend

COLLECTIVES = frozenset(
    """
    all_reduce all_reduce_coalesced inference_all_reduce reduce reduce_scatter reduce_scatter_tensor broadcast
    all_gather all_gather_into_tensor all_gather_base all_gather_coalesced all_to_all all_to_all_single
    """.split()
)


class Observer(Protocol):
    """What is told of each collective."""

    def measure(self, name: str) -> AbstractContextManager[None]:
        """The time inside the context belongs to `name`."""
        ...

    def carry(self, operation: str, num_bytes: int) -> None:
        """A collective carries so many bytes: the full tensor before it is scattered or after it is gathered."""
        ...


@contextmanager
def watched_collectives(observer: Observer, world_size: int) -> Iterator[None]:
    """Tell `observer` of every collective that DeepSpeed starts or waits for inside the context.

    A single rank sends nothing, whatever it calls: there nothing is told.

    Its time is measured as "communication": on a CPU what the rank waits, on CUDA what the stream that asked for the
    collective waits, so that what overlaps with other work there is not counted.
    """
    with replaced_backend(lambda backend: _WatchedBackend(backend, observer)) if world_size > 1 else nullcontext():
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

    def __init__(self, backend: Any, observer: Observer) -> None:
        self._backend = backend
        self._observer = observer

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._backend, name)
        if name not in COLLECTIVES:
            return found

        def call(*args: Any, **kwargs: Any) -> Any:
            self._observer.carry(name, payload_bytes(*args, *kwargs.values()))
            with self._observer.measure("communication"):
                handle = found(*args, **kwargs)
            return _WatchedHandle(handle, self._observer) if hasattr(handle, "wait") else handle

        return call


class _WatchedHandle:
    """A collective under way whose waiting time is measured."""

    def __init__(self, handle: Any, observer: Observer) -> None:
        self._handle = handle
        self._observer = observer

    def wait(self, *args: Any, **kwargs: Any) -> Any:
        with self._observer.measure("communication"):
            return self._handle.wait(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._handle, name)
