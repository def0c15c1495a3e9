"""Resumable checkpoints: complete or not there.

A checkpoint is a directory `checkpoints/step-N` that DeepSpeed fills, closed by `complete.json`, which lists its files
and is written when every rank has finished; `latest` is renamed into place after that. What `complete.json` does not
vouch for is never loaded: DeepSpeed's checkpoints are pickles.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch.distributed as dist

from tinybert_ds.engine.distributed import World, run_on_main
from tinybert_ds.errors import CheckpointError
from tinybert_ds.files import fsync_directory, write_atomically

logger = logging.getLogger(__name__)

_COMPLETE = "complete.json"
_TAG = re.compile(r"step-(\d+)")


@dataclass
class TrainingState:
    """All that a run needs beside its engine to go on: its place in the data follows from `step`."""

    step: int = 0
    samples: int = 0
    best_score: float | None = None
    best_step: int | None = None
    metrics: dict[str, float] = field(default_factory=dict)  # of the last evaluation


@dataclass(frozen=True)
class Checkpoints:
    """The resumable checkpoints of a run."""

    directory: Path
    world: World
    total_limit: int

    def save(self, engine: Any, state: TrainingState) -> None:
        """Write a checkpoint of all ranks; it counts only once `latest` names it."""
        tag = f"step-{state.step:08d}"
        directory = self.directory / tag
        if self.world.is_main and directory.exists():  # left by a run that was killed while saving
            shutil.rmtree(directory)
        dist.barrier()
        engine.save_checkpoint(str(self.directory), tag=tag, client_state=asdict(state), save_latest=False)
        dist.barrier()
        run_on_main(self.world, lambda: self._close(directory))

    def resume(self, engine: Any, choice: str) -> TrainingState:
        """Load the newest complete checkpoint into the engine.

        Args:
            engine: A fresh engine.
            choice: "auto", or the path of one checkpoint of this run; newer ones are removed then.

        Returns:
            The state to go on from; a fresh one when there is no checkpoint.

        Raises:
            CheckpointError: The stated path is no complete checkpoint of this run.
        """
        tag = run_on_main(self.world, lambda: self._choose(choice))
        if tag is None:
            return TrainingState()
        path, client_state = engine.load_checkpoint(str(self.directory), tag=tag)
        if path is None:
            raise CheckpointError(f"{self.directory / tag} could not be loaded; remove it to go on from an older one")
        state = TrainingState(**{name: client_state[name] for name in asdict(TrainingState())})
        logger.info("resumed from %s (step %d)", self.directory / tag, state.step)
        return state

    def complete_tags(self) -> list[str]:
        """Names of the complete checkpoints, oldest first."""
        if not self.directory.is_dir():
            return []
        tags = sorted(path.name for path in self.directory.iterdir() if _TAG.fullmatch(path.name))
        return [tag for tag in tags if _is_complete(self.directory / tag)]

    def _choose(self, choice: str) -> str | None:
        tags = self.complete_tags()
        if choice not in ("auto", "never"):
            path = Path(choice).resolve()
            if path.parent != self.directory.resolve() or path.name not in tags:
                raise CheckpointError(
                    f"--resume {choice} is no complete checkpoint of this run; complete ones in {self.directory}: "
                    f"{', '.join(tags) or 'none'}"
                )
            for newer in tags[tags.index(path.name) + 1 :]:  # the way they went is given up
                self._remove(newer)
            write_atomically(self.directory / "latest", path.name)
            return path.name
        newest = tags[-1] if tags else None
        latest = self.directory / "latest"
        if latest.is_file() and latest.read_text().strip() != newest:
            logger.warning("checkpoint %s is incomplete; falling back to %s", latest.read_text().strip(), newest)
        return newest

    def _close(self, directory: Path) -> None:
        files = sorted(path for path in directory.rglob("*") if path.is_file())
        for path in files:
            with path.open("rb") as handle:
                os.fsync(handle.fileno())
        sizes = {str(path.relative_to(directory)): path.stat().st_size for path in files}
        write_atomically(directory / _COMPLETE, json.dumps({"files": sizes}, indent=1))
        fsync_directory(self.directory)
        write_atomically(self.directory / "latest", directory.name)
        tags = self.complete_tags()
        for tag in tags[: -self.total_limit]:
            self._remove(tag)

    def _remove(self, tag: str) -> None:
        (self.directory / tag / _COMPLETE).unlink()  # first, so that a half-removed one does not count
        shutil.rmtree(self.directory / tag)


def _is_complete(directory: Path) -> bool:
    manifest = directory / _COMPLETE
    if not manifest.is_file() or manifest.stat().st_uid != os.getuid():
        return False
    files = json.loads(manifest.read_text())["files"]
    return all(
        (directory / name).is_file() and (directory / name).stat().st_size == size for name, size in files.items()
    )
