"""Resumable checkpoints: complete or not there.

A checkpoint is a directory `checkpoints/step-N` that DeepSpeed fills, closed by `complete.json`, which lists its files
with their hashes and is written when every rank has finished; `latest` is renamed into place after that. What
`complete.json` does not vouch for is never loaded: DeepSpeed's checkpoints are pickles.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from tinybert_ds.data.indexed import FileRecord, hash_file
from tinybert_ds.engine.checkpoints.best_student import best_directory, prune_best
from tinybert_ds.engine.checkpoints.convert import TEMPORARY_PREFIX, Layout, layout_of, load_converted, must_convert
from tinybert_ds.engine.checkpoints.guarded_writer import guarded_writer
from tinybert_ds.engine.checkpoints.ownership import require_own_files
from tinybert_ds.engine.ranks.process_group import World, barrier, gather_objects, run_on_main
from tinybert_ds.errors import CheckpointError
from tinybert_ds.files import fsync_directory, write_atomically
from tinybert_ds.models.saving import SCRATCH_PREFIX
from tinybert_ds.records import CheckpointRecord, read_checkpoint, sealed

logger = logging.getLogger(__name__)

_COMPLETE = "complete.json"
_TAG = re.compile(r"step-(\d+)")
CHECKPOINT_DIRECTORY = "checkpoints"
"""Of the checkpoints, inside a run's output directory."""


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
        """Write a checkpoint of all ranks; it counts only once `latest` names it. Older ones stay until `prune`.

        Raises:
            CheckpointError: On every rank, when any of them could not write; the checkpoints before stand.
        """
        tag = f"step-{state.step:08d}"
        directory = self.directory / tag
        if self.world.is_main and directory.exists():  # left by a run that was killed while saving
            shutil.rmtree(directory)
        barrier()
        with guarded_writer(engine) as writer:
            engine.save_checkpoint(str(self.directory), tag=tag, client_state=asdict(state), save_latest=False)
        failures = [failure for failure in gather_objects(writer.failure) if failure]
        layout = layout_of(engine, self.world)
        run_on_main(self.world, lambda: self._close(directory, layout, state.best_step, failures))

    def prune(self) -> None:
        """Remove the oldest checkpoints above the limit, never the last complete one, nor the best student of any."""
        if self.world.is_main:
            for tag in self.complete_tags()[: -self.total_limit]:
                self._remove(tag)
            self._prune_best()

    def resume(self, engine: Any, choice: str) -> TrainingState:
        """Load the newest complete checkpoint into the engine.

        Args:
            choice: "auto"; "none" for a start from the beginning; or the path of one checkpoint of this run. Those
                that are newer than the choice are removed: the way they went is given up.

        Returns:
            The state to go on from; a fresh one when there is no checkpoint.

        Raises:
            CheckpointError: The stated path is no complete checkpoint of this run.
        """
        tag = run_on_main(self.world, lambda: self._choose(choice))
        if self.world.is_main:
            self._prune_best()  # what no checkpoint names was kept on a way that is given up
            self._sweep()
        if tag is None:
            return TrainingState()
        run_on_main(self.world, lambda: require_own_files(self.directory / tag, _COMPLETE))
        found = run_on_main(self.world, lambda: read_layout(self.directory / tag))
        wanted = layout_of(engine, self.world)
        if must_convert(found, wanted, str(self.directory / tag)):
            path, client_state = load_converted(engine, self.directory, tag, self.world)
            logger.info("%s was written with %s; it was converted for %s", tag, found, wanted)
        else:
            path, client_state = engine.load_checkpoint(str(self.directory), tag=tag)
        if path is None:
            raise CheckpointError(f"{self.directory / tag} could not be loaded; remove it to go on from an older one")
        state = TrainingState(**{name: client_state[name] for name in asdict(TrainingState())})
        logger.info("resumed from %s (step %d)", self.directory / tag, state.step)
        return state

    def complete_tags(self) -> list[str]:
        """Names of the complete checkpoints, oldest first."""
        return complete_tags(self.directory)

    def verify(self, tag: str) -> bool:
        """Whether the files of a complete checkpoint are as they were written; where not, it counts as torn."""
        damage = find_damage(self.directory / tag)
        if damage is not None:
            logger.warning("%s", damage)
            (self.directory / tag / _COMPLETE).unlink()
        return damage is None

    def _choose(self, choice: str) -> str | None:
        tags = self.complete_tags()
        if choice == "none":
            for tag in tags:
                self._remove(tag)
            (self.directory / "latest").unlink(missing_ok=True)
            return None
        if choice not in ("auto", "never"):
            path = stated_checkpoint(self.directory, choice)
            if damage := find_damage(path):
                raise CheckpointError(f"--resume {choice}: {damage}; take another one of {', '.join(tags)}")
            for newer in tags[tags.index(path.name) + 1 :]:
                self._remove(newer)
            write_atomically(self.directory / "latest", path.name)
            return path.name
        while tags and not self.verify(tags[-1]):
            tags.pop()
        newest = tags[-1] if tags else None
        latest = self.directory / "latest"
        torn = [tag for tag in _tags(self.directory) if newest is None or tag > newest]
        if torn:
            logger.warning("checkpoint %s is incomplete; falling back to %s", torn[-1], newest or "the start")
        elif latest.is_file() and (named := latest.read_text(errors="replace").strip()) != newest:
            logger.warning("checkpoint %s is gone; falling back to %s", named, newest)
        return newest

    def last_good(self) -> str:
        """A sentence about the newest complete checkpoint."""
        tags = self.complete_tags()
        return f"The last good checkpoint is {self.directory / tags[-1]}" if tags else "There is no checkpoint yet"

    def _close(self, directory: Path, layout: Layout, best_step: int | None, failures: Sequence[str]) -> None:
        try:
            if not failures:
                self._seal(directory, layout, best_step)
        except OSError as error:
            failures = [f"{directory}: {error}"]
        if failures:
            (directory / _COMPLETE).unlink(missing_ok=True)
            free = shutil.disk_usage(self.directory).free
            shutil.rmtree(directory, ignore_errors=True)
            raise CheckpointError(
                f"a checkpoint could not be written ({'; '.join(failures)}; {free / 2**20:.0f} MB were free there). "
                f"{self.last_good()}: make room and start the same command again"
            )

    def _seal(self, directory: Path, layout: Layout, best_step: int | None) -> None:
        files = sorted(path for path in directory.rglob("*") if path.is_file())
        for path in files:
            with path.open("rb") as handle:
                os.fsync(handle.fileno())
        records = {str(path.relative_to(directory)): _hash(path) for path in files}
        manifest = {
            "files": {name: record.bytes for name, record in records.items()},
            "xxh3": {name: record.xxh3 for name, record in records.items()},
            "layout": layout._asdict(),
            "best_step": best_step,
        }
        write_atomically(directory / _COMPLETE, json.dumps(sealed(manifest), indent=1))
        fsync_directory(self.directory)
        write_atomically(self.directory / "latest", directory.name)

    def _prune_best(self) -> None:
        named = (read_manifest(self.directory / tag)["best_step"] for tag in self.complete_tags())
        prune_best(self.directory, {step for step in named if step is not None})

    def _sweep(self) -> None:
        """Remove what killed launches have left half done; the run is locked, so that no other one is at it."""
        complete = self.complete_tags()
        torn = [self.directory / tag for tag in _tags(self.directory) if complete and tag < complete[-1]]
        temporary = (self.directory.glob(f"{TEMPORARY_PREFIX}*"), self.directory.parent.glob(f"{SCRATCH_PREFIX}*"))
        for path in chain((path for path in torn if path.name not in complete), *temporary):
            logger.info("removing %s: a launch that was killed has left it unfinished", path)
            shutil.rmtree(path, ignore_errors=True)  # what cannot be removed does no harm

    def _remove(self, tag: str) -> None:
        (self.directory / tag / _COMPLETE).unlink()  # first, so that a half-removed one does not count
        shutil.rmtree(self.directory / tag)


