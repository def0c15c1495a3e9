"""Line charts as inline SVG. Pure functions from points to text."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from itertools import pairwise
from typing import Any, NamedTuple

from tinybert_ds.report.runs import Points

WIDTH, HEIGHT = 560, 250
LEFT, RIGHT, TOP, BOTTOM = 64, 12, 10, 26
MOST_POINTS = 400
LOGARITHMIC_FROM = 50.0
"""Ratio of the largest value to the smallest from which on the scale is logarithmic."""
NUM_COLOURS = 8
DASHES = ("", "6 3", "2 3")


class Series(NamedTuple):
    """A line of a chart."""

    name: str
    points: Points
    band: Sequence[tuple[int, float, float]] = ()  # (step, lowest, highest): how far several runs spread around it


class Scale(NamedTuple):
    """From a value to its place in pixels."""

    low: float
    high: float
    begin: float
    end: float
    logarithmic: bool = False

    def place(self, value: float) -> float:
        low, high, value = (math.log10(x) if self.logarithmic else x for x in (self.low, self.high, value))
        return self.begin + (value - low) / (high - low) * (self.end - self.begin)

    def ticks(self) -> list[float]:
        """Return round numbers on it."""
        return log_ticks(self.low, self.high) if self.logarithmic else ticks(self.low, self.high)


def line_chart(
    title: str, series: Sequence[Series], *, marks: Sequence[int] = (), may_be_logarithmic: bool = False
) -> str:
    """Return a chart as an HTML figure: axes, lines, legend, and its data for the readout under the pointer.

    Args:
        title: Above it; escaped here, as are the names of the series.
        series: Lines; those without points are left out. Without any, the empty string is returned.
        marks: Steps with a vertical line, such as restarts.
        may_be_logarithmic: Whether values that span much are drawn on a logarithmic scale.
    """
    drawn = [line._replace(points=thin(line.points, MOST_POINTS)) for line in series if line.points]
    if not drawn:
        return ""
    edges = [(step, value) for line in drawn for step, *both in line.band for value in both]
    x, y = _scales([*edges, *(point for line in drawn for point in line.points)], may_be_logarithmic)
    parts = [*grid(x, y, whole=True), *(_mark(x, step) for step in marks if x.low <= step <= x.high)]
    parts += [_band(x, y, line.band, number) for number, line in enumerate(drawn) if line.band]
    parts += [_line(x, y, line.points, number) for number, line in enumerate(drawn)]
    keys = "".join(
        f'<li><svg width="22" height="8"><line x1="0" y1="4" x2="22" y2="4" class="c{number % NUM_COLOURS}"'
        f"{_dash(number)}/></svg>{escape(line.name)} <output></output></li>"
        for number, line in enumerate(drawn)
    )
    data = {
        "x": [x.low, x.high, x.begin, x.end],
        "lines": [[[step, float(f"{value:.6g}")] for step, value in line.points] for line in drawn],
    }
    return figure(title + " (log scale)" * y.logarithmic, "".join(parts), keys, data=data)


def figure(title: str, content: str, keys: str, *, height: int = HEIGHT, data: Mapping[str, Any] | None = None) -> str:
    """Return an HTML figure.

    Args:
        content: Of its SVG.
        keys: Items of its legend.
        data: What is read out under the pointer; None: nothing is.
    """
    kind, script = ' class="still"', ""
    if data is not None:
        text = json.dumps(data, separators=(",", ":"))
        kind, script = "", f'<script type="application/json">{text}</script>'
    return (
        f"<figure{kind}><figcaption>{escape(title)}</figcaption>"
        f'<svg class="chart" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}">{content}</svg>'
        f"<ul>{keys}</ul>{script}</figure>"
    )


def thin(points: Points, limit: int) -> Points:
    """Return at most about `limit` points, the smallest and the largest of each stretch: no spike is lost."""
    if len(points) <= limit:
        return points
    stretches = limit // 2
    edges = [len(points) * number // stretches for number in range(stretches + 1)]
    kept: Points = []
    for begin, end in pairwise(edges):
        part = points[begin:end]
        kept += sorted({min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])})
    return sorted({points[0], *kept, points[-1]})


def ticks(low: float, high: float) -> list[float]:
    """Return about five round numbers from `low` to `high`."""
    rough = (high - low) / 5
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * magnitude for factor in (1, 2, 5, 10) if factor * magnitude >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Return powers of ten from `low` to `high`, with their doubles and fives where the decades are few."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    factors = (1, 2, 5) if last - first <= 3 else (1,)
    found = [factor * 10.0**power for power in range(first, last + 1) for factor in factors]
    return [value for value in found if low <= value <= high]


def number(value: float) -> str:
    """Return a number in few characters."""
    mantissa, _, exponent = f"{value:.4g}".partition("e")
    return f"{mantissa}e{int(exponent)}" if exponent else mantissa


def _scales(points: Points, may_be_logarithmic: bool) -> tuple[Scale, Scale]:
    steps, values = [step for step, _ in points], [value for _, value in points]
    first, last = min(steps), max(steps)
    if first == last:
        first, last = first - 1, last + 1
    low, high = min(values), max(values)
    logarithmic = may_be_logarithmic and low > 0 and high / low >= LOGARITHMIC_FROM
    edges = (low, high) if logarithmic else with_margin(low, high, 0.05)
    return Scale(first, last, LEFT, WIDTH - RIGHT), Scale(*edges, HEIGHT - BOTTOM, TOP, logarithmic)


def with_margin(low: float, high: float, share: float) -> tuple[float, float]:
    """Return a range with some room around it; nothing below 0 is drawn where nothing is below 0."""
    margin = share * (high - low) or share * abs(high) or 1.0
    return (max(0.0, low - margin) if low >= 0 else low - margin), high + margin


def grid(x: Scale, y: Scale, *, whole: bool) -> Iterator[str]:
    """Yield the lines of both axes' ticks with their numbers; `whole`: those of x are steps."""
    for value in y.ticks():
        place = f"{y.place(value):.1f}"
        yield f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{place}" y2="{place}"/>'
        yield f'<text x="{LEFT - 6}" y="{place}" dy="4" text-anchor="end">{number(value)}</text>'
    for value in x.ticks():
        if not whole or value == int(value):
            place, shown = f"{x.place(value):.1f}", f"{int(value):,}" if whole else number(value)
            yield f'<line class="grid" x1="{place}" x2="{place}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'
            yield f'<text x="{place}" y="{HEIGHT - 8}" text-anchor="middle">{shown}</text>'


