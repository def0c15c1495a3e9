"""Scatter plots and bars as inline SVG. Pure functions from figures to text."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from tinybert_ds.report.charts import (
    BOTTOM,
    HEIGHT,
    LEFT,
    NUM_COLOURS,
    RIGHT,
    TOP,
    WIDTH,
    Scale,
    figure,
    grid,
    number,
    with_margin,
)

LOGARITHMIC_FROM = 10.0
"""Ratio of the largest x to the smallest from which on the axis is logarithmic."""
BAR_HEIGHT, BAR_LEFT = 22, 190


class Dot(NamedTuple):
    """A point of a scatter plot."""

    name: str
    x: float
    y: float


class Bar(NamedTuple):
    """A bar and its parts, each with its length."""

    name: str
    parts: Sequence[tuple[str, float]]


def scatter(title: str, dots: Sequence[Dot], *, unit: str) -> str:
    """Return a scatter plot as an HTML figure with a legend that says where each point is; "" without points."""
    if not dots:
        return ""
    x, heights = _x_scale([dot.x for dot in dots]), [dot.y for dot in dots]
    y = Scale(*with_margin(min(heights), max(heights), 0.08), HEIGHT - BOTTOM, TOP)
    parts = list(grid(x, y, whole=False))
    for index, dot in enumerate(dots):
        where = f'cx="{x.place(dot.x):.1f}" cy="{y.place(dot.y):.1f}"'
        parts.append(f"{_mark(index, where)}<title>{escape(dot.name)}</title></circle>")
    keys = "".join(
        f'<li><svg width="14" height="10">{_mark(index, _KEY)}</circle></svg>{escape(dot.name)} '
        f"<output>{number(dot.y)} at {number(dot.x)} {escape(unit)}</output></li>"
        for index, dot in enumerate(dots)
    )
    return figure(title + " (log scale)" * x.logarithmic, "".join(parts), keys)


def bars(title: str, rows: Sequence[Bar], *, form: str = ",.1f") -> str:
    """Return horizontal bars, each with its parts one behind the other and its length in figures; "" without any."""
    longest = max((sum(value for _, value in row.parts) for row in rows), default=0.0)
    if longest <= 0:
        return ""
    names = list(dict.fromkeys(name for row in rows for name, _ in row.parts))
    parts, scale = [], (WIDTH - BAR_LEFT - 60) / longest
    for line, row in enumerate(rows):
        top, left = TOP + line * BAR_HEIGHT, float(BAR_LEFT)
        parts.append(f'<text x="{BAR_LEFT - 6}" y="{top + 12}" text-anchor="end">{escape(row.name)}</text>')
        for name, value in row.parts:
            colour = f'class="c{names.index(name) % NUM_COLOURS} filled"'
            shape = f'<rect {colour} x="{left:.1f}" y="{top}" width="{value * scale:.1f}" height="{BAR_HEIGHT - 6}">'
            parts.append(f"{shape}<title>{escape(name)} {value:{form}}</title></rect>")
            left += value * scale
        total = sum(value for _, value in row.parts)
        parts.append(f'<text x="{left + 6:.1f}" y="{top + 12}">{total:{form}}</text>')
    keys = "".join(
        f'<li><svg width="14" height="10">{_mark(index, _KEY)}</circle></svg>{escape(name)}</li>'
        for index, name in enumerate(names)
        if len(names) > 1
    )
    return figure(title, "".join(parts), keys, height=2 * TOP + len(rows) * BAR_HEIGHT)


_KEY = 'cx="6" cy="5"'


def _mark(index: int, where: str) -> str:
    """A dot, left open: full ones first, then rings of the same colours."""
    kind = " filled" if index < NUM_COLOURS else ""
    return f'<circle class="c{index % NUM_COLOURS}{kind}" {where} r="4.5">'


def _x_scale(values: Sequence[float]) -> Scale:
    low, high = min(values), max(values)
    if low > 0 and high / low >= LOGARITHMIC_FROM:
        return Scale(low / 1.3, high * 1.3, LEFT, WIDTH - RIGHT, True)
    return Scale(*with_margin(low, high, 0.08), LEFT, WIDTH - RIGHT)
