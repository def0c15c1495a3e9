"""Readings of the stopwatch: what they hold and how they add up."""

from __future__ import annotations

from collections.abc import Mapping

PARTS = ("data", "teacher", "student", "evaluation", "save")
"""What the time of a run is divided into; "communication" is a part of these."""


def add_clocks(first: Mapping[str, float], second: Mapping[str, float]) -> dict[str, float]:
    """Return two readings of a stopwatch as one; a part that a reading lacks took no time in it."""
    if not first:
        return dict(second)
    sums = {name: first[name] + second[name] for name in ("seconds", "steps")}
    rates = (first.keys() | second.keys()) - sums.keys() - {"step_seconds"}
    means = {
        name: sum(clock.get(name, 0.0) * clock["seconds"] for clock in (first, second)) / sums["seconds"]
        for name in sorted(rates)
    }
    return {**sums, "step_seconds": sums["seconds"] / max(1, sums["steps"]), **means}


def shares(clock: Mapping[str, float]) -> dict[str, float]:
    """Return the part of the time that each of `PARTS` took, and the rest as "other"; communication is inside them."""
    found = {part: clock[f"{part}_share"] for part in PARTS if f"{part}_share" in clock}
    return {**found, "other": max(0.0, 1 - sum(found.values()))}
