"""Find and signal the processes of one launch on this host: `python -m tinybert_ds.launch.processes ID SIGNAL`.

A launch is known by an identifier in the environment of everything that it started, so that nothing is looked for by
its name alone, and two launches on one host do not meet.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

VARIABLE = "TINYBERT_DS_LAUNCH"


def is_rank(command: Sequence[str]) -> bool:
    """Whether a command line is that of a rank: python running a file of launchers/, not a launcher running ranks."""
    words = [word for word in command[1:] if word != "-u"]
    if not words or not Path(command[0]).name.startswith("python"):
        return False
    script = Path(words[0])
    return script.suffix == ".py" and script.parent.name == "launchers"


def processes_of(launch: str, *, ranks_only: bool) -> list[int]:
    """Return the ids of the processes of a launch on this host, as far as they are ours to read.

    A network namespace counts as a host: what runs in another one is signalled from there.
    """
    wanted = f"{VARIABLE}={launch}".encode()
    network = os.readlink("/proc/self/ns/net")
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended meanwhile, or belongs to somebody else
            if wanted not in (folder / "environ").read_bytes().split(b"\0"):
                continue
            command = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
            if os.readlink(folder / "ns" / "net") == network and (is_rank(command) or not ranks_only):
                found.append(int(folder.name))
    return sorted(found)


def expects(process: int, number: signal.Signals) -> bool:
    """Whether a process handles or ignores a signal, and would not just die of it as python does while it starts."""
    status = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
    masks = [int(line.split()[1], 16) for line in status.splitlines() if line.startswith(("SigIgn:", "SigCgt:"))]
    return any(mask >> (number - 1) & 1 for mask in masks)


def signal_launch(launch: str, number: signal.Signals) -> int:
    """Signal the ranks of a launch here that expect it, with SIGKILL everything that belongs to it; return how many."""
    count = 0
    kill = number == signal.SIGKILL
    for process in processes_of(launch, ranks_only=not kill):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if not kill and not expects(process, number):
                continue
            os.kill(process, number)
            count += 1
    return count


if __name__ == "__main__":
    print(signal_launch(sys.argv[1], signal.Signals[sys.argv[2]]))
