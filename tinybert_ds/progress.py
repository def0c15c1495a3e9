"""Progress bars of everything that may take longer than a few seconds."""

from __future__ import annotations

import logging
import os
import sys

from tqdm import tqdm

DELAY_SECONDS = 5.0
"""What is done sooner shows no bar."""
_FILE_SECONDS = 10.0
"""Between two lines of a bar that goes to a file, where every refresh stays."""


def progress_bar(
    *,
    total: int | None,
    desc: str,
    unit: str,
    unit_scale: bool = False,
    leave: bool = False,
    delay: float = DELAY_SECONDS,
    shown: bool = True,
) -> tqdm:
    """Return a bar on standard error that appears after `delay` seconds; nothing is shown where `is_quiet`.

    Args:
        delay: Seconds before it appears.
        shown: False for a process whose progress another one shows.
    """
    return tqdm(
        total=total,
        desc=desc,
        unit=unit,
        unit_scale=unit_scale,
        leave=leave,
        delay=delay,
        disable=is_quiet() or not shown,
        file=sys.stderr,
        dynamic_ncols=True,
        mininterval=0.1 if sys.stderr.isatty() else _FILE_SECONDS,
    )


def is_quiet() -> bool:
    """Whether this process shows no progress: another rank than the first, or told so by `--log_level`."""
    return os.environ.get("RANK", "0") != "0" or logging.getLogger("tinybert_ds").level > logging.INFO
