"""Faults that are nobody's mistake, said in a sentence instead of a traceback."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch.distributed as dist
from safetensors import SafetensorError

from tinybert_ds.engine.distributed import World, run_on_main
from tinybert_ds.errors import CheckpointError, FaultError, FileError
from tinybert_ds.files import file_error, free_megabytes

Value = TypeVar("Value")

_LOST = ("gloo", "Connection closed by peer", "Connection reset by peer", "Broken pipe", "NCCL")
"""What the messages of collectives say when the other side has gone away; gloo raises bare RuntimeErrors."""


@contextmanager
def told_plainly(last_good: Callable[[], str]) -> Iterator[None]:
    """Turn a lost rank inside the context into a FaultError, and a file that the system refuses, such as on a
    full disk, into a FileError.

    Args:
        last_good: Says where the newest checkpoint is.
    """
    try:
        with lost_contact_told(last_good):
            yield
    except OSError as error:
        told = file_error(error)
        if told is None:
            raise FaultError(f"{error}. {last_good()}: start the same command again") from error
        raise FileError(f"{told}. {last_good()}") from error


@contextmanager
def lost_contact_told(last_good: Callable[[], str]) -> Iterator[None]:
    """Turn a lost rank inside the context into a FaultError; `last_good` as for `told_plainly`."""
    try:
        yield
    except RuntimeError as error:
        if not _is_lost_contact(error):
            raise
        reason = str(error).strip().splitlines()[0]
        raise FaultError(
            f"contact with another rank is lost: its process has ended, or its host is gone ({reason}). {last_good()}: "
            "start the same command again"
        ) from error


def write_on_main(world: World, path: Path, action: Callable[[], Value]) -> Value:
    """Run `action`, which writes a result to `path`, on rank 0 alone; every rank returns its value.

    Raises:
        CheckpointError: On every rank, when the disk is full or fails.
        UserError: On every rank, what `action` raises.
    """

    def write() -> Value:
        try:
            return action()
        except (OSError, SafetensorError) as error:  # safetensors has its own name for what the system says
            raise CheckpointError(
                f"{path} could not be written ({error}; {free_megabytes(path)} MB were free there). What was saved "
                "before stands: make room and start the same command again"
            ) from error

    return run_on_main(world, write)


def _is_lost_contact(error: RuntimeError) -> bool:
    kinds = (dist.DistBackendError, dist.DistNetworkError, dist.DistStoreError)
    return isinstance(error, kinds) or any(word in str(error) for word in _LOST)
