"""Faults at a stated moment of a rank's life: functions that `start_ranks` calls in its process before anything else.

They must be picklable: give them as `functools.partial` of the functions here.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tinybert_ds import command_line
from tinybert_ds.engine.run.run import Run
from tinybert_ds.stages import general_distill


def change_environment(changes: Mapping[str, str | None]) -> None:
    """Set variables, unset those that are None, and leave at once."""
    for name, value in changes.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    leave_at_once()


def die() -> None:
    """End this process as `kill -9` does."""
    os.kill(os.getpid(), signal.SIGKILL)


def die_preparing() -> None:
    """Die when general distillation opens its data."""
    general_distill.open_corpora = lambda *_: die()


def die_writing_checkpoint(tag: str) -> None:
    """Die in the middle of the first file that this rank writes of a checkpoint."""
    save = torch.save

    def half_save(state: Any, path: str, **settings: Any) -> None:
        save(state, path, **settings)
        if tag in str(path):
            os.truncate(path, os.path.getsize(path) // 2)
            die()

    torch.save = half_save


def ask_to_stop_writing_checkpoint(tag: str) -> None:
    """Send SIGTERM to this process when it writes the first file of a checkpoint."""
    save = torch.save

    def asked_save(state: Any, path: str, **settings: Any) -> None:
        if tag in str(path):
            os.kill(os.getpid(), signal.SIGTERM)
        save(state, path, **settings)

    torch.save = asked_save


def ask_to_stop_writing_results() -> None:
    """Send SIGTERM to this process when a run writes its results after the last step."""
    finish = Run._finish

    def asked_finish(*parts: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return finish(*parts)

    Run._finish = asked_finish


def die_replacing(directory: Path, moves: int) -> None:
    """Die after so many files were moved over those of a directory."""
    replace = os.replace
    left = moves

    def counted(source: Any, target: Any) -> None:
        nonlocal left
        if Path(target).parent == directory and Path(target).name != "run.json":
            left -= 1
            if left < 0:
                die()
        replace(source, target)

    os.replace = counted


def leave_at_once() -> None:
    """Let a rank that is not the first leave without waiting for the launcher that a test does not have."""
    command_line.SIBLING_DELAY_SECONDS = 0.1
