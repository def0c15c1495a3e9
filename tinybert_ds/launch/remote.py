"""Short errands on the hosts of a job, `python -m tinybert_ds.<module>`, by ssh where they are not local."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tinybert_ds.launch.hostfile import Host, is_local

CHECKOUT = Path(__file__).resolve().parents[2]
TIMEOUT_SECONDS = 30.0


class Answer(NamedTuple):
    """What came of an errand on one host."""

    host: str
    returncode: int | None  # None: no answer in time
    output: str
    errors: str

    @property
    def reason(self) -> str:
        """Why it failed, in a line."""
        lines = self.errors.strip().splitlines()
        return lines[-1] if lines else ("no answer" if self.returncode is None else f"exit code {self.returncode}")

    @property
    def result(self) -> str:
        """What the errand has printed, its last line; before it is what start-up files of a shell may say."""
        return (self.output.strip().splitlines() or [""])[-1]


def errand_command(host: str, words: Sequence[str], *, ssh_port: int | None = None) -> list[str]:
    """Return the command that runs `python -m WORDS` in the checkout of a host.

    The interpreter and the checkout have the same paths on every host; PATH is not needed.
    """
    own = [sys.executable, "-m", *words]
    if is_local(host):
        return own
    port = ["-p", str(ssh_port)] if ssh_port else []
    command = f"cd {shlex.quote(str(CHECKOUT))} && exec {shlex.join(own)}"
    return ["ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10", *port, "--", host, command]


def run_everywhere(
    hosts: Sequence[Host],
    words: Sequence[str],
    *,
    ssh_port: int | None = None,
    timeout: float = TIMEOUT_SECONDS,
) -> list[Answer]:
    """Run an errand on all hosts at once; return their answers in the order of the hosts."""
    processes = [
        subprocess.Popen(
            errand_command(host.name, words, ssh_port=ssh_port),
            cwd=CHECKOUT if is_local(host.name) else None,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # an interrupt at the terminal is ours to pass on, not theirs to die of
        )
        for host in hosts
    ]
    answers = []
    for host, process in zip(hosts, processes, strict=True):
        try:
            output, errors = process.communicate(timeout=timeout)
            answers.append(Answer(host.name, process.returncode, output, errors))
        except subprocess.TimeoutExpired:
            process.kill()
            output, errors = process.communicate()
            answers.append(Answer(host.name, None, output, errors))
    return answers
