"""report.json and report.md of an export."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tinybert_ds.errors import ConfigError
from tinybert_ds.foreign_text import table_cell
from tinybert_ds.strict_formats import parse_json

TITLE = "# The exported model"
REPORT_FILE = "report.json"
TABLE_FILE = "report.md"
MIB = 2**20


@dataclass(frozen=True)
class Row:
    """One model in one format."""

    model: str  # its name, or "teacher"
    name: str  # "torch fp32", "ONNX int8 dynamic"
    kind: str  # torch, onnx, openvino
    precision: str
    file: str  # below the directory; of torch ""
    bytes: int
    metric: float | None
    loss: float | None  # against torch; None of torch itself
    largest_difference: float | None
    agreement: float | None  # see `measure.AGREEMENT`
    latency_ms: Mapping[str, float]  # batch size -> median of a forward
    peak_mib: float | None
    in_float: Sequence[str] = ()  # of int8: layers that lost too much

    @property
    def rows_per_second(self) -> float:
        """At the largest batch."""
        size = max(self.latency_ms, key=int)
        return int(size) / self.latency_ms[size] * 1000


def report_of(rows: Sequence[Row], about: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of report.json.

    Args:
        about: What the figures depend on: what was measured on, in words and by task, split and number of rows;
            metric; what agreement is; opset, threads, versions, machine.
    """
    return {"about": dict(about), "exports": [asdict(row) | {"rows_per_second": row.rows_per_second} for row in rows]}


def render(report: Mapping[str, Any]) -> str:
    """Return report.md."""
    about, rows = report["about"], report["exports"]
    metric = about["metric"] or "metric"
    sizes = list(rows[0]["latency_ms"])
    head = ["", "MiB", metric, "lost", "largest difference", about["agreement"]]
    head += [*(f"ms, batch of {size}" for size in sizes), f"rows/s at {sizes[-1]}", "peak MiB"]
    lines = [TITLE, "", about["measured_on"], "", f"| {' | '.join(head)} |", "|---|" + "---:|" * (len(head) - 1)]
    for row in rows:
        cells = [f"{table_cell(row['model'])}, {row['name']}", f"{row['bytes'] / MIB:.1f}"]
        cells += [_figure(row[name], form) for name, form in _QUALITY.items()]
        cells += [*(f"{row['latency_ms'][size]:.2f}" for size in sizes), f"{row['rows_per_second']:,.0f}"]
        cells.append(_figure(row["peak_mib"], ".0f") or "not measured")
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", *_in_words(rows), ""]
    lines += [f"`{row['file']}`: {row['name']}." for row in rows if row["file"] and row["model"] != "teacher"]
    return "\n".join([*lines, "", *about["conditions"], ""])


def failures(rows: Sequence[Row], about: Mapping[str, Any], max_loss: float) -> list[str]:
    """Return a sentence about each file that loses too much; see `report_of`."""
    metric = about["metric"] or about["agreement"]
    return [
        f"{row.file} ({row.name}) loses {row.loss:.4f} of {metric}"
        + ("" if row.metric is None else f" ({row.metric:.4f})")
        + f", more than --max_loss {max_loss:g}; {about['agreement']}: {row.agreement:.2%}"
        for row in rows
        if row.loss is not None and row.model != "teacher" and not row.loss <= max_loss  # NaN is no small loss
    ]


def is_export(directory: Path) -> bool:
    """Whether a directory was written by an export."""
    try:
        report = parse_json((directory / REPORT_FILE).read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(report, dict) and {"about", "exports"} <= report.keys()


def read_export(directory: Path) -> dict[str, Any]:
    """Return the report of an export; raises ConfigError where the directory holds none."""
    if not is_export(directory):
        raise ConfigError(f"{directory} holds no export; give the --output_dir of launchers/export_model.py")
    report: dict[str, Any] = parse_json((directory / REPORT_FILE).read_bytes())
    return report


_QUALITY = {"metric": ".4f", "loss": ".4f", "largest_difference": ".2g", "agreement": ".2%"}


def _in_words(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """How much faster and smaller each file is than the same model in torch, and than the teacher in its format."""
    lines = []
    base = {row["model"]: row for row in rows if row["kind"] == "torch"}
    teachers = {row["name"]: row for row in rows if row["model"] == "teacher"}
    for row in rows:
        if row["model"] == "teacher" or row["kind"] == "torch":
            continue
        own = base[row["model"]]
        told = [f"{_ratios(own, row)} times as fast as torch", f"{row['bytes'] / own['bytes']:.2f} of its size"]
        if row["name"] in teachers:
            told.append(f"{_ratios(teachers[row['name']], row)} times as fast as the teacher in the same format")
        if row["in_float"]:
            told.append(f"these layers lost too much in 8 bits and are in float: {', '.join(row['in_float'])}")
        lines.append(f"{row['name']}: {'; '.join(told)}.")
    return [f"- {line}" for line in lines]


def _ratios(slow: Mapping[str, Any], fast: Mapping[str, Any]) -> str:
    found = [
        f"{slow['latency_ms'][size] / fast['latency_ms'][size]:.2f} (batch of {size})" for size in fast["latency_ms"]
    ]
    return " and ".join(found)


def _figure(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
