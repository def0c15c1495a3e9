"""How a command ends: 0 done, 2 the user must change something, 75 preempted with its state saved, 130 interrupted;
anything else is a fault."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tinybert_ds.errors import (
    EXIT_FAULT,
    EXIT_PREEMPTED,
    EXIT_USER_ERROR,
    FaultError,
    PreemptedError,
    RankError,
    UserError,
)

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
    """Run `main`; end the process with exit code 2, and no traceback, on a `UserError`.

    Under a launcher every local rank meets the same error. Local rank 0 (the environment's `LOCAL_RANK`, 0 without one)
    prints it and leaves at once; the others wait first and stay silent, because a launcher kills the siblings of the
    first rank that leaves, and rank 0 must have printed by then. A `RankError` is told by every rank that meets it.

    Raises:
        SystemExit: 2 on a `UserError`, 1 on a `FaultError`, 75 on a `PreemptedError`, 130 on an interrupt from the
            keyboard.
    """
    try:
        main()
    except UserError as error:
        if isinstance(error, RankError) or os.environ.get("LOCAL_RANK", "0") == "0":
            print(f"error: {error}", file=sys.stderr, flush=True)
        else:
            time.sleep(SIBLING_DELAY_SECONDS)
        sys.exit(EXIT_USER_ERROR)
    except FaultError as error:  # each rank sees another side of it, and rank 0 may be the one that is gone
        print(f"fault on rank {os.environ.get('RANK', '0')}: {error}", file=sys.stderr, flush=True)
        sys.exit(EXIT_FAULT)
    except PreemptedError as error:
        if os.environ.get("RANK", "0") == "0":
            print(error, file=sys.stderr, flush=True)
        sys.exit(EXIT_PREEMPTED)
    except KeyboardInterrupt:
        sys.exit(130)
