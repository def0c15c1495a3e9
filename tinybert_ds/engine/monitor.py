"""Watching a run: metrics.jsonl, TensorBoard, the progress bar, and where the time goes."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from tinybert_ds.files import write_atomically

_LOG_SECONDS = 10.0
"""Between two lines of the progress bar where it goes to a file and every refresh stays."""


class Stopwatch:
    """Throughput, and seconds spent in named parts of the step, since the last reading.

    On CUDA the parts are timed by events, so that nothing waits for the device between two readings.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._seconds: dict[str, float] = {}
        self._events: list[tuple[str, Any, Any]] = []
        self._samples = self._tokens = 0
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

    def read(self) -> dict[str, float]:
        """Return samples/s (all ranks), tokens/s (this rank) and each part's share of the time, and start anew."""
        if self._events:
            torch.cuda.synchronize()
            for name, begin, end in self._events:
                self._add(name, begin.elapsed_time(end) / 1e3)
        elapsed = max(time.perf_counter() - self._started, 1e-9)
        reading = {
            "samples_per_second": self._samples / elapsed,
            "tokens_per_second": self._tokens / elapsed,
            **{f"{name}_share": seconds / elapsed for name, seconds in self._seconds.items()},
        }
        self._seconds, self._events, self._samples, self._tokens = {}, [], 0, 0
        self._started = time.perf_counter()
        return reading

    def _add(self, name: str, seconds: float) -> None:
        self._seconds[name] = self._seconds.get(name, 0.0) + seconds


class Monitor:
    """Writes on rank 0; does nothing elsewhere.

    Args:
        directory: The run's output directory.
        enabled: Whether this is rank 0.
        start_step: Step the run goes on from: later lines of an earlier attempt are cut off.
        total_steps: Steps of the run, for the progress bar.
        title: What the bar is called.
    """

    def __init__(self, directory: Path, *, enabled: bool, start_step: int, total_steps: int, title: str) -> None:
        self._enabled = enabled
        if not enabled:
            return
        path = directory / "metrics.jsonl"
        truncate_metrics(path, start_step)
        self._metrics = path.open("a", encoding="utf-8")
        self._writer = SummaryWriter(str(directory / "tensorboard"), purge_step=start_step + 1)
        interval = 0.1 if sys.stderr.isatty() else _LOG_SECONDS
        self._bar = tqdm(
            total=total_steps, initial=start_step, desc=title, unit="step", dynamic_ncols=True, mininterval=interval
        )

    def advance(self) -> None:
        """One optimizer step is done."""
        if self._enabled:
            self._bar.update()

    def log_step(self, step: int, values: dict[str, float], clock: dict[str, float]) -> None:
        """Write a training step: `values` are reproducible, `clock` holds what depends on the machine's speed."""
        if not self._enabled:
            return
        self._write_line({"step": step, **values, "clock": clock})
        for name, value in values.items():
            self._writer.add_scalar(f"{_group(name)}/{name}", value, step)
        for name, value in clock.items():
            group = "time" if name.endswith("_share") else "throughput"
            self._writer.add_scalar(f"{group}/{name}", value, step)
        self._bar.set_postfix_str(
            f"loss {values['loss']:.4g}, {clock['samples_per_second']:.0f} samples/s", refresh=False
        )

    def log_evaluation(self, step: int, metrics: dict[str, float]) -> None:
        """Write an evaluation; names start with "eval_"."""
        if not self._enabled:
            return
        self._write_line({"step": step, **metrics})
        for name, value in metrics.items():
            self._writer.add_scalar(f"eval/{name.removeprefix('eval_')}", value, step)
        self._bar.write(f"step {step}: " + ", ".join(f"{name} {value:.4f}" for name, value in metrics.items()))

    def flush(self) -> None:
        """Bring everything written so far to disk."""
        if self._enabled:
            self._metrics.flush()
            self._writer.flush()

    def close(self) -> None:
        """Close the files and the bar."""
        if self._enabled:
            self._bar.close()
            self._metrics.close()
            self._writer.close()

    def _write_line(self, line: dict[str, Any]) -> None:
        assert all(not isinstance(v, float) or math.isfinite(v) for v in line.values()), f"not finite: {line}"
        self._metrics.write(json.dumps(line) + "\n")
        self._metrics.flush()


def _group(name: str) -> str:
    if "/" in name:  # attention_loss/layer_2, hidden_loss/state_0
        return "layers"
    return "losses" if name.endswith("loss") else "train"


def truncate_metrics(path: Path, step: int) -> None:
    """Drop the lines after `step`, and a last line torn by a kill, so that a resumed run repeats nothing."""
    if not path.is_file():
        return
    whole = [line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]
    write_atomically(path, "".join(line for line in whole if json.loads(line)["step"] <= step))
