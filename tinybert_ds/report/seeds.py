"""Runs that differ in their seed alone: one line with a band in place of several lines."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tinybert_ds.report.runs import Points, Run
from tinybert_ds.strict_formats import parse_json

Band = list[tuple[int, float, float]]
"""(step, lowest, highest), steps rising."""

_OF_THE_SEED = ("seed", "student", "teacher", "model", "students")
"""What the identities of such runs may differ in: with another seed comes another teacher and another start, of the
same sizes."""


def seed_groups(runs: Sequence[Run]) -> list[list[Run]]:
    """Return the runs in groups whose members differ in their seed alone, in the order of their first members.

    Two runs of one seed never stand in a group: something else must be different. Models of other sizes do not, nor
    those of which nothing but different fingerprints is known.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(_all_but_the_seed(run), []).append(run)
    found = []
    for group in groups.values():
        seeds = [run.record["identity"].get("seed") for run in group]
        apart = len(set(seeds)) < len(seeds) or None in seeds
        found += [[run] for run in group] if apart else [group]
    return sorted(found, key=lambda group: list(runs).index(group[0]))


def name_of(group: Sequence[Run]) -> str:
    """Return what the line of a group is called."""
    return group[0].name if len(group) == 1 else f"{group[0].name} and other seeds ({len(group)})"


def mean_and_band(curves: Sequence[Points]) -> tuple[Points, Band]:
    """Return the mean of several curves, and how far they spread, at the steps that all of them have."""
    values = [dict(curve) for curve in curves]
    steps = sorted(set(values[0]).intersection(*values[1:])) if values else []
    found = [(step, [own[step] for own in values]) for step in steps]
    mean = [(step, statistics.fmean(here)) for step, here in found]
    return mean, [(step, min(here), max(here)) for step, here in found]


def _all_but_the_seed(run: Run) -> str:
    identity = {name: value for name, value in run.record["identity"].items() if name not in _OF_THE_SEED}
    return json.dumps([identity, _models_of(run)], sort_keys=True, default=str)


def _models_of(run: Run) -> list[Any]:
    """What student and teacher are, whatever their weights: the sizes in their configs, or their fingerprints where
    no config is at hand."""
    identity, arguments = run.record["identity"], run.launch.get("arguments", {})
    starts = [Path(path) for name in ("student_model", "model") if isinstance(path := arguments.get(name), str)]
    student = next(filter(None, map(_sizes, [run.path, *starts])), identity.get("student") or identity.get("model"))
    teacher = arguments.get("teacher_model")
    sizes = _sizes(Path(teacher)) if isinstance(teacher, str) else {}
    return [student, sizes or identity.get("teacher")]


def _sizes(directory: Path) -> dict[str, Any]:
    """The architecture of a model directory and all whole numbers of its config but those of tokens; {} without one."""
    try:
        config = parse_json((directory / "config.json").read_bytes())
        return {
            name: value
            for name, value in config.items()
            if name == "model_type" or (type(value) is int and not name.endswith("_id"))
        }
    except (OSError, ValueError, AttributeError):
        return {}
