"""How a command ends: 0 done, 2 the user must change something, 75 preempted with its state saved, 130 interrupted;
anything else is a fault."""

from __future__ import annotations

import io
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from tinybert_ds.errors import (
    EXIT_FAULT,
    EXIT_PREEMPTED,
    EXIT_USER_ERROR,
    ConfigError,
    FaultError,
    FileError,
    PreemptedError,
    RankError,
    UserError,
)
from tinybert_ds.files import file_error

LONGEST_MESSAGE = 8_000
"""Characters; what is longer has something of a file in it that should have been shortened."""
SIBLING_DELAY_SECONDS = 10.0


def seconds_since_start() -> float:
    """Seconds since this process was started; what it has imported is in them. CPU seconds where /proc is missing."""
    try:
        status = Path("/proc/self/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return time.process_time()
    start_ticks = int(status.rpartition(")")[2].split()[19])  # field 22, counted from the boot
    return time.clock_gettime(time.CLOCK_BOOTTIME) - start_ticks / os.sysconf("SC_CLK_TCK")


def run_command(main: Callable[[], None]) -> None:
    """Run `main`; end the process with exit code 2, and no traceback, on what the user can mend.

    That is a `UserError`, and what the system says of a file: `files.file_error` decides which errors those are, so
    that no command has to remember them.

    Under a launcher every local rank meets the same error. Local rank 0 (the environment's `LOCAL_RANK`, 0 without one)
    prints it and leaves at once; the others wait first and stay silent, because a launcher kills the siblings of the
    first rank that leaves, and rank 0 must have printed by then. A `RankError` is told by every rank that meets it; a
    file may be refused to one rank alone, so that who has waited in vain to be killed says it.

    Raises:
        SystemExit: 2 on a `UserError`, 1 on a `FaultError`, 75 on a `PreemptedError`, 130 on an interrupt from the
            keyboard.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a path may hold bytes that are no text
    try:
        main()
    except UserError as error:
        _leave(error)
    except OSError as error:
        told = file_error(error)
        if told is None:
            raise
        _leave(told)
    except ValueError as error:
        if str(error) != "embedded null byte":
            raise
        _leave(ConfigError("a path holds a NUL character, which no file's name can: mend it where it is given"))
    except FaultError as error:  # each rank sees another side of it, and rank 0 may be the one that is gone
        print(f"fault on rank {os.environ.get('RANK', '0')}: {error}", file=sys.stderr, flush=True)
        sys.exit(EXIT_FAULT)
    except PreemptedError as error:
        if os.environ.get("RANK", "0") == "0":
            print(error, file=sys.stderr, flush=True)
        sys.exit(EXIT_PREEMPTED)
    except KeyboardInterrupt:
        sys.exit(130)


def _bounded(message: str) -> str:
    """Cut the middle out of a message that nobody would read, whatever has got into it; what to do is at its end."""
    if len(message) <= LONGEST_MESSAGE:
        return message
    left_out = len(message) - LONGEST_MESSAGE
    begin, end = message[: LONGEST_MESSAGE // 2], message[-LONGEST_MESSAGE // 2 :]
    return f"{begin} ... ({left_out:,} characters left out) ... {end}"


def _leave(error: UserError) -> NoReturn:
    first = os.environ.get("LOCAL_RANK", "0") == "0"
    if not first and not isinstance(error, RankError):
        time.sleep(SIBLING_DELAY_SECONDS)
    if first or isinstance(error, FileError | RankError):
        where = "" if first else f"rank {os.environ.get('RANK', '?')}: "
        print(f"error: {where}{_bounded(str(error))}", file=sys.stderr, flush=True)
    sys.exit(EXIT_USER_ERROR)