def _mark(x: Scale, step: int) -> str:
    place = f"{x.place(step):.1f}"
    return (
        f'<line class="mark" x1="{place}" x2="{place}" y1="{TOP}" y2="{HEIGHT - BOTTOM}">'
        f"<title>gone on from step {step}</title></line>"
    )


def _line(x: Scale, y: Scale, points: Points, index: int) -> str:
    places = [f"{x.place(step):.1f},{y.place(value):.1f}" for step, value in points]
    colour = f'class="c{index % NUM_COLOURS}"'
    if len(places) == 1:
        left, top = places[0].split(",")
        return f'<circle {colour} cx="{left}" cy="{top}" r="3"/>'
    return f'<polyline {colour}{_dash(index)} points="{" ".join(places)}"/>'


def _band(x: Scale, y: Scale, band: Sequence[tuple[int, float, float]], index: int) -> str:
    """The space between the lowest and the highest, there and back again."""
    there = [f"{x.place(step):.1f},{y.place(low):.1f}" for step, low, _ in band]
    back = [f"{x.place(step):.1f},{y.place(high):.1f}" for step, _, high in reversed(band)]
    return f'<polygon class="c{index % NUM_COLOURS} band" points="{" ".join([*there, *back])}"/>'


def _dash(index: int) -> str:
    dash = DASHES[index // NUM_COLOURS % len(DASHES)]
    return f' stroke-dasharray="{dash}"' if dash else ""
