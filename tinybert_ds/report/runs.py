"""What a run's directory tells: its record, its logged steps and its evaluations."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

from tinybert_ds.engine.watch.clock import add_clocks
from tinybert_ds.errors import CheckpointError, raise_all
from tinybert_ds.files import file_error
from tinybert_ds.records import read_metrics, read_run

logger = logging.getLogger(__name__)

Points = list[tuple[int, float]]
"""(step, value), steps rising."""


@dataclass(frozen=True)
class Run:
    """A run as its directory holds it."""

    name: str
    path: Path
    record: dict[str, Any]  # run.json
    steps: list[dict[str, Any]]  # logged training steps of metrics.jsonl
    evaluations: list[dict[str, Any]]

    @property
    def launch(self) -> dict[str, Any]:
        """The latest launch: arguments, deepspeed_config, world_size, from_step, time, host."""
        launches = self.record.get("launches") or [{}]
        return dict(launches[-1])

    @property
    def stage(self) -> str:
        """What was trained."""
        return str(self.record["identity"].get("stage", "unknown"))

    @property
    def results(self) -> dict[str, float]:
        """Final metrics; of a run that is not finished those of its latest evaluation."""
        finished = self.record.get("finished")
        if finished:
            return dict(finished["results"])
        latest = self.evaluations[-1] if self.evaluations else {}
        return {name: value for name, value in latest.items() if name != "step"}

    @property
    def state(self) -> str:
        """How far it is."""
        finished = self.record.get("finished")
        if finished:
            return f"finished at step {finished['steps']}"
        return f"stopped or running, at step {self.steps[-1]['step']}" if self.steps else "nothing logged yet"

    @property
    def restarts(self) -> list[int]:
        """Steps from which it was gone on with."""
        return [launch["from_step"] for launch in self.record.get("launches", []) if launch.get("from_step")]

    @property
    def clock(self) -> dict[str, float]:
        """Throughput and shares over all logged steps; empty where none is logged."""
        clocks = [line.get("clock", {}) for line in self.steps]
        clocks = [clock for clock in clocks if "steps" in clock and clock.get("seconds", 0) > 0]
        return reduce(add_clocks, clocks, {})

    def names(self) -> list[str]:
        """Every figure that has a curve, in the order of its first appearance."""
        lines = [*({**line, **line.get("clock", {})} for line in self.steps), *self.evaluations]
        return [name for name in dict.fromkeys(name for line in lines for name in line) if name not in _NO_CURVE]

    def curve(self, name: str) -> Points:
        """The logged values of a figure of the training steps, of their clock, or of the evaluations."""
        lines = self.evaluations if name.startswith("eval_") else self.steps
        found = ((line["step"], line.get(name, line.get("clock", {}).get(name))) for line in lines)
        return [(step, value) for step, value in found if isinstance(value, int | float) and abs(value) < _DRAWN_BELOW]


_DRAWN_BELOW = 1e100  # which neither NaN nor an infinite value is
_NO_CURVE = ("step", "clock", "seconds", "steps", "samples", "epoch")


def read_runs(directories: Sequence[Path]) -> list[Run]:
    """Read runs; a directory that holds no run itself stands for the runs in its subdirectories.

    A run whose records are damaged or cannot be read is named and left out.

    Raises:
        ConfigError: Some directory holds none, or all of them are left out; names them all.
    """
    paths: list[Path] = []
    problems = []
    for directory in directories:
        if (directory / "run.json").is_file():
            paths.append(directory)
            continue
        inside = sorted(path.parent for path in directory.glob("*/run.json")) if directory.is_dir() else []
        paths += inside
        if not inside:
            what = "holds no run (no run.json)" if directory.is_dir() else "is not a directory"
            problems.append(f"{directory} {what}; give the --output_dir of a training command")
    raise_all(problems)
    unique = list(dict.fromkeys(path.resolve() for path in paths))
    root = Path(os.path.commonpath([path.parent for path in unique]))
    runs = []
    for path in unique:
        try:
            runs.append(_read_run(path, path.relative_to(root).as_posix()))
        except CheckpointError as damage:
            problems.append(str(damage))
        except OSError as error:
            problems.append(str(file_error(error) or error))
    if not runs:
        raise_all(problems)
    for problem in problems:
        logger.warning("left out: %s", problem)
    return runs


def _read_run(path: Path, name: str) -> Run:
    record = read_run(path / "run.json")
    lines = read_metrics(path / "metrics.jsonl")
    steps = [line for line in lines if not _is_evaluation(line)]
    return Run(name, path, dict(record), steps, [line for line in lines if _is_evaluation(line)])


def _is_evaluation(line: dict[str, Any]) -> bool:
    return any(name.startswith("eval_") for name in line)  # a step that fp16 has left out may have no loss
