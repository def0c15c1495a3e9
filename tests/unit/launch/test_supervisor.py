"""The launcher and its signals, with a stand-in for DeepSpeed's launcher and its ranks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid

import pytest

from tests.support.runs import ROOT
from tinybert_ds.launch.processes import VARIABLE, is_rank, processes_of, signal_launch

LAUNCHER = """
import signal, subprocess, sys, time
def shout(number, frame):
    print("launcher was signalled", flush=True)
    sys.exit(99)
signal.signal(signal.SIGTERM, shout)
if sys.argv[2] == "late":
    print("ready ready", flush=True)
    time.sleep(0.5)
ranks = [subprocess.Popen([sys.executable, "-u", sys.argv[1], sys.argv[2]]) for _ in range(2)]
sys.exit(max(rank.wait() for rank in ranks))
"""
RANK = """
import os, signal, sys, time
def save(number, frame):
    os.write(1, f"saved on {signal.Signals(number).name}\\n".encode())  # in one piece: two ranks share the log
    sys.exit(75)
if sys.argv[1] == "late":
    time.sleep(1.5)  # would die of a signal now
if sys.argv[1] in ("obedient", "late"):
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, save)
else:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
time.sleep(60)
"""
SUPERVISE = """
import os, sys
from tinybert_ds.launch.hostfile import Host
from tinybert_ds.launch.supervisor import supervise
launch, grace, *command = sys.argv[1:]
sys.exit(supervise(command, {**os.environ, "TINYBERT_DS_LAUNCH": launch}, hosts=[Host("localhost", 2)], launch=launch,
                   grace_seconds=float(grace)))
"""


@pytest.fixture
def start(tmp_path):
    """Return a function that starts a supervised launcher with two ranks and waits until they run."""
    (tmp_path / "launchers").mkdir()
    rank = tmp_path / "launchers" / "rank.py"
    rank.write_text(RANK)
    launcher = tmp_path / "launcher.py"
    launcher.write_text(LAUNCHER)
    log = tmp_path / "log"
    started = []
    hangup = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests themselves may be under nohup

    def run(kind, grace):
        launch = uuid.uuid4().hex
        words = [sys.executable, "-c", SUPERVISE, launch, grace, sys.executable, launcher, rank, kind]
        with log.open("wb") as handle:
            process = subprocess.Popen([str(word) for word in words], cwd=ROOT, stdout=handle, stderr=handle)
        started.append((process, launch))
        deadline = time.monotonic() + 30
        while log.read_text().count("ready") < 2:
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.02)
        return process, launch, log

    yield run
    signal.signal(signal.SIGHUP, hangup)
    for process, launch in started:
        process.kill()
        process.wait()
        signal_launch(launch, signal.SIGKILL)


@pytest.mark.parametrize(("number", "named"), [(signal.SIGTERM, "SIGTERM"), (signal.SIGUSR1, "SIGUSR1")])
def test_a_signal_goes_to_the_ranks_and_not_to_the_launcher_and_their_exit_code_comes_back(start, number, named):
    process, launch, log = start("obedient", 30)
    assert len(processes_of(launch, ranks_only=True)) == 2
    process.send_signal(number)
    assert process.wait(timeout=30) == 75
    text = log.read_text()
    assert text.count(f"saved on {named}") == 2
    assert "launcher was signalled" not in text
    assert processes_of(launch, ranks_only=False) == []


def test_ctrl_c_asks_the_ranks_to_save(start):
    process, _, log = start("obedient", 30)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 75
    assert log.read_text().count("saved on SIGTERM") == 2


def test_a_terminal_that_is_closed_asks_the_ranks_to_save(start):
    process, _, log = start("obedient", 30)
    process.send_signal(signal.SIGHUP)
    assert process.wait(timeout=30) == 75
    assert log.read_text().count("saved on SIGTERM") == 2


def test_under_nohup_a_terminal_that_is_closed_changes_nothing(start):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # what nohup does for the command that it starts
    try:
        process, launch, log = start("obedient", 30)
    finally:
        signal.signal(signal.SIGHUP, before)
    process.send_signal(signal.SIGHUP)
    time.sleep(0.5)
    assert len(processes_of(launch, ranks_only=True)) == 2, log.read_text()
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 75


@pytest.mark.parametrize("seconds", [0.0, 1.2])
def test_a_signal_that_comes_before_the_ranks_can_take_it_waits_for_them(start, seconds):
    process, _, log = start("late", 30)
    time.sleep(seconds)  # before they exist, before they have handlers
    process.send_signal(signal.SIGUSR1)
    assert process.wait(timeout=30) == 75
    text = log.read_text()
    assert "SIGUSR1 to 0 process(es); again when more of them have started" in text
    assert text.count("saved on SIGUSR1") == 2


def test_ranks_that_do_not_leave_in_time_are_killed_with_everything_of_their_launch(start):
    process, launch, log = start("deaf", 0.5)
    begin = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 1
    assert time.monotonic() - begin >= 0.5
    assert "did not leave in time" in log.read_text()
    assert processes_of(launch, ranks_only=False) == []


def test_what_a_dead_launcher_leaves_behind_is_killed(start):
    process, launch, _ = start("deaf", 30)
    launcher = next(pid for pid in processes_of(launch, ranks_only=False) if pid not in ranks_of(launch))
    os.kill(launcher, signal.SIGKILL)
    assert process.wait(timeout=30) == 128 + signal.SIGKILL
    assert processes_of(launch, ranks_only=False) == []


def ranks_of(launch):
    return processes_of(launch, ranks_only=True)


def test_another_launch_is_not_touched(start):
    _, launch, _ = start("obedient", 30)
    assert processes_of(launch[:-1], ranks_only=False) == []  # a part of an identifier is another identifier
    assert signal_launch(uuid.uuid4().hex, signal.SIGKILL) == 0
    assert len(ranks_of(launch)) == 2
    assert VARIABLE not in os.environ


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("/venv/bin/python -u /checkout/launchers/general_distill.py --local_rank=0", True),
        ("python3 launchers/task_distill.py", True),
        (
            "/venv/bin/python -u -m deepspeed.launcher.launch --world_info=x /c/launchers/general_distill.py",
            False,
        ),
        ("/venv/bin/python /site/deepspeed/launcher/launcher_helper.py /checkout/launchers/general_distill.py", False),
        ("mpirun -n 2 python launchers/general_distill.py", False),
        ("vim launchers/general_distill.py", False),
    ],
)
def test_a_rank_is_told_from_its_launchers_by_its_command(command, expected):
    assert is_rank(command.split()) is expected
