"""The tables of a report, as rows of text that page and Markdown share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from tinybert_ds.engine.watch.clock import shares
from tinybert_ds.engine.watch.console import duration
from tinybert_ds.report.runs import Run


class Table(NamedTuple):
    """A table with a run in each column."""

    title: str
    columns: list[str]
    rows: list[tuple[str, list[str]]]  # (name, a cell for each run)
    differing: frozenset[str] = frozenset()  # rows whose cells are to stand out


def all_tables(runs: Sequence[Run]) -> list[Table]:
    """Return the tables of a report, in their order."""
    return [overview(runs), metrics(runs), throughput(runs), arguments(runs)]


def overview(runs: Sequence[Run]) -> Table:
    """What each run is and how far it is."""
    rows = {
        "stage": [run.stage for run in runs],
        "state": [run.state for run in runs],
        "gone on with from step": [", ".join(map(str, run.restarts)) or "never" for run in runs],
        "latest launch": [str(run.launch.get("time", "")) for run in runs],
        "ranks": [str(run.launch.get("world_size", "")) for run in runs],
        "ZeRO stage": [str(_zero_stage(run)) for run in runs],
        "directory": [str(run.path) for run in runs],
        **{f"version of {name}": [run.record.get("versions", {}).get(name, "") for run in runs] for name in _PACKAGES},
    }
    return Table("Runs", [run.name for run in runs], list(rows.items()))


_PACKAGES = ("torch", "deepspeed", "transformers")


def metrics(runs: Sequence[Run]) -> Table:
    """Final metrics, and the best and the last values that were logged on the way."""
    rows: dict[str, list[str]] = {}
    for name in dict.fromkeys(name for run in runs for name in run.results):
        rows[f"{name}, final"] = [_figure(run.results.get(name)) for run in runs]
    for name in _names(runs, "eval_"):
        kind = "lowest" if name.endswith("loss") else "highest"
        choose = min if kind == "lowest" else max
        cells = []
        for run in runs:
            points = run.curve(name)
            best = choose(points, key=lambda point: point[1]) if points else None
            cells.append(f"{best[1]:.4f} at step {best[0]}" if best else "")
        rows[f"{name}, {kind} on the way"] = cells
    rows["training loss, first logged"] = [_figure(next((v for _, v in run.curve("loss")), None)) for run in runs]
    rows["training loss, last logged"] = [_figure(next((v for _, v in run.curve("loss")[::-1]), None)) for run in runs]
    return Table("Metrics", [run.name for run in runs], list(rows.items()))


def throughput(runs: Sequence[Run]) -> Table:
    """How fast each run was over its logged steps, and what its time went into."""
    clocks = [run.clock for run in runs]
    rows = {
        "time of the logged steps": [duration(clock["seconds"]) if clock else "" for clock in clocks],
        "samples/s": [_figure(clock.get("samples_per_second"), ".1f") for clock in clocks],
        "tokens/s": [_figure(clock.get("tokens_per_second"), ",.0f") for clock in clocks],
        "seconds a step": [_figure(clock.get("step_seconds"), ".4g") for clock in clocks],
    }
    all_shares = [shares(clock) if clock else {} for clock in clocks]
    for part in dict.fromkeys(part for found in all_shares for part in found):
        rows[f"{part}, share of the time"] = [_figure(found.get(part), ".1%") for found in all_shares]
    if any(clock.get("communicated_bytes_per_step") for clock in clocks):
        rows["communication, inside these"] = [_figure(clock.get("communication_share"), ".1%") for clock in clocks]
        figures = [clock.get("communicated_bytes_per_step", 0.0) / 2**20 for clock in clocks]
        rows["MiB communicated a step"] = [f"{figure:.2f}" for figure in figures]
    return Table("Throughput", [run.name for run in runs], list(rows.items()))


def arguments(runs: Sequence[Run]) -> Table:
    """The arguments of the latest launches; of several runs those that differ first."""
    given = [run.launch.get("arguments", {}) for run in runs]
    names = sorted({name for own in given for name, value in own.items() if value is not None})
    rows = {name: ["" if own.get(name) is None else str(own[name]) for own in given] for name in names}
    # A stage that does not know an argument does not differ in it.
    known = {name: {str(own[name]) for own in given if name in own} for name in names}
    differing = frozenset(name for name, values in known.items() if len(values) > 1)
    ordered = sorted(rows, key=lambda name: (name not in differing, name))
    return Table("Arguments", [run.name for run in runs], [(name, rows[name]) for name in ordered], differing)


def _names(runs: Sequence[Run], prefix: str) -> list[str]:
    return [name for name in dict.fromkeys(name for run in runs for name in run.names()) if name.startswith(prefix)]


def _zero_stage(run: Run) -> int:
    return int(run.launch.get("deepspeed_config", {}).get("zero_optimization", {}).get("stage", 0))


def _figure(value: float | None, form: str = ".4f") -> str:
    return "" if value is None else format(value, form)
