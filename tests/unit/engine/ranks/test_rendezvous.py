"""Ranks that do not come are named, in a stated time."""

from __future__ import annotations

import socket
from datetime import timedelta

import pytest

from tests.support.runs import free_port
from tinybert_ds.engine.ranks.rendezvous import rendezvous
from tinybert_ds.errors import FaultError

SHORTLY = timedelta(seconds=1)


@pytest.fixture
def place(monkeypatch):
    """Return a function that makes this process a rank; all of a test's ranks share a free port."""
    port = free_port()

    def become(rank, size):
        for name, value in {"RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items():
            monkeypatch.setenv(name, str(value))
        monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
        return port

    return become


def test_those_that_came_name_those_that_did_not(place):
    place(0, 3)
    with pytest.raises(FaultError, match=r"not all of the 3 ranks came within 1 s; missing: 1, 2: "):
        rendezvous(SHORTLY)


def test_without_the_first_rank_the_others_say_where_it_should_be(place):
    port = place(1, 2)
    with pytest.raises(FaultError, match=rf"rank 0 does not answer at 127\.0\.0\.1:{port}"):
        rendezvous(SHORTLY)


def test_a_port_that_another_run_uses_is_said_at_once(place):
    port = place(0, 2)
    with socket.create_server(("127.0.0.1", port)), pytest.raises(FaultError, match="does another run use the port"):
        rendezvous()