def common_choices(all_checkpoints: Sequence[Checkpoints], resume: str) -> list[str]:
    """Return what each student of a run is to resume from, so that all stand at the same step.

    Args:
        resume: The user's `--resume`; it holds as it is for a single student.
    """
    if len(all_checkpoints) == 1:
        return [resume]
    common = set.intersection(*(set(checkpoints.complete_tags()) for checkpoints in all_checkpoints))
    while common and not all(checkpoints.verify(max(common)) for checkpoints in all_checkpoints):
        common.remove(max(common))
    newest = max(common, default=None)
    return [str(checkpoints.directory / newest) if newest else "none" for checkpoints in all_checkpoints]


def complete_tags(directory: Path) -> list[str]:
    """Names of the complete checkpoints in a directory, oldest first."""
    return [tag for tag in _tags(directory) if _is_complete(directory / tag)]


def stated_checkpoint(directory: Path, choice: str) -> Path:
    """Return the checkpoint that `--resume PATH` names.

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


def find_damage(directory: Path) -> str | None:
    """Return what is wrong with the content of a complete checkpoint, in a clause; None when nothing is.

    PyTorch would load flipped bytes in silence: it does not look at the check sums in its own files.

    Raises:
        CheckpointError: A file that is there cannot be read.
    """
    for name, written in read_manifest(directory)["xxh3"].items():
        try:
            if _hash(directory / name).xxh3 != written:
                return f"checkpoint {directory} is damaged: {name} is not what was written"
        except FileNotFoundError:
            return f"checkpoint {directory} is damaged: {name} is gone"
        except OSError as error:  # perhaps only for now: nothing is given up for it
            raise CheckpointError(
                f"checkpoint {directory}: {name} cannot be read ({error.strerror}). Mend that and start the same "
                "command again, or give another checkpoint with --resume PATH"
            ) from error
    return None


def _hash(path: Path) -> FileRecord:
    return hash_file(path, advance=lambda _: None)  # no progress bar: training shows its own


def read_layout(directory: Path) -> Layout:
    """Return the layout that a complete checkpoint was written with."""
    return Layout(**read_manifest(directory)["layout"])


def read_manifest(directory: Path) -> CheckpointRecord:
    """Return what closes a complete checkpoint: "files" with their sizes, their "xxh3", "layout" and "best_step".

    Raises:
        CheckpointError: It is damaged.
    """
    return read_checkpoint(directory / _COMPLETE)


def _tags(directory: Path) -> list[str]:
    if not directory.is_dir():
        return []
    return sorted(path.name for path in directory.iterdir() if _TAG.fullmatch(path.name))


def _is_complete(directory: Path) -> bool:
    manifest = directory / _COMPLETE
    if not manifest.is_file():
        return False
    try:
        content = read_manifest(directory)
    except CheckpointError:  # a damaged disk: the file itself is written atomically
        return False
    best, files = content["best_step"], content["files"].items()
    return (best is None or best_directory(directory.parent, best).is_dir()) and all(
        (directory / name).is_file() and (directory / name).stat().st_size == size for name, size in files
    )
