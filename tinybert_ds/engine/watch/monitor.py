"""Watching a run: metrics.jsonl, trackers, the progress bar, and where the time goes."""

from __future__ import annotations

import json
import logging
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from tinybert_ds.engine.watch.clock import add_clocks
from tinybert_ds.engine.watch.console import evaluation_line, step_line, summary_table
from tinybert_ds.engine.watch.tensorboard import RunStart
from tinybert_ds.engine.watch.trackers import open_trackers
from tinybert_ds.files import write_atomically
from tinybert_ds.records import read_metrics

logger = logging.getLogger(__name__)


class Stopwatch:
    """Throughput, and seconds spent in named parts of the step, since the last reading.

    On CUDA the parts are timed by events, so that nothing waits for the device between two readings.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._seconds: dict[str, float] = {}
        self._events: list[tuple[str, Any, Any]] = []
        self._samples = self._tokens = self._steps = self._bytes = 0
        self._started = time.perf_counter()

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Add the time of the block to `name`."""
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2)) if self._cuda else (None, None)
        if begin is not None:
            begin.record()
        started = time.perf_counter()
        yield
        if end is not None:
            end.record()
            self._events.append((name, begin, end))
        else:
            self._add(name, time.perf_counter() - started)

    def count(self, *, samples: int, tokens: int) -> None:
        """A step of so many samples (of all ranks) and real tokens (of this rank) is done."""
        self._samples += samples
        self._tokens += tokens
        self._steps += 1

    def carry(self, operation: str, num_bytes: int) -> None:
        """A collective carries so many bytes."""
        self._bytes += num_bytes

    def read(self) -> dict[str, float]:
        """Return what was measured since the last reading, and start anew.

        Returns:
            "seconds"; "steps"; "step_seconds"; "samples_per_second" (of all ranks); of this rank "tokens_per_second",
            "communicated_bytes_per_step" and each part's share of the time, such as "student_share".
        """
        if self._events:
            torch.cuda.synchronize()
            for name, begin, end in self._events:
                self._add(name, begin.elapsed_time(end) / 1e3)
        elapsed = max(time.perf_counter() - self._started, 1e-9)
        steps = max(1, self._steps)
        reading = {
            "seconds": elapsed,
            "steps": self._steps,
            "step_seconds": elapsed / steps,
            "communicated_bytes_per_step": self._bytes / steps,
            "samples_per_second": self._samples / elapsed,
            "tokens_per_second": self._tokens / elapsed,
            **{f"{name}_share": seconds / elapsed for name, seconds in self._seconds.items()},
        }
        self._seconds, self._events = {}, []
        self._samples = self._tokens = self._steps = self._bytes = 0
        self._started = time.perf_counter()
        return reading

    def _add(self, name: str, seconds: float) -> None:
        self._seconds[name] = self._seconds.get(name, 0.0) + seconds


class Monitor:
    """Writes on rank 0; does nothing elsewhere.

    Args:
        start_step: Step the run goes on from: later lines of an earlier attempt are cut off.
        name: Of this student among several; it begins the lines on the console.
        show_bar: Whether this run has the bar; of several students one has.
        report_to: Trackers that get the figures too.
    """

    def __init__(
        self,
        directory: Path,
        *,
        enabled: bool,
        start_step: int,
        total_steps: int,
        title: str,
        name: str | None = None,
        show_bar: bool = True,
        report_to: Sequence[str] = ("tensorboard",),
    ) -> None:
        self._enabled = enabled
        if not enabled:
            return
        path = directory / "metrics.jsonl"
        truncate_metrics(path, start_step)
        self._directory, self._title = directory, title
        self._prefix = f"{name}: " if name else ""
        self._steps = (start_step, total_steps)
        self._metrics = path.open("a", encoding="utf-8")
        self._trackers = open_trackers(report_to, directory, start_step=start_step)
        self._clock: dict[str, float] = {}
        self._started = time.perf_counter()
        # In a file the lines of the logged steps say the same; a bar would fill it with every refresh.
        wanted = show_bar and sys.stderr.isatty() and logger.isEnabledFor(logging.INFO)
        self._bar = tqdm(
            total=total_steps,
            initial=start_step,
            desc=title,
            unit="step",
            dynamic_ncols=True,
            disable=not wanted,
        )

    def describe(self, start: RunStart) -> None:
        """Write what the run is started with where the trackers show it."""
        if self._enabled:
            for tracker in self._trackers:
                tracker.describe(start)

    def advance(self) -> None:
        """One optimizer step is done."""
        if self._enabled:
            self._bar.update()

    def log_step(self, step: int, values: dict[str, float], clock: dict[str, float]) -> None:
        """Write a training step: `values` are reproducible, `clock` holds what depends on the machine's speed."""
        if not self._enabled:
            return
        self._write_line({"step": step, **values, "clock": clock})
        self.account(clock)
        shown = {name: value for name, value in clock.items() if name not in ("seconds", "steps")}
        self._track(step, {**values, **shown})
        first, last = self._steps
        seconds_left = (time.perf_counter() - self._started) / max(1, step - first) * (last - step)
        logger.info("%s%s", self._prefix, step_line(step, last, values, clock, seconds_left))

    def account(self, clock: dict[str, float]) -> None:
        """Count a reading of the stopwatch in the summary of the run."""
        if self._enabled:
            self._clock = add_clocks(self._clock, clock)

    def log_evaluation(self, step: int, metrics: dict[str, float]) -> None:
        """Write an evaluation; names start with "eval_"."""
        if not self._enabled:
            return
        self._write_line({"step": step, **metrics})
        self._track(step, metrics)
        logger.info("%s%s", self._prefix, evaluation_line(step, metrics))

    def flush(self) -> None:
        """Bring everything written so far to disk."""
        if self._enabled:
            self._metrics.flush()
            for tracker in self._trackers:
                tracker.flush()

    def finish(self, results: Mapping[str, float]) -> None:
        """Write the final metrics, show the summary and close the files."""
        if not self._enabled:
            return
        self._bar.close()
        self._metrics.close()
        for tracker in self._trackers:
            tracker.finish(self._steps[1], results)
            tracker.close()
        table = summary_table(self._title, self._directory, results, self._clock, steps=self._steps)
        logger.info("%s", table)

    def _track(self, step: int, values: Mapping[str, float | None]) -> None:
        for tracker in self._trackers:
            tracker.scalars(step, values)

    def _write_line(self, line: dict[str, Any]) -> None:
        assert all(not isinstance(v, float) or math.isfinite(v) for v in line.values()), f"not finite: {line}"
        try:
            self._metrics.write(json.dumps(line) + "\n")
            self._metrics.flush()
        except OSError as error:  # which does not know the file
            raise OSError(error.errno, error.strerror, self._metrics.name) from error


def truncate_metrics(path: Path, step: int) -> None:
    """Drop the lines after `step`, and a last line torn by a kill, so that a resumed run repeats nothing.

    A run that begins anew, with step 0, keeps none: what was said before the first step is said again.

    Raises:
        CheckpointError: A line is damaged.
    """
    if not path.is_file():
        return
    lines = zip(read_metrics(path), path.read_bytes().split(b"\n"), strict=False)
    write_atomically(path, b"".join(text + b"\n" for line, text in lines if 0 < step >= line["step"]))
