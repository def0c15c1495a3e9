"""What comparisons and exports have measured: quality, size and latency of models and files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tinybert_ds.report.figures import Bar, Dot, bars, scatter
from tinybert_ds.strict_formats import parse_json

REPORT_FILE = "report.json"
_MIB = 2**20


class Measured(NamedTuple):
    """A report of `compare_models.py` or `export_model.py`."""

    path: Path
    metric: str
    models: list[Model]
    stages: list[tuple[str, float]]  # name, seconds


class Model(NamedTuple):
    """A model, or a file of it."""

    name: str
    metric: float | None
    mib: float
    latency_ms: dict[str, float]  # batch size -> one forward


def find_measured(directories: Sequence[Path]) -> list[Measured]:
    """Return the reports that lie in directories or one level below; other files of that name are left alone."""
    paths = [
        path for folder in directories for path in (folder / REPORT_FILE, *sorted(folder.glob(f"*/{REPORT_FILE}")))
    ]
    found = (_read(path) for path in dict.fromkeys(path.resolve() for path in paths))
    return [measured for measured in found if measured is not None]


def figures_of(measured: Measured) -> list[str]:
    """Return the charts of a report: quality against latency and size, and the time of its stages."""
    judged = [model for model in measured.models if model.metric is not None]
    sizes = sorted({size for model in judged for size in model.latency_ms}, key=int)
    figures = [
        scatter(
            f"{measured.metric} against ms, batch of {size}",
            [Dot(model.name, model.latency_ms[size], model.metric or 0.0) for model in judged],
            unit="ms",
        )
        for size in sizes
    ]
    dots = [Dot(model.name, model.mib, model.metric or 0.0) for model in judged if model.mib]
    figures.append(scatter(f"{measured.metric} against MiB on the disk", dots, unit="MiB"))
    if measured.stages:
        stages = [Bar(name, [("seconds", seconds)]) for name, seconds in measured.stages]
        figures.append(bars("seconds of each stage", stages))
    return [figure for figure in figures if figure]


def _read(path: Path) -> Measured | None:
    try:
        content = parse_json(path.read_bytes())
        if "exports" in content:
            return _of_export(path, content)
        return _of_comparison(path, content)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):  # somebody else's, or of another version
        return None


def _of_export(path: Path, content: dict[str, Any]) -> Measured:
    models = [
        Model(f"{row['model']}, {row['name']}", row["metric"], row["bytes"] / _MIB, row["latency_ms"])
        for row in content["exports"]
    ]
    return Measured(path, content["about"]["metric"] or "quality", models, [])


def _of_comparison(path: Path, content: dict[str, Any]) -> Measured | None:
    if not {"teacher", "student", "compression", "speedup"} <= content.keys():
        return None
    rows = {name: row for name, row in content.items() if isinstance(row, dict) and "latency_ms" in row}
    models = [
        Model(name.replace("_", " "), row["metric"], row.get("bytes", 4 * row["parameters"]) / _MIB, row["latency_ms"])
        for name, row in rows.items()
    ]
    stages = [(stage["name"], stage["seconds"]) for stage in content["stages"]]
    return Measured(path, content.get("metric", "metric"), models, stages)
