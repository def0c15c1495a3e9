"""Run a launcher of DeepSpeed's and stand between it and the signals of the world.

DeepSpeed's own launcher answers SIGTERM by killing whatever has its name, on all hosts, at once. So it never gets one:
it runs in a session of its own, and signals go to the ranks, which finish their step, save and leave.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tinybert_ds.foreign_text import quoted
from tinybert_ds.launch.hostfile import Host
from tinybert_ds.launch.remote import run_everywhere

PASSED_ON = {
    signal.SIGTERM: signal.SIGTERM,
    signal.SIGUSR1: signal.SIGUSR1,
    signal.SIGINT: signal.SIGTERM,
    signal.SIGHUP: signal.SIGTERM,
}
"""What we get -> what the ranks get."""
POLL_SECONDS = 0.1
RETRY_SECONDS = 1.0
"""Between two attempts to signal ranks that have not started yet."""
KILLED = 1


def supervise(
    command: Sequence[str],
    environment: Mapping[str, str],
    *,
    hosts: Sequence[Host],
    launch: str,
    grace_seconds: float,
    directory: Path | None = None,
    ssh_port: int | None = None,
) -> int:
    """Run a launcher to its end and pass signals on to the ranks.

    Args:
        environment: Its environment, with the launch's identifier.
        grace_seconds: How long the ranks may take to leave after the first signal; then everything is killed.
        directory: Where the launcher runs; None: here.

    Returns:
        The launcher's exit code, 128 + n if signal n ended it, 1 if the ranks had to be killed.
    """
    received: list[signal.Signals] = []

    def receive(number: int, _: object) -> None:
        received.append(signal.Signals(number))

    taken = set(PASSED_ON)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # nohup: the end of the terminal is nothing to pass on
        taken.remove(signal.SIGHUP)
    before = {number: signal.signal(number, receive) for number in taken}
    process = None
    try:
        process = subprocess.Popen(command, env=dict(environment), cwd=directory, start_new_session=True)
        killed = _watch(process, received, hosts, launch, grace_seconds, ssh_port)
        code = process.returncode
    finally:
        if process is None or process.poll() is None or process.returncode:
            _signal_all(hosts, launch, signal.SIGKILL, ssh_port, quiet=True)
        _restore(before)
    return KILLED if killed else (code if code >= 0 else 128 - code)


def _watch(
    process: subprocess.Popen[bytes],
    received: list[signal.Signals],
    hosts: Sequence[Host],
    launch: str,
    grace_seconds: float,
    ssh_port: int | None,
) -> bool:
    """Wait for the launcher; return whether its ranks had to be killed."""
    deadline = None
    missed: list[Host] = []
    while process.poll() is None:
        if received:
            number = received.pop(0)
            if deadline is None:
                deadline = time.monotonic() + grace_seconds
            elif number is signal.SIGINT:  # a second Ctrl-C means now
                deadline = time.monotonic()
            say(f"{number.name}: passing {PASSED_ON[number].name} on to the ranks, which may take {grace_seconds:g} s")
            asked = PASSED_ON[number]
            missed = _signal_all(hosts, launch, asked, ssh_port)
            retry_at = time.monotonic() + RETRY_SECONDS
        elif missed and time.monotonic() >= retry_at:
            missed = _signal_all(missed, launch, asked, ssh_port, quiet=True)
            retry_at = time.monotonic() + RETRY_SECONDS
        if deadline is not None and time.monotonic() >= deadline:
            say("the ranks did not leave in time; killing them")
            _signal_all(hosts, launch, signal.SIGKILL, ssh_port)
            process.wait()
            return True
        time.sleep(POLL_SECONDS)
    return False


def _signal_all(
    hosts: Sequence[Host], launch: str, number: signal.Signals, ssh_port: int | None, *, quiet: bool = False
) -> list[Host]:
    """Signal a launch on these hosts; return those on which fewer processes than slots could take it."""
    missed = []
    words = ["tinybert_ds.launch.processes", launch, number.name]
    for host, answer in zip(hosts, run_everywhere(hosts, words, ssh_port=ssh_port), strict=True):
        if answer.returncode != 0 or not answer.result.isdecimal():
            said = answer.reason if answer.returncode != 0 else f"its shell says {quoted(answer.result)}"
            say(f"{host.name}: could not send {number.name} ({said})")
            continue
        count = int(answer.result)
        if count < host.slots:
            missed.append(host)
        if count or not quiet:
            later = "; again when more of them have started" if number != signal.SIGKILL and count < host.slots else ""
            say(f"{host.name}: {number.name} to {count} process(es){later}")
    return missed


def _restore(before: Mapping[signal.Signals, Any]) -> None:
    for number, handler in before.items():
        signal.signal(number, handler)


def say(text: str) -> None:
    """Tell the user, in the launcher's name."""
    print(f"launcher: {text}", file=sys.stderr, flush=True)
