"""A rank that stands still is noticed, and says where it stands, instead of holding the whole job up for ever."""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from pathlib import Path
from types import TracebackType

from tinybert_ds.errors import EXIT_FAULT

DIRECTORY = "stalls"
"""Of the stack dumps, inside a run's output directory."""
_LAST_WORDS_SECONDS = 2.0  # for the dumps of the other ranks: a launcher kills them when the first one leaves


class StallWatch:
    """Ends this process when no sign of life comes for a while, with the stacks of all its threads in a file.

    When one rank stalls the others wait for it in the next collective, so that each rank's watch goes off and every
    stack is written.
    """

    def __init__(self, timeout_seconds: float, directory: Path, rank: int) -> None:
        self._timeout = timeout_seconds
        self._file = directory / DIRECTORY / f"rank-{rank}.txt"
        self._rank = rank
        self._last = (time.monotonic(), "")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="stall-watch", daemon=True)

    def __enter__(self) -> StallWatch:
        self.alive("the start of training")
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()

    def alive(self, after: str) -> None:
        """Give a sign of life; `after` says what is done."""
        self._last = (time.monotonic(), after)

    def _watch(self) -> None:
        while True:
            since, after = self._last
            remaining = since + self._timeout - time.monotonic()
            if remaining <= 0:
                break
            if self._stop.wait(remaining):
                return
        try:
            self._file.parent.mkdir(exist_ok=True)
            with self._file.open("w", encoding="utf-8") as handle:
                faulthandler.dump_traceback(handle, all_threads=True)
        except OSError:  # where the file system is what stalls, or is full
            faulthandler.dump_traceback(sys.stderr, all_threads=True)
        print(
            f"fault on rank {self._rank}: nothing has moved for {self._timeout:g} s (--stall_timeout_seconds) since "
            f"{after}. The stacks of all ranks are in {self._file.parent}; the last complete checkpoint stands: start "
            "the same command again",
            file=sys.stderr,
            flush=True,
        )
        time.sleep(_LAST_WORDS_SECONDS)
        os._exit(EXIT_FAULT)
