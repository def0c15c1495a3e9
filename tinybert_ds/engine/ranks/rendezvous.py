"""The ranks come together before their process group forms: one that never comes, or that cannot reach the others, is
named instead of waited for, and all leave."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

from tinybert_ds.errors import EXIT_FAULT, ConfigError, FaultError, RankError, UserError

LOOPBACK = ("127.0.0.1", "localhost")
PATIENCE_VARIABLE = "TINYBERT_DS_START_SECONDS"
PATIENCE_SECONDS = 600.0
"""Between the first rank and the last: programs come from cold disks, hosts may be started by hand."""
_FAILED = "failed"
_LOOK_SECONDS = 0.5
_LINGER_SECONDS = 4 * _LOOK_SECONDS
"""How long a rank that has failed stays, so that the others can read why: the first rank has their server."""


def stated_patience() -> timedelta:
    """Return how long the ranks wait for each other at the start, as the environment says.

    Raises:
        ConfigError: It says no number above 0.
    """
    text = os.environ.get(PATIENCE_VARIABLE) or str(PATIENCE_SECONDS)
    try:
        seconds = float(text)
        if not 0 < seconds < 10**6:
            raise ValueError(text)
    except ValueError as error:
        raise ConfigError(
            f"the environment variable {PATIENCE_VARIABLE} is {text[:40]!r}; it must be a number of seconds above 0 "
            f"(without it: {PATIENCE_SECONDS:g})"
        ) from error
    return timedelta(seconds=seconds)


def rendezvous(patience: timedelta) -> dist.Store:
    """Wait until all ranks of the launcher's environment are there.

    Ranks that are all on one host, as MASTER_ADDR says, listen on loopback only.

    Returns:
        What the ranks met at. As long as it lives, a process group of this address and port uses the same server.

    Raises:
        FaultError: On every rank, when some did not come; names them. On rank 0 also when the port is taken.
        RankError: Another process has come as this rank.
    """
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    serves = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"  # torchrun has a server already
    local = address in LOOPBACK
    if local:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    try:
        listener = socket.create_server((address, port)).detach() if serves and local else None
        server = dist.TCPStore(
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
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")  # torchrun's server outlives an attempt
    store = dist.PrefixStore(f"tinybert_ds {attempt}", server)
    _wait_for_all(store, rank, size, patience)
    return store


def _wait_for_all(store: dist.Store, rank: int, size: int, patience: timedelta) -> None:
    try:
        own = f"{_host()}\n{os.getpid()}"
        first = store.compare_set(f"rank {rank}", "", own).decode()
        if first != own:
            raise RankError(
                f"two processes have come as rank {rank} of {size}: one on {first.split()[0]}, one on "
                f"{os.uname().nodename}. Give every process a RANK of its own"
            )
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


def count_local_rank(store: dist.Store) -> int:
    """Return how many lower ranks are on this rank's host, by what all have said when they met."""
    hosts = (store.get(f"rank {lower}").decode().partition("\n")[0] for lower in range(int(os.environ["RANK"])))
    return sum(host == _host() for host in hosts)


def _host() -> str:
    """Return what tells this host from others: containers may share a machine, machines a name."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        boot = ""
    return f"{os.uname().nodename} {boot}"


@contextlib.contextmanager
def together(store: dist.Store, patience: timedelta) -> Iterator[None]:
    """Let all ranks leave when one fails inside the context, in which they find their ways to each other.

    What they call there cannot be interrupted from outside, so a rank that others have failed leaves by `os._exit`.

    Args:
        patience: The longest time that the inside may take.

    Raises:
        FaultError: On the rank that has failed inside.
        UserError: What the inside raises; the other ranks are told of it.
    """
    rank = int(os.environ["RANK"])
    done = threading.Event()
    watch = threading.Thread(target=_watch, args=(store, rank, patience, done), daemon=True)
    watch.start()
    try:
        yield
    except (RuntimeError, OSError) as error:  # gloo raises bare RuntimeErrors
        done.set()
        watch.join()
        reason = " ".join(str(error).split())[:300]
        told = (
            f"rank {rank} cannot join the other ranks from {os.uname().nodename} ({reason}). Where that is about "
            "connections, look at the network interfaces (GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME) and firewalls "
            "between the hosts; then start the same command again"
        )
        raise FaultError(_announce(store, told)) from error
    except UserError as error:
        done.set()
        watch.join()
        _announce(store, f"rank {rank} on {os.uname().nodename} cannot take part: {error}")
        raise
    finally:
        done.set()
    watch.join()


def _announce(store: dist.Store, told: str) -> str:
    """Tell all ranks of a failure, and give them time to hear of it; return the first that was told."""
    with contextlib.suppress(dist.DistStoreError, dist.DistNetworkError):  # the first rank has left already
        first = store.compare_set(_FAILED, "", told).decode()
        time.sleep(_LINGER_SECONDS)
        return first
    return told


def _watch(store: dist.Store, rank: int, patience: timedelta, done: threading.Event) -> None:
    """End this process when another rank has failed, or the time is over."""
    deadline = time.monotonic() + patience.total_seconds()
    while not done.wait(_LOOK_SECONDS):
        try:
            told = store.get(_FAILED).decode() if store.check([_FAILED]) else ""
            if not told and time.monotonic() > deadline:
                told = (
                    f"rank {rank} on {os.uname().nodename} has met the others, but is not connected to all of them "
                    f"after {patience.total_seconds():g} s; look at the network interfaces (GLOO_SOCKET_IFNAME, "
                    "NCCL_SOCKET_IFNAME) and firewalls between the hosts, and start the same command again"
                )
                told = _announce(store, told)
        except (dist.DistStoreError, dist.DistNetworkError):
            told = "rank 0 has left while the ranks were connecting; look for what it has said"
        if told and not done.is_set():
            os.write(sys.stderr.fileno(), f"fault on rank {rank}: {told}\n".encode())  # one piece: ranks share a log
            os._exit(EXIT_FAULT)
