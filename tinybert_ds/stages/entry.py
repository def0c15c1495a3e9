"""How the commands that run on ranks start: before DeepSpeed is imported, which chooses its accelerator right then."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise

from tinybert_ds.command_line import run_command
from tinybert_ds.errors import raise_all
from tinybert_ds.preemption import ignore_requests, leave_when_asked
from tinybert_ds.versions import requirements, version_problems

_TRUE = ("true", "yes", "t", "y", "1")


def prepare(*, on_cpu: bool = False) -> None:
    """Set up this process; DeepSpeed, and the stage with it, is imported only after this.

    Raises:
        SystemExit: 2 where packages are missing or older than needed.
    """
    leave_when_asked()
    run_command(lambda: raise_all(version_problems(requirements())))
    faulthandler.enable()  # a file that is cut short while it is mapped ends the process with SIGBUS: say where
    import torch  # noqa: PLC0415 - takes a second, in which a request to stop is answered already

    if on_cpu or wants_cpu(sys.argv[1:]) or not torch.accelerator.is_available():
        os.environ["DS_ACCELERATOR"] = "cpu"


def run(main: Callable[[], None]) -> None:
    """Run a stage's command to the end of the process, with the exit code that its end has."""
    from tinybert_ds.engine.ranks.lost_ranks import lost_ranks_reported  # noqa: PLC0415 - imports torch

    def guarded() -> None:
        with lost_ranks_reported(lambda: "What was saved before stands"):
            main()
        ignore_requests()
        _leave_process_group()

    run_command(guarded)


def _leave_process_group() -> None:
    """Leave the ranks' group where there is one; NCCL warns of a group that is still there when the process ends."""
    import torch.distributed as dist  # noqa: PLC0415 - see above

    if dist.is_initialized() and dist.get_backend() == dist.Backend.NCCL:
        with contextlib.suppress(RuntimeError):  # another rank may have gone first: the run is finished all the same
            dist.destroy_process_group()


def wants_cpu(words: Sequence[str]) -> bool:
    """Whether a command line says `--no_cuda` in one of the ways that flags are written; the last one counts."""
    wanted = False
    for word, following in pairwise([*words, "-"]):
        flag, equals, value = word.partition("=")
        if flag in ("--no_cuda", "--no-cuda"):
            given = value if equals else following
            wanted = given.startswith("-") or given.lower() in _TRUE
    return wanted
