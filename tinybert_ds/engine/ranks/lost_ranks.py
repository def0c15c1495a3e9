"""Lost ranks and failing disks: nobody's mistake, and said in a sentence instead of a traceback."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch.distributed as dist

from tinybert_ds.errors import FaultError, FileError
from tinybert_ds.files import file_error

_LOST = ("gloo", "Connection closed by peer", "Connection reset by peer", "Broken pipe", "NCCL")
"""What the messages of collectives say when the other side has gone away; gloo raises bare RuntimeErrors."""


@contextmanager
def faults_reported(last_good: Callable[[], str]) -> Iterator[None]:
    """Turn a lost rank inside the context into a FaultError, and a file that the system refuses into a FileError."""
    try:
        with lost_ranks_reported(last_good):
            yield
    except OSError as error:
        told = file_error(error)
        if told is None:
            raise FaultError(f"{error}. {last_good()}: start the same command again") from error
        raise FileError(f"{told}. {last_good()}") from error


@contextmanager
def lost_ranks_reported(last_good: Callable[[], str]) -> Iterator[None]:
    """Turn a lost rank inside the context into a FaultError; `last_good` as for `faults_reported`."""
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


def _is_lost_contact(error: RuntimeError) -> bool:
    kinds = (dist.DistBackendError, dist.DistNetworkError, dist.DistStoreError)
    return isinstance(error, kinds) or any(word in str(error) for word in _LOST)
