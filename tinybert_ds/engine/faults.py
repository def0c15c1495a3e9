"""Faults that are nobody's mistake, said in a sentence instead of a traceback."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch.distributed as dist
from safetensors import SafetensorError

from tinybert_ds.engine.distributed import World, run_on_main
from tinybert_ds.errors import CheckpointError, FaultError

Value = TypeVar("Value")

_LOST = ("gloo", "Connection closed by peer", "Connection reset by peer", "Broken pipe", "NCCL")
"""What the messages of collectives say when the other side has gone away; gloo raises bare RuntimeErrors."""


@contextmanager
def told_plainly(last_good: Callable[[], str]) -> Iterator[None]:
    """Turn a lost rank and a failing disk inside the context into FaultErrors.

    Args:
        last_good: Says where the newest checkpoint is.
    """
    try:
        with lost_contact_told(last_good):
            yield
    except OSError as error:
        raise FaultError(f"{error}. {last_good()}: mend it and start the same command again") from error


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
            place = next(parent for parent in (path, *path.absolute().parents) if parent.is_dir())
            free = shutil.disk_usage(place).free
            raise CheckpointError(
                f"{path} could not be written ({error}; {free / 2**20:.0f} MB were free there). What was saved before "
                "stands: make room and start the same command again"
            ) from error

    return run_on_main(world, write)


def _is_lost_contact(error: RuntimeError) -> bool:
    kinds = (dist.DistBackendError, dist.DistNetworkError, dist.DistStoreError)
    return isinstance(error, kinds) or any(word in str(error) for word in _LOST)
