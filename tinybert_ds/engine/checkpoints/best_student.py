"""The best student so far: kept whole beside the checkpoints until the run ends.

A checkpoint names the best student of its time (`best_step`), and `checkpoints/best-N` is not removed while a complete
checkpoint names it. A kill between "the best is kept" and the checkpoint that says so leaves a newer `best-N` that no
checkpoint names: it goes when the run is resumed, and the repeated steps make it again. The output directory itself is
filled at the end, from here, and once more if that was interrupted.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Collection
from pathlib import Path

from tinybert_ds.engine.ranks.process_group import World, write_on_main
from tinybert_ds.files import fsync_directory

_NAME = re.compile(r"best-(\d+)")


def best_directory(checkpoints: Path, step: int) -> Path:
    """Return where the student of a step is kept while it is the best."""
    return checkpoints / f"best-{step:08d}"


def keep_best(checkpoints: Path, step: int, export: Callable[[Path], None], world: World) -> None:
    """Keep the current student as the best one, whole or not at all; called on all ranks."""
    final = best_directory(checkpoints, step)
    unfinished = final.with_name(f".{final.name}.unfinished")
    export(unfinished)

    def finish() -> None:
        shutil.rmtree(final, ignore_errors=True)  # left by a run that was killed before it saved a checkpoint
        unfinished.rename(final)
        fsync_directory(checkpoints)

    write_on_main(world, final, finish)


def prune_best(checkpoints: Path, named: Collection[int]) -> None:
    """Remove the students that are the best of no checkpoint."""
    for path in checkpoints.iterdir() if checkpoints.is_dir() else ():
        match = _NAME.fullmatch(path.name)
        if path.name.startswith(".best-") or (match and int(match[1]) not in named):
            shutil.rmtree(path)
