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
from typing import Any, NamedTuple

import torch.distributed as dist

from tinybert_ds.engine.distributed import World, run_on_main
from tinybert_ds.engine.trust import require_trusted
from tinybert_ds.errors import CheckpointError
from tinybert_ds.files import fsync_directory, write_atomically

logger = logging.getLogger(__name__)

_COMPLETE = "complete.json"
_TAG = re.compile(r"step-(\d+)")
DIRECTORY = "checkpoints"
"""Of the checkpoints, inside a run's output directory."""


class Layout(NamedTuple):
    """How a checkpoint is cut into files: what an engine must have in common with it to load it as it is."""

    world_size: int
    zero_stage: int
    dtype: str  # of the weights in the forward pass

    def __str__(self) -> str:
        return f"{self.world_size} rank(s), ZeRO stage {self.zero_stage}, {self.dtype}"


def layout_of(engine: Any, world: World) -> Layout:
    """Return the layout in which an engine writes checkpoints."""
    dtype, _ = engine.get_data_types()
    return Layout(world.size, int(engine.zero_optimization_stage()), str(dtype).removeprefix("torch."))


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
        """Write a checkpoint of all ranks; it counts only once `latest` names it. Older ones stay until `prune`."""
        tag = f"step-{state.step:08d}"
        directory = self.directory / tag
        if self.world.is_main and directory.exists():  # left by a run that was killed while saving
            shutil.rmtree(directory)
        dist.barrier()
        engine.save_checkpoint(str(self.directory), tag=tag, client_state=asdict(state), save_latest=False)
        dist.barrier()
        layout = layout_of(engine, self.world)
        run_on_main(self.world, lambda: self._close(directory, layout))

    def prune(self) -> None:
        """Remove the oldest checkpoints above the limit."""
        if self.world.is_main:
            for tag in self.complete_tags()[: -self.total_limit]:
                self._remove(tag)

    def resume(self, engine: Any, choice: str) -> TrainingState:
        """Load the newest complete checkpoint into the engine.

        Args:
            engine: A fresh engine.
            choice: "auto"; "none" for a start from the beginning; or the path of one checkpoint of this run. Those
                that are newer than the choice are removed: the way they went is given up.

        Returns:
            The state to go on from; a fresh one when there is no checkpoint.

        Raises:
            CheckpointError: The stated path is no complete checkpoint of this run.
        """
        tag = run_on_main(self.world, lambda: self._choose(choice))
        if tag is None:
            return TrainingState()
        run_on_main(self.world, lambda: require_trusted(self.directory / tag, _COMPLETE))
        run_on_main(self.world, lambda: require_layout(self.directory / tag, layout_of(engine, self.world)))
        path, client_state = engine.load_checkpoint(str(self.directory), tag=tag)
        if path is None:
            raise CheckpointError(f"{self.directory / tag} could not be loaded; remove it to go on from an older one")
        state = TrainingState(**{name: client_state[name] for name in asdict(TrainingState())})
        logger.info("resumed from %s (step %d)", self.directory / tag, state.step)
        return state

    def complete_tags(self) -> list[str]:
        """Names of the complete checkpoints, oldest first."""
        return complete_tags(self.directory)

    def _choose(self, choice: str) -> str | None:
        tags = self.complete_tags()
        if choice == "none":
            for tag in tags:
                self._remove(tag)
            (self.directory / "latest").unlink(missing_ok=True)
            return None
        if choice not in ("auto", "never"):
            path = stated_checkpoint(self.directory, choice)
            for newer in tags[tags.index(path.name) + 1 :]:
                self._remove(newer)
            write_atomically(self.directory / "latest", path.name)
            return path.name
        newest = tags[-1] if tags else None
        latest = self.directory / "latest"
        if latest.is_file() and latest.read_text().strip() != newest:
            logger.warning("checkpoint %s is incomplete; falling back to %s", latest.read_text().strip(), newest)
        return newest

    def _close(self, directory: Path, layout: Layout) -> None:
        files = sorted(path for path in directory.rglob("*") if path.is_file())
        for path in files:
            with path.open("rb") as handle:
                os.fsync(handle.fileno())
        sizes = {str(path.relative_to(directory)): path.stat().st_size for path in files}
        write_atomically(directory / _COMPLETE, json.dumps({"files": sizes, "layout": layout._asdict()}, indent=1))
        fsync_directory(self.directory)
        write_atomically(self.directory / "latest", directory.name)

    def _remove(self, tag: str) -> None:
        (self.directory / tag / _COMPLETE).unlink()  # first, so that a half-removed one does not count
        shutil.rmtree(self.directory / tag)


def complete_tags(directory: Path) -> list[str]:
    """Names of the complete checkpoints in a directory, oldest first."""
    if not directory.is_dir():
        return []
    tags = sorted(path.name for path in directory.iterdir() if _TAG.fullmatch(path.name))
    return [tag for tag in tags if _is_complete(directory / tag)]


def stated_checkpoint(directory: Path, choice: str) -> Path:
    """Return the checkpoint that `--resume PATH` names.

    Args:
        directory: The run's checkpoints.
        choice: The user's path.

    Raises:
        CheckpointError: It is no complete checkpoint of this run.
    """
    path, tags = Path(choice).resolve(), complete_tags(directory)
    if path.parent != directory.resolve() or path.name not in tags:
        raise CheckpointError(
            f"--resume {choice} is no complete checkpoint of this run; complete ones in {directory}: "
            f"{', '.join(tags) or 'none'}"
        )
    return path


def require_layout(directory: Path, wanted: Layout) -> None:
    """Refuse to load a complete checkpoint into an engine that cuts its state otherwise.

    Raises:
        CheckpointError: World size, ZeRO stage or dtype differ.
    """
    found = Layout(**json.loads((directory / _COMPLETE).read_text())["layout"])
    if found != wanted:
        raise CheckpointError(
            f"{directory} was written with {found}; this launch has {wanted}. Launch it as it was, or start anew in "
            "another --output_dir"
        )


def _is_complete(directory: Path) -> bool:
    manifest = directory / _COMPLETE
    if not manifest.is_file():
        return False
    files = json.loads(manifest.read_text())["files"]
    return all(
        (directory / name).is_file() and (directory / name).stat().st_size == size for name, size in files.items()
    )
