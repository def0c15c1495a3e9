"""The report as one HTML file that needs nothing else, neither network nor other files.

Its charts are drawn here: libraries that write such pages put their whole script into each, 4.6 MiB (plotly 7.1) or
1.2 MiB (bokeh 3.9). A run's page has some tens of KiB.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from importlib.resources import files

from tinybert_ds.engine.watch.clock import shares
from tinybert_ds.report.charts import Series, line_chart
from tinybert_ds.report.figures import Bar, bars
from tinybert_ds.report.models import Measured, figures_of
from tinybert_ds.report.runs import Run
from tinybert_ds.report.seeds import mean_and_band, name_of, seed_groups
from tinybert_ds.report.tables import Table, all_tables

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
"""The browser itself refuses whatever would be fetched."""


def render_page(runs: Sequence[Run], measured: Sequence[Measured] = ()) -> str:
    """Return the page: tables, then curves; with several runs each figure's curves lie over one another.

    Args:
        measured: What comparisons and exports of these runs have found.
    """
    resources = files("tinybert_ds.report")
    style, script = (resources.joinpath(name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    title = f"Run {runs[0].name}" if len(runs) == 1 else f"{len(runs)} runs"
    first, *others = all_tables(runs)
    sections = single_run_charts(runs[0]) if len(runs) == 1 else comparison_charts(runs)
    sections = [*(("Models", figures_of(found)) for found in measured), *sections]
    charts = "".join(
        f"<h2>{escape(name)}</h2><div class='charts'>{''.join(figures)}</div>" for name, figures in sections
    )
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width">'
        f"<style>{style}</style></head><body><h1>{escape(title)}</h1>"
        f"{_table(first)}{''.join(_table(table) for table in others[:2])}{charts}"
        f"{''.join(_table(table) for table in others[2:])}"
        f"<script>{script}</script></body></html>\n"
    )


Section = tuple[str, list[str]]


def single_run_charts(run: Run) -> list[Section]:
    """Return (heading, charts) of one run: its health, where its time goes, its layers."""
    names = run.names()
    losses = sorted((n for n in names if n.endswith("loss") and "/" not in n), key=_importance)
    judged = [name for name in names if name.startswith("eval_") and name not in losses]
    parts = [name for name in names if name.endswith("_share") and name != "padding_share"]

    def chart(title: str, drawn: Sequence[str], *, may_be_logarithmic: bool = False) -> str:
        series = [Series(name.removesuffix("_share"), run.curve(name)) for name in drawn]
        return line_chart(title, series, marks=run.restarts, may_be_logarithmic=may_be_logarithmic)

    health = [
        chart("losses", losses, may_be_logarithmic=True),
        chart("evaluation", judged),
        chart("learning rate", ["learning_rate"]),
        chart("gradient norm", ["grad_norm"]),
        chart("samples/s", ["samples_per_second"]),
    ]
    time = [chart("shares of the time", parts), chart("seconds a step", ["step_seconds"])]
    time.append(chart("share of padding", ["padding_share"]))
    kinds = dict.fromkeys(name.partition("/")[0] for name in names if "/" in name)
    layers = [chart(kind.replace("_", " "), [n for n in names if n.startswith(f"{kind}/")]) for kind in kinds]
    return list(_not_empty([("Health", health), ("Where the time goes", time), ("Layers", layers)]))


def comparison_charts(runs: Sequence[Run]) -> list[Section]:
    """Return (heading, charts) of several runs: a chart for each figure, a line for each run that has it.

    Runs that differ in their seed alone have one line, their mean, and a band from the lowest to the highest.
    """
    groups = seed_groups(runs)
    unsorted = dict.fromkeys(name for run in runs for name in run.names() if "/" not in name)
    names = sorted(unsorted, key=_importance)

    def charts(wanted: Iterator[str]) -> list[str]:
        return [
            line_chart(name, [_series(group, name) for group in groups], may_be_logarithmic=name.endswith("loss"))
            for name in wanted
        ]

    def is_time(name: str) -> bool:
        return name.endswith("_share") or name in ("step_seconds", "communicated_bytes_per_step")

    health, time = (charts(name for name in names if is_time(name) is wanted) for wanted in (False, True))
    time.insert(0, bars("share of the time, in %", [Bar(run.name, _shares(run)) for run in runs], form=".0f"))
    return list(_not_empty([("Curves", health), ("Where the time goes", time)]))


def _series(group: Sequence[Run], name: str) -> Series:
    curves = [curve for run in group if (curve := run.curve(name))]
    if len(curves) < 2:
        return Series(name_of(group), curves[0] if curves else [])
    mean, band = mean_and_band(curves)
    return Series(name_of(group), mean, band)


def _shares(run: Run) -> list[tuple[str, float]]:
    return [(part, 100 * value) for part, value in shares(run.clock).items()] if run.clock else []


def _importance(name: str) -> int:
    """Return the place of a figure among the charts: the loss, its parts, evaluations, everything else."""
    return 0 if name == "loss" else 2 if name.startswith("eval_") else 1 if name.endswith("loss") else 3


def _not_empty(sections: Sequence[Section]) -> Iterator[Section]:
    for heading, figures in sections:
        drawn = [figure for figure in figures if figure]
        if drawn:
            yield heading, drawn


def _table(table: Table) -> str:
    if not table.rows:
        return ""
    head = "".join(f"<th>{escape(name)}</th>" for name in table.columns)
    rows = "".join(
        f"<tr{' class=differs' if name in table.differing else ''}><th>{escape(name)}</th>"
        f"{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"
        for name, cells in table.rows
    )
    return (
        f"<h2>{escape(table.title)}</h2><div class='wide'><table><thead><tr><th></th>{head}</tr></thead>"
        f"<tbody>{rows}</tbody></table></div>"
    )
