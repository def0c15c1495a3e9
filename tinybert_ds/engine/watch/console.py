"""What a run shows on the console: a line of progress, the table at its end, messages that leave the bar whole."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from tinybert_ds.engine.watch.clock import shares


class ConsoleHandler(logging.Handler):
    """Writes messages to standard error, above a progress bar that stands there."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            tqdm.write(self.format(record), file=sys.stderr)
            sys.stderr.flush()
        except OSError:  # such as a closed pipe: the run itself must go on
            self.handleError(record)


def set_up_console(level: str, *, is_main: bool) -> None:
    """Show our messages from `level` on and other libraries' warnings; on other ranks than the first, errors only."""
    # DeepSpeed calls collectives by names that torch is going to change: nothing for users to do.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    logging.captureWarnings(True)
    handler = ConsoleHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logging.basicConfig(handlers=[handler], force=True)
    logging.getLogger().setLevel(logging.WARNING if is_main else logging.ERROR)
    logging.getLogger("tinybert_ds").setLevel(level.upper() if is_main else logging.ERROR)


def step_line(
    step: int, total_steps: int, values: Mapping[str, float], clock: Mapping[str, float], seconds_left: float
) -> str:
    """Return the line of a logged step: how far, the losses, how fast, how long still.

    Args:
        values: What metrics.jsonl holds of the step; terms of single layers are left out. It has no "loss" where that
            was not finite in a step that fp16's loss scaler has left out.
    """
    losses = [name for name in values if name.endswith("loss") and "/" not in name and name != "loss"]
    parts = ", ".join(f"{name.removesuffix('_loss')} {values[name]:.4g}" for name in losses)
    loss = f"{values['loss']:.4g}" if "loss" in values else "not finite, step left out"
    figures = [
        f"step {step:>{len(str(total_steps))}}/{total_steps} ({step / total_steps:.0%})",
        f"loss {loss}" + (f" ({parts})" if len(losses) > 1 else ""),
        f"lr {values['learning_rate']:.3g}",
        f"{clock['samples_per_second']:.1f} samples/s",
        f"{clock['tokens_per_second']:,.0f} tokens/s",
        f"{duration(seconds_left)} left",
    ]
    return "  ".join(figures)


def evaluation_line(step: int, metrics: Mapping[str, float]) -> str:
    """Return the line of an evaluation."""
    return f"step {step}: " + ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())


def duration(seconds: float) -> str:
    """Return a time as `48 s`, `12:05 min` or `3:07:00 h`."""
    whole = round(seconds)
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minutes:02}:{rest:02} h"
    return f"{minutes}:{rest:02} min" if minutes else f"{rest} s"


def summary_table(
    title: str, directory: Path, results: Mapping[str, float], clock: Mapping[str, float], *, steps: tuple[int, int]
) -> str:
    """Return the table at the end of a run.

    Args:
        clock: "seconds", throughput and shares of this launch, from its first step to its last.
        steps: The step that this launch started from, and the last one.
    """
    first, last = steps
    rows = [(name, f"{value:.4f}") for name, value in results.items()] or [("metrics", "none: nothing was evaluated")]
    resumed = f", {first} of them in earlier launches" if first else ""
    rows.append(("steps", f"{last}{resumed}"))
    if clock:
        rows += [
            ("time", duration(clock["seconds"])),
            (
                "throughput",
                f"{clock['samples_per_second']:.1f} samples/s, {clock['tokens_per_second']:,.0f} tokens/s, "
                f"{clock['step_seconds']:.3g} s a step",
            ),
            ("time shares", time_shares(clock)),
        ]
    rows.append(("model", str(directory)))
    return "\n".join([f"{title} is finished", *_aligned(rows)])


def time_shares(clock: Mapping[str, float]) -> str:
    """Return what the time went into, the rest as "other"."""
    text = ", ".join(f"{part} {share:.0%}" for part, share in shares(clock).items())
    communication = clock.get("communication_share")
    return text if communication is None else f"{text}; communication, inside these, {communication:.0%}"


def _aligned(rows: Sequence[tuple[str, str]]) -> list[str]:
    width = max(len(name) for name, _ in rows)
    return [f"  {name:<{width}}  {value}" for name, value in rows]
