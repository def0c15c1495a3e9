"""Stopping on request: SIGTERM, SIGUSR1 or SIGHUP to any rank ends the run after the step it is in, its state saved.

Before the first step there is nothing to save, and the process leaves at once; the few seconds in which a finished run
writes its results and ends are left to it.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType

from tinybert_ds.errors import EXIT_FAULT, EXIT_PREEMPTED

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
LAUNCHER_GRACE_SECONDS = 30
"""How long DeepSpeed's launch.py waits for its ranks after its own SIGTERM before it kills them."""
_SET_BY_LAUNCHER = "CROSS_SIZE"  # in the environment of a rank that launch.py has started


def grace_problems(grace_seconds: float, environment: Mapping[str, str]) -> list[str]:
    """What is wrong with `--preempt_grace_seconds` in this environment."""
    if grace_seconds > LAUNCHER_GRACE_SECONDS and _SET_BY_LAUNCHER in environment:
        return [
            f"--preempt_grace_seconds is {grace_seconds:g}, but DeepSpeed's launcher kills its ranks "
            f"{LAUNCHER_GRACE_SECONDS} s after its own SIGTERM; take at most {LAUNCHER_GRACE_SECONDS}, or launch the "
            "ranks by mpirun or srun"
        ]
    return []


def heeded_signals() -> tuple[signal.Signals, ...]:
    """Return SIGNALS without a SIGHUP that is ignored: `nohup` means that the command goes on without its terminal."""
    return tuple(
        number for number in SIGNALS if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN
    )


def leave_when_asked() -> None:
    """Let the signals end this process with EXIT_PREEMPTED, until another context of this module says otherwise."""
    process = os.getpid()

    def leave(number: int, frame: FrameType | None) -> None:
        if os.getpid() == process and os.environ.get("LOCAL_RANK", "0") == "0":  # forked children leave in silence
            told = (
                f"stopped by {signal.Signals(number).name}, no step under way; start the same command again to go on\n"
            )
            os.write(sys.stderr.fileno(), told.encode())  # print may have been interrupted itself
        os._exit(EXIT_PREEMPTED)

    for number in heeded_signals():
        signal.signal(number, leave)


def ignore_requests() -> None:
    """Ignore the signals from here on: the process is about to end well."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Ignore the signals inside the context, which takes a few seconds and finishes the run."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    ignore_requests()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Preemption:
    """Whether this rank was asked to stop.

    Args:
        grace_seconds: Time from the signal to the end of the process. A run that cannot save in that time leaves with
            EXIT_FAULT; its last complete checkpoint stands.
    """

    def __init__(self, grace_seconds: float) -> None:
        self.asked = False
        self._grace_seconds = grace_seconds
        self._timer: threading.Timer | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Note the signals inside the context. Once one has come, further ones are ignored also after it.

        The time limit is for the inside: what comes after it has everything saved.
        """
        before = {number: signal.signal(number, self._note) for number in heeded_signals()}
        try:
            yield
            self._cancel()
        finally:
            for number, handler in before.items():
                signal.signal(number, signal.SIG_IGN if self.asked else handler)

    def done(self) -> None:
        """The state is saved: the time limit is met."""
        self.asked = True  # on a rank without a signal of its own: a launcher signals late when others are leaving
        self._cancel()

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            return
        self.asked = True
        self._timer = threading.Timer(self._grace_seconds, self._give_up)
        self._timer.daemon = True
        self._timer.start()

    def _give_up(self) -> None:
        print(
            f"preempted: no checkpoint could be finished within --preempt_grace_seconds {self._grace_seconds:g}; the "
            "last complete one stands",
            file=sys.stderr,
            flush=True,
        )
        os._exit(EXIT_FAULT)
