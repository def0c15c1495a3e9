"""Ranks that do not come are named, in a stated time."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from datetime import timedelta

import pytest
import torch.distributed as dist

from tests.support.runs import ROOT
from tinybert_ds.engine.ranks.rendezvous import PATIENCE_VARIABLE, rendezvous, stated_patience
from tinybert_ds.errors import EXIT_FAULT, EXIT_USER_ERROR, ConfigError, FaultError, RankError
from tinybert_ds.launch.port import free_port

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


def test_two_processes_that_take_themselves_for_the_same_rank_are_told(place):
    port = place(1, 3)
    server = dist.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
    dist.PrefixStore("tinybert_ds 0", server).set("rank 1", "elsewhere 1234\n5")
    with pytest.raises(RankError, match=r"two processes have come as rank 1 of 3: one on elsewhere, one on "):
        rendezvous(SHORTLY)


def test_an_attempt_of_torchrun_does_not_see_what_the_one_before_has_left(place, monkeypatch):
    port = place(1, 3)
    server = dist.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
    dist.PrefixStore("tinybert_ds 0", server).set("rank 1", "elsewhere 1234\n5")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    with pytest.raises(FaultError, match="missing: 0, 2"):
        rendezvous(SHORTLY)


def test_a_port_that_another_run_uses_is_said_at_once(place):
    port = place(0, 2)
    with socket.create_server(("127.0.0.1", port)), pytest.raises(FaultError, match="does another run use the port"):
        rendezvous(SHORTLY)


@pytest.mark.parametrize(("text", "seconds"), [("", 600), ("7.5", 7.5)])
def test_how_long_ranks_wait_for_each_other_can_be_stated(monkeypatch, text, seconds):
    monkeypatch.setenv(PATIENCE_VARIABLE, text)
    assert stated_patience() == timedelta(seconds=seconds)


@pytest.mark.parametrize("text", ["0", "-1", "soon", "nan", "1e400"])
def test_a_waiting_time_that_is_none_is_refused(monkeypatch, text):
    monkeypatch.setenv(PATIENCE_VARIABLE, text)
    with pytest.raises(ConfigError, match=f"{PATIENCE_VARIABLE} is '{text}'"):
        stated_patience()


CONNECT = """
import os, sys, time
from datetime import timedelta
import torch.distributed as dist
from tinybert_ds.command_line import run_command
from tinybert_ds.errors import ConfigError
from tinybert_ds.engine.ranks.rendezvous import count_local_rank, rendezvous, together
def main():
    met = rendezvous(timedelta(seconds=30))
    print("local rank", count_local_rank(met), flush=True)
    with together(met, timedelta(seconds=float(sys.argv[1]))):
        if "stuck" in sys.argv:
            time.sleep(60)
        if "refuses" in sys.argv:
            raise ConfigError("no device of its own")
        dist.init_process_group("gloo", timeout=timedelta(minutes=30))
        dist.barrier()
run_command(main)
"""


@pytest.fixture
def connect():
    """Return a function that lets two ranks meet and connect; returns their exit codes and what they have said."""
    started = []

    def run(*words, patience="30", **of_rank):
        place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        for rank in (0, 1):
            environment = {**os.environ, **place, "RANK": str(rank), **of_rank.get(f"rank{rank}", {})}
            command = [sys.executable, "-c", CONNECT, patience, *(words if rank else ())]
            started.append(
                subprocess.Popen(
                    command, env=environment, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
                )
            )
        said = [process.communicate(timeout=60) for process in started]
        return [process.returncode for process in started], said

    yield run
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_ranks_that_connect_count_those_on_their_host_where_no_launcher_does(connect):
    codes, said = connect()
    assert codes == [0, 0], said
    assert [out for out, _ in said] == ["local rank 0\n", "local rank 1\n"]


@pytest.mark.slow
@pytest.mark.parametrize("broken", [0, 1])
def test_a_rank_that_nobody_can_reach_is_named_by_all_and_all_leave_soon(connect, broken):
    begin = time.monotonic()
    codes, said = connect(**{f"rank{broken}": {"GLOO_SOCKET_IFNAME": "nowhere0"}})
    assert codes == [EXIT_FAULT, EXIT_FAULT], said
    for _, errors in said:
        assert f"rank {broken} cannot join the other ranks from {os.uname().nodename}" in errors
        assert "nowhere0" in errors
        assert "GLOO_SOCKET_IFNAME" in errors
        assert "Traceback" not in errors
    assert time.monotonic() - begin < 40


@pytest.mark.slow
def test_a_rank_that_does_not_get_through_ends_the_start_of_all_in_the_stated_time(connect):
    codes, said = connect("stuck", patience="2")
    assert codes == [EXIT_FAULT, EXIT_FAULT], said
    assert all("is not connected to all of them after 2 s" in errors for _, errors in said)


@pytest.mark.slow
def test_a_rank_that_is_refused_while_the_others_connect_takes_them_along(connect):
    codes, said = connect("refuses")
    assert codes == [EXIT_FAULT, EXIT_USER_ERROR], said
    assert f"rank 1 on {os.uname().nodename} cannot take part: no device of its own" in said[0][1]
    assert said[1][1].endswith("error: no device of its own\n")
