"""Directories as runs leave them, written by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def write_run(
    directory: Path,
    *,
    steps: int = 6,
    loss: float = 2.0,
    stage: str = "general_distill",
    arguments: dict[str, Any] | None = None,
    finished: dict[str, float] | None = None,
    from_steps: Sequence[int] = (0,),
) -> Path:
    """Write run.json and metrics.jsonl of a run whose loss is `loss` / step; return the directory."""
    directory.mkdir(parents=True)
    launches = [
        {
            "arguments": {"learning_rate": 1e-3, "max_steps": None, **(arguments or {})},
            "deepspeed_config": {"zero_optimization": {"stage": 2}},
            "world_size": 2,
            "from_step": step,
            "time": "2024-01-02T03:04:05+0000",
        }
        for step in from_steps
    ]
    record = {"identity": {"stage": stage}, "launches": launches, "versions": {"torch": "2.13.0"}, "finished": None}
    if finished is not None:
        record["finished"] = {"steps": steps, "results": finished}
    (directory / "run.json").write_text(json.dumps(record))
    lines = []
    for step in range(1, steps + 1):
        clock = {"seconds": 1.0, "steps": 1, "step_seconds": 1.0, "samples_per_second": 10.0 * step}
        clock |= {"tokens_per_second": 100.0, "student_share": 0.75, "communicated_bytes_per_step": 2**20}
        values = {"loss": loss / step, "hidden_loss": loss / step, "hidden_loss/state_0": loss / step}
        lines.append({"step": step, **values, "learning_rate": 1e-3, "clock": clock})
        if step % 3 == 0:
            lines.append({"step": step, "eval_accuracy": 1 - 1 / step if step < steps else 0.5})
    (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return directory
