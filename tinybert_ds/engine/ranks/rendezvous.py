"""The ranks come together before their process group forms: one that never comes is named instead of waited for."""

from __future__ import annotations

import os
import socket
from datetime import timedelta

import torch.distributed as dist

from tinybert_ds.errors import FaultError

LOOPBACK = ("127.0.0.1", "localhost")
_PATIENCE = timedelta(minutes=10)
"""Between the first rank and the last: programs come from cold disks, hosts may be started by hand."""


def rendezvous(patience: timedelta = _PATIENCE) -> dist.Store:
    """Wait until all ranks of the launcher's environment are there.

    Ranks that are all on one host, as MASTER_ADDR says, listen on loopback only.

    Returns:
        What the ranks met at. As long as it lives, a process group of this address and port uses the same server.

    Raises:
        FaultError: On every rank, when some did not come; names them. On rank 0 also when the port is taken.
    """
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    serves = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"  # torchrun has a server already
    local = address in LOOPBACK
    if local:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    try:
        listener = socket.create_server((address, port)).detach() if serves and local else None
        store = dist.TCPStore(
            address,
            port,
            size,
            is_master=serves,
            timeout=patience,
            wait_for_workers=False,
            multi_tenant=True,
            master_listen_fd=listener,
        )
    except (dist.DistNetworkError, OSError) as error:
        reason = str(error).splitlines()[0]
        if serves:
            raise FaultError(
                f"rank 0 cannot listen at {address}:{port} ({reason}); does another run use the port? Give the "
                "launcher another --master_port"
            ) from error
        raise FaultError(
            f"rank 0 does not answer at {address}:{port} ({reason}): it has ended, was not started, or cannot be "
            "reached from here; start the same command again"
        ) from error
    _wait_for_all(store, rank, size, patience)
    return store


def _wait_for_all(store: dist.Store, rank: int, size: int, patience: timedelta) -> None:
    try:
        store.set(f"rank {rank}", "here")
        if store.add("ranks here", 1) == size:
            store.set("all here", "")
        store.wait(["all here"], patience)
    except (dist.DistStoreError, dist.DistNetworkError) as error:
        raise FaultError(
            f"not all of the {size} ranks came within {patience.total_seconds():g} s{_missing(store, size)}: they have "
            "ended, or were not started. Look for what they have said, and start the same command again"
        ) from error


def _missing(store: dist.Store, size: int) -> str:
    try:
        absent = [str(rank) for rank in range(size) if not store.check([f"rank {rank}"])]
    except dist.DistNetworkError:  # rank 0 has given up already, and says it
        return ""
    return f"; missing: {', '.join(absent[:8])}{' ...' if len(absent) > 8 else ''}"
