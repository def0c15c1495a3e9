"""A run's output directory: whose it is, what the run was started with, and whether it is finished."""

from __future__ import annotations

import json
import platform
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tinybert_ds.errors import CheckpointError, ConfigError
from tinybert_ds.files import write_atomically

_RECORD = "run.json"
_OWN_PREFIX = ".token-"
_PACKAGES = ("tinybert-ds", "torch", "deepspeed", "transformers", "tokenizers", "numpy")


@dataclass(frozen=True)
class RunDirectory:
    """The `--output_dir` of a training run."""

    path: Path

    def open(self, identity: dict[str, Any], *, resume: str) -> None:
        """Create the directory, or check that it holds the same run. Writes nothing yet.

        Args:
            identity: What makes two runs the same: stage, models, data, seed, losses, batch, schedule.
            resume: `--resume`; "never" refuses a directory with a run.

        Raises:
            ConfigError: it holds foreign files, another run, or a run although `resume` is "never".
            CheckpointError: `run.json` cannot be read.
        """
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError(f"--output_dir {self.path} is a file; give a directory")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"--output_dir {self.path} cannot be made: {error.strerror}; give another one") from error
        record = self.record()
        if record is None:
            foreign = sorted(p.name for p in self.path.iterdir() if not p.name.startswith((_OWN_PREFIX, ".run.json.")))
            if foreign:
                raise ConfigError(
                    f"--output_dir {self.path} holds files that are no run of this program: {', '.join(foreign[:5])}"
                    f"{' ...' if len(foreign) > 5 else ''}; give an empty or new directory (nothing was changed)"
                )
            return
        if resume == "never":
            raise ConfigError(
                f"--output_dir {self.path} holds a run and --resume is never; give another directory, or --resume auto"
            )
        differences = _differences(record.get("identity", {}), identity)
        if differences:
            raise ConfigError(
                f"--output_dir {self.path} holds another run; what differs: {'; '.join(differences)}. "
                "Give another directory, or the values of that run to go on with it (nothing was changed)"
            )

    def note_start(self, identity: dict[str, Any], launch: dict[str, Any]) -> None:
        """Write run.json: identity, the latest launch (arguments, DeepSpeed config, world size) and those before."""
        record = self.record() or {"identity": identity, "launches": []}
        launch = {"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "host": platform.node(), **launch}
        record.update(identity=identity, versions={name: version(name) for name in _PACKAGES}, finished=None)
        record["launches"].append(launch)
        self._write(record)

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
        if not path.is_file():
            return None
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise CheckpointError(
                f"{path} is no JSON document ({error}); remove the directory to start anew"
            ) from error
        if not isinstance(record, dict) or "identity" not in record:
            raise CheckpointError(f"{path} is not a run of this program; give another --output_dir")
        return record

    def _write(self, record: dict[str, Any]) -> None:
        write_atomically(self.path / _RECORD, json.dumps(record, indent=2, sort_keys=True) + "\n")


def _differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    new = json.loads(json.dumps(new))  # tuples and lists are one thing in run.json
    return [
        f"{name} was {old.get(name)!r}, now {new.get(name)!r}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]
