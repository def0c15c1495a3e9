"""The report as Markdown: the tables, and each curve at a few steps."""

from __future__ import annotations

import re
from collections.abc import Sequence

from tinybert_ds.foreign_text import table_cell
from tinybert_ds.report.charts import number
from tinybert_ds.report.runs import Run
from tinybert_ds.report.tables import Table, all_tables

CURVE_STEPS = 8
TITLE_OF_ONE, TITLE_OF_SEVERAL = "# Run ", re.compile(r"# \d+ runs")


def render_markdown(runs: Sequence[Run]) -> str:
    """Return report.md."""
    title = f"{TITLE_OF_ONE}{runs[0].name}" if len(runs) == 1 else f"# {len(runs)} runs"
    sections = [_section(table) for table in all_tables(runs) if table.rows]
    return "\n".join([title, "", *sections, *(_curves(run) for run in runs if run.steps)])


def _section(table: Table) -> str:
    lines = [f"## {table.title}", "", f"| | {' | '.join(map(table_cell, table.columns))} |"]
    lines.append("|---|" + "---|" * len(table.columns))
    for name, cells in table.rows:
        shown = f"**{table_cell(name)}**" if name in table.differing else table_cell(name)
        lines.append(f"| {shown} | {' | '.join(map(table_cell, cells))} |")
    return "\n".join([*lines, ""])


def _curves(run: Run) -> str:
    last = len(run.steps) - 1
    rows = sorted({round(number * last / (CURVE_STEPS - 1)) for number in range(CURVE_STEPS)})
    names = [name for name in run.names() if name.endswith("loss") and "/" not in name and not name.startswith("eval_")]
    lines = [f"## Curves of {run.name}", "", f"| step | {' | '.join(names)} | samples/s |"]
    lines.append("|---:|" + "---:|" * (len(names) + 1))
    for row in rows:
        line = run.steps[row]
        speed = line.get("clock", {}).get("samples_per_second")
        cells = [number(line[name]) if isinstance(line.get(name), float) else "" for name in names]
        lines.append(f"| {line['step']} | {' | '.join(cells)} | {'' if speed is None else f'{speed:.1f}'} |")
    return "\n".join([*lines, ""])
