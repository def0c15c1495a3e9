"""The run as TensorBoard shows it: its health first, then where the time goes, then the layers."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from tinybert_ds.foreign_text import table_cell

HEALTH, TIME, LAYERS, PLACE, FINAL = "1_health", "2_time", "3_layers", "4_place", "5_final"
"""Groups of scalars; TensorBoard sorts them by name."""

_TIME_NAMES = ("step_seconds", "communicated_bytes_per_step", "padding_share")
_PLACE_NAMES = ("epoch", "samples")


def tag(name: str) -> str:
    """Return the group and name under which a figure of metrics.jsonl, or of its clock, is shown."""
    if "/" in name:  # attention_loss/layer_2, hidden_loss/state_0
        return f"{LAYERS}/{name}"
    if name.endswith("_share") or name in _TIME_NAMES:
        return f"{TIME}/{name}"
    return f"{PLACE}/{name}" if name in _PLACE_NAMES else f"{HEALTH}/{name}"


def layout(names: Iterable[str]) -> dict[str, dict[str, list[Any]]]:
    """Return the layout of the custom-scalars page for the figures of a training step."""
    layers = sorted({name.partition("/")[0] for name in names if "/" in name})
    pages = {
        "Health": {
            "losses": [f"{HEALTH}/(?!eval_).*loss$"],
            "evaluation": [f"{HEALTH}/eval_.*"],
            "learning rate": [f"{HEALTH}/learning_rate$"],
            "gradient norm": [f"{HEALTH}/grad_norm$"],
            "throughput": [f"{HEALTH}/samples_per_second$"],
        },
        "Where the time goes": {
            "shares of the time": [f"{TIME}/(data|teacher|student|evaluation|save|communication)_share$"],
            "seconds a step": [f"{TIME}/step_seconds$"],
            "padding": [f"{TIME}/padding_share$"],
        },
        "Layers": {name.replace("_", " "): [f"{LAYERS}/{name}/.*"] for name in layers},
    }
    return {
        page: {title: ["Multiline", tags] for title, tags in charts.items()} for page, charts in pages.items() if charts
    }


def hyper_parameters(learning: Mapping[str, Any], run: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the HParams page lists: arguments that change what is learnt, and `run`, such as the world size."""
    known = {name: value for name, value in {**learning, **run}.items() if value is not None and value is not False}
    return {name: value if isinstance(value, bool | int | float | str) else str(value) for name, value in known.items()}


def arguments_table(arguments: Mapping[str, Any]) -> str:
    """Return the arguments as a Markdown table."""
    rows = [f"| {name} | {table_cell(value)} |" for name, value in sorted(arguments.items()) if value is not None]
    return "\n".join(["| argument | value |", "|---|---|", *rows])


def _quieten_event_threads() -> None:
    """Have no traceback of the threads that write events: their error is raised again at the next call, and told."""
    before = threading.excepthook

    def quiet(problem: threading.ExceptHookArgs) -> None:
        is_ours = type(problem.thread).__module__.startswith("tensorboard.")
        if not (is_ours and isinstance(problem.exc_value, OSError)):
            before(problem)

    if getattr(before, "__qualname__", "") != quiet.__qualname__:  # once for all boards
        threading.excepthook = quiet


class RunStart(NamedTuple):
    """What a run is started with."""

    arguments: Mapping[str, Any]
    learning: Mapping[str, Any]  # the part of the arguments that changes what is learnt
    deepspeed_config: Mapping[str, Any]
    world_size: int


class Tracker:
    """What a run tells a tracker, which makes of it what it can."""

    def describe(self, start: RunStart) -> None:
        """What the run is started with."""

    def scalars(self, step: int, values: Mapping[str, float | None]) -> None:
        """The figures of a step."""

    def finish(self, step: int, results: Mapping[str, float]) -> None:
        """The final metrics."""

    def flush(self) -> None:
        """Bring everything so far to disk, where the tracker does not do so by itself."""

    def close(self) -> None:
        """Nothing comes any more."""


class TensorBoard(Tracker):
    """Writes the events of one run.

    Args:
        start_step: Step the run goes on from; later events of an earlier attempt are hidden.
    """

    def __init__(self, directory: Path, *, start_step: int) -> None:
        self._start_step = start_step
        self._laid_out = False
        self._hyper_parameters: dict[str, Any] = {}
        _quieten_event_threads()
        self._writer = SummaryWriter(str(directory), purge_step=self._start_step + 1)

    def describe(self, start: RunStart) -> None:
        """Write what the run was started with as text, and remember for `finish` what changes the learning."""
        self._writer.add_text("run/arguments", arguments_table(start.arguments), self._start_step)
        config = json.dumps(start.deepspeed_config, indent=2).replace("\n", "\n    ")
        self._writer.add_text("run/deepspeed_config", f"    {config}", self._start_step)
        stage = start.deepspeed_config.get("zero_optimization", {}).get("stage", 0)
        self._hyper_parameters = hyper_parameters(start.learning, {"world_size": start.world_size, "zero_stage": stage})
        self._writer.flush()

    def scalars(self, step: int, values: Mapping[str, float | None]) -> None:
        """Write the figures of a step."""
        if not self._laid_out and "loss" in values:
            self._writer.add_custom_scalars(layout(values))
            self._laid_out = True
        for name, value in values.items():
            if value is not None:  # such as a norm that no engine has computed
                self._writer.add_scalar(tag(name), value, step)

    def finish(self, step: int, results: Mapping[str, float]) -> None:
        """Write the final metrics, beside the hyper-parameters that led to them."""
        named = {f"{FINAL}/{name.removeprefix('eval_')}": value for name, value in results.items()}
        for name, value in named.items():
            self._writer.add_scalar(name, value, step)
        assert self._writer.file_writer is not None
        # The first of the three, the experiment, is left out: TensorBoard takes one for all runs of a folder, and their
        # metrics differ. Without it, it looks through the runs and puts the parameters that differ first.
        for summary in hparams(self._hyper_parameters, named)[1:]:
            self._writer.file_writer.add_summary(summary)
        self._writer.flush()

    def flush(self) -> None:
        """Bring everything written so far to disk."""
        self._writer.flush()

    def close(self) -> None:
        """Close the event file."""
        self._writer.close()
