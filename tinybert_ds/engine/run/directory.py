"""A run's output directory: whose it is, what the run was started with, and whether it is finished."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import platform
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from tinybert_ds.engine.checkpoints.store import CHECKPOINT_DIRECTORY, complete_tags, stated_checkpoint
from tinybert_ds.engine.ranks.process_group import RANK_PREFIX
from tinybert_ds.errors import CheckpointError, ConfigError
from tinybert_ds.files import make_output_directory, refuse_file, refuse_foreign_files, write_atomically
from tinybert_ds.foreign_text import shown
from tinybert_ds.models.inherit.kept import holds_starts_alone
from tinybert_ds.records import read_run
from tinybert_ds.versions import installed_version

logger = logging.getLogger(__name__)

_RECORD = "run.json"
LOCK_FILE = ".lock"
_OWN_PREFIXES = (RANK_PREFIX, ".token-", ".run.json.", LOCK_FILE)
_PACKAGES = ("tinybert-ds", "torch", "deepspeed", "transformers", "tokenizers", "numpy")
_WATCHED = ("arguments", "deepspeed_config", "world_size", "versions", "host")
"""Of a launch: what the user is told about when it is not as it was."""


@dataclass
class RunDirectory:
    """The `--output_dir` of a training run; locked from `open` to `close`."""

    path: Path
    _lock: IO[str] | None = field(default=None, repr=False)

    def verify(self, identity: dict[str, Any], *, resume: str, whole: bool) -> dict[str, Any] | None:
        """Refuse what cannot become this run's directory; return what run.json holds. Changes nothing.

        Args:
            identity: What makes two runs the same (stage, models, data, seed, losses, batch, schedule), or a part.
            whole: Whether that is all: what an earlier run had beside it then makes that another run.

        Raises:
            ConfigError: it holds foreign files, another run, or a run although `resume` is "never".
            CheckpointError: `run.json` cannot be read.
        """
        refuse_file(self.path)
        record = self.record()
        if record is None:
            found = self.path.iterdir() if self.path.exists() else ()
            foreign = (path.name for path in found if not _is_of_a_beginning(path))
            refuse_foreign_files(self.path, foreign, "holds files that are no run of this program")
            return None
        if resume == "never":
            raise ConfigError(
                f"--output_dir {self.path} holds a run and --resume is never; give another directory, or --resume auto"
            )
        before = record["identity"]
        differences = _differences(before, {**dict.fromkeys(before), **identity} if whole else identity)
        if differences:
            raise ConfigError(
                f"--output_dir {self.path} holds another run; what differs: {'; '.join(differences)}. "
                "Give another directory, or the values of that run to go on with it (nothing was changed)"
            )
        return record

    def resolve_resume(self, resume: str) -> str:
        """Return what `--resume` means for this start: "auto" for a path that the launch before has taken already.

        So the same command goes on after a kill, and whoever starts it over and over loses nothing; the stated
        checkpoint itself may have been removed as an old one by then.

        Raises:
            CheckpointError: It is no complete checkpoint of this run.
        """
        if resume in ("auto", "never"):
            return resume
        directory, stated = self.path / CHECKPOINT_DIRECTORY, Path(resume).resolve()
        launches = (self.record() or {}).get("launches", [])
        before = launches[-1].get("arguments", {}).get("resume", "") if launches else ""
        taken = stated.parent == directory.resolve() and Path(before).name == stated.name
        if taken and any(tag >= stated.name for tag in complete_tags(directory)):
            return "auto"
        stated_checkpoint(directory, resume)
        return resume

    def open(self, identity: dict[str, Any], *, resume: str) -> None:
        """Create the directory, or check that it holds the same run, and lock it. Writes no record yet.

        Raises:
            ConfigError: See `verify`; also a directory that cannot be made.
            CheckpointError: Another process works in it.
        """
        before = self.verify(identity, resume=resume, whole=True)
        make_output_directory(self.path)
        if self._lock is None:
            self._take_lock()
        if self.record() != before:  # a run has begun and ended there since
            self.verify(identity, resume=resume, whole=True)

    def close(self) -> None:
        """Let go of the lock."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def note_start(self, identity: dict[str, Any], launch: dict[str, Any]) -> None:
        """Write run.json: identity, what the latest launch was started with, and all launches, the latest one last.

        What differs from the launch before is logged; what makes it the same run never does.
        """
        record = self.record() or {"identity": identity, "launches": []}
        launch = {"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "host": platform.node(), **launch}
        launch["versions"] = {name: installed_version(name) for name in _PACKAGES}
        changes = _changes(record["launches"][-1], launch) if record["launches"] else []
        record.update(launch, identity=identity, finished=None)
        record["launches"].append(launch)
        self._write(record)
        if changes:
            logger.info("since the last launch: %s", "; ".join(changes))

    def note_finish(self, total_steps: int, results: dict[str, float]) -> None:
        """Mark the run as finished after `total_steps`, with its final metrics."""
        record = self.record()
        assert record is not None
        record["finished"] = {"steps": total_steps, "results": results}
        self._write(record)

    def finished_results(self, total_steps: int) -> dict[str, float] | None:
        """Final metrics of a run that was finished with as many steps; None when there is something to do."""
        finished = (self.record() or {}).get("finished")
        return finished["results"] if finished and finished["steps"] == total_steps else None

    def record(self) -> dict[str, Any] | None:
        """The content of run.json, or None where there is none."""
        path = self.path / _RECORD
        return dict(read_run(path)) if path.is_file() else None

    def _take_lock(self) -> None:
        """Hold `.lock`; the system lets go of it when the process ends, however it ends.

        Raises:
            CheckpointError: Another process holds it.
        """
        handle = (self.path / LOCK_FILE).open("a+", encoding="utf-8")
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            handle.seek(0)
            raise CheckpointError(
                f"another run works in --output_dir {self.path} ({handle.read().strip() or 'unknown process'}); wait "
                "for it, stop it, or give another directory (nothing was changed)"
            ) from error
        except OSError as error:  # a file system without locks
            logger.warning("%s cannot be locked (%s): take care to start one run there", self.path, error.strerror)
        handle.truncate(0)
        handle.write(f"process {os.getpid()} on {platform.node()}\n")
        handle.flush()
        self._lock = handle

    def _write(self, record: dict[str, Any]) -> None:
        write_atomically(self.path / _RECORD, json.dumps(record, indent=2, sort_keys=True) + "\n")


def _is_of_a_beginning(path: Path) -> bool:
    """Whether a run that has no record yet leaves such a file or directory: it was stopped before its first step."""
    return path.name.startswith(_OWN_PREFIXES) or (path.name == CHECKPOINT_DIRECTORY and holds_starts_alone(path))


def _differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What `new` has otherwise; what it does not mention is not compared."""
    new = json.loads(json.dumps(new))  # tuples and lists are one thing in run.json
    return [
        f"{name} was {shown(repr(old.get(name)), 300)}, now {shown(repr(value), 300)}"
        for name, value in sorted(new.items())
        if old.get(name) != value
    ]


def _changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    old, new = (_flat({key: launch.get(key) for key in _WATCHED}) for launch in (before, now))
    for leaves in (old, new):
        leaves.pop("--local_rank", None)  # of the launcher's giving; world_size says it better
    return _differences(old, {**dict.fromkeys(old), **new})


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Leaves by dotted name; the parts that say what they are by themselves without their section's name."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            leaves |= _flat(value, "--" if key == "arguments" else f"{prefix}{key}.")
        else:
            leaves[f"{prefix}{key}"] = value
    return leaves
