"""Tables of what the yardstick of quality has found."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Result(NamedTuple):
    """A student of one arm."""

    task: str
    arm: str
    seed: int
    score: float
    divergence: float
    equal: float
    steps: int
    budget_s: float  # operations in seconds of the budget
    wall_s: float


def tables(results: Sequence[Result], teachers: Mapping[str, float]) -> str:
    """Return Markdown: means over tasks and seeds, paired differences of the arms, and a table for each task."""
    lines = ["### Mean over tasks and seeds", "", *_means(results, teachers), ""]
    lines += ["### Paired differences, all tasks and seeds", "", *_differences(results), ""]
    for task in dict.fromkeys(result.task for result in results):
        lines += [f"### {task}, teacher {100 * teachers[task]:.1f}", "", *_task_table(results, task), ""]
    return "\n".join(lines)


def _means(results: Sequence[Result], teachers: Mapping[str, float]) -> list[str]:
    """Every task counts alike, however many seeds it has; arms that lack a task say so."""
    lines = ["| arm | tasks | runs | score | below the teacher | equal |", "|---|---:|---:|---:|---:|---:|"]
    for arm in _arms(results):
        own = [result for result in results if result.arm == arm]
        tasks = dict.fromkeys(result.task for result in own)
        of_tasks = [[result for result in own if result.task == task] for task in tasks]
        score, equal = (
            100 * statistics.mean(statistics.mean(getattr(result, name) for result in group) for group in of_tasks)
            for name in ("score", "equal")
        )
        below = 100 * statistics.mean(teachers[task] for task in tasks) - score
        lines.append(f"| {arm} | {len(tasks)} | {len(own)} | {score:.1f} | {below:.1f} | {equal:.1f} |")
    return lines


def _task_table(results: Sequence[Result], task: str) -> list[str]:
    lines = ["| arm | score | std | divergence | equal | steps | budget, s | wall, s | each seed |"]
    lines += ["|---|---:|---:|---:|---:|---:|---:|---:|---|"]
    for arm in _arms(results):
        own = [result for result in results if (result.task, result.arm) == (task, arm)]
        if not own:
            continue
        scores = [100 * result.score for result in own]
        spread = f"{statistics.stdev(scores):.2f}" if len(own) > 1 else ""
        means = [statistics.mean(getattr(result, name) for result in own) for name in Result._fields[4:]]
        divergence, equal, steps, budget, wall = means
        each = ", ".join(f"{score:.1f}" for score in scores)
        row = [arm, f"{statistics.mean(scores):.1f}", spread, f"{divergence:.4f}", f"{100 * equal:.1f}", f"{steps:.0f}"]
        lines.append(f"| {' | '.join([*row, f'{budget:.0f}', f'{wall:.0f}', each])} |")
    return lines


def _differences(results: Sequence[Result]) -> list[str]:
    """Each arm against those before it, on the same tasks with the same seeds; ratios are geometric means.

    The first standard error is that of the pairs, the second that of the tasks' means, as if they were drawn.
    """
    lines = ["| arm | against | pairs | higher | score | standard error | over tasks | divergence of | unequal of |"]
    lines += ["|---|---|---:|---:|---:|---:|---:|---:|---:|"]
    arms = _arms(results)
    for place, arm in enumerate(arms):
        for other in arms[:place]:
            pairs = paired(results, arm, other)
            if not pairs:
                continue
            found = [100 * (one.score - two.score) for one, two in pairs]
            tasks = [one.task for one, _ in pairs]
            means = [
                statistics.mean(points for points, own in zip(found, tasks, strict=True) if own == task)
                for task in dict.fromkeys(tasks)
            ]
            errors = [f"{standard_error(values):.2f}" if len(values) > 1 else "" for values in (found, means)]
            divergence = statistics.geometric_mean(one.divergence / two.divergence for one, two in pairs)
            unequal = statistics.geometric_mean(_unequal(one) / _unequal(two) for one, two in pairs)
            row = [arm, other, str(len(found)), str(sum(points > 0 for points in found))]
            row += [f"{statistics.mean(found):+.2f}", *errors, f"{divergence:.2f}", f"{unequal:.2f}"]
            lines.append(f"| {' | '.join(row)} |")
    return lines


def paired(results: Sequence[Result], arm: str, other: str) -> list[tuple[Result, Result]]:
    """Return the results of two arms on the same tasks with the same seeds."""
    rivals = {(result.task, result.seed): result for result in results if result.arm == other}
    own = [result for result in results if result.arm == arm]
    return [(result, rivals[place]) for result in own if (place := (result.task, result.seed)) in rivals]


def standard_error(values: Sequence[float]) -> float:
    """Return the standard error of a mean."""
    return statistics.stdev(values) / math.sqrt(len(values))


def _unequal(result: Result) -> float:
    return max(1e-6, 1 - result.equal)  # of which ratios are taken


def _arms(results: Sequence[Result]) -> list[str]:
    return list(dict.fromkeys(result.arm for result in results))
