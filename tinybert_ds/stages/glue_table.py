"""The table of an evaluation of several tasks, as JSON and as Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from tinybert_ds.data.metrics import official_metric
from tinybert_ds.data.published_results import PUBLISHED_DEV, PUBLISHED_TEST, SOURCES, comparable_figure
from tinybert_ds.data.submission import CLUE_SUBMISSION_FILES, SUBMISSION_FILES
from tinybert_ds.data.task_spec import TaskSpec


class SplitResult(NamedTuple):
    """The models' metrics, as fractions, on one split of a task."""

    spec: TaskSpec
    split: str
    rows: int
    metrics: Mapping[str, Mapping[str, float]]  # by model


def table(results: Sequence[SplitResult], submissions: Mapping[str, Collection[str]]) -> dict[str, Any]:
    """Return everything that was measured, and the published figures that can be compared with it.

    Args:
        submissions: Model -> the files of its submission; empty where none was asked for.
    """
    tasks: dict[str, dict[str, Any]] = {}
    for result in results:
        published = {model: _comparable(result, model) for model in PUBLISHED_DEV}
        tasks.setdefault(result.spec.name, {})[result.split] = {
            "rows": result.rows,
            "metrics": {model: dict(metrics) for model, metrics in result.metrics.items()},
            "published": {model: figures for model, figures in published.items() if figures},
        }
    names = {name for name, _ in SUBMISSION_FILES}
    wanted = set(SUBMISSION_FILES.values()) if names & set(tasks) else set()  # CLUE's server takes any
    return {
        "tasks": tasks,
        "average": {model: average(results, model) for model in results[0].metrics},
        "submissions": {
            model: {"files": sorted(files), "missing": sorted(wanted - set(files))}
            for model, files in submissions.items()
        },
    }


def average(results: Sequence[SplitResult], model: str) -> float:
    """Return the mean of a model's official metrics: over the splits of a task, then over the tasks."""
    scores: dict[str, list[float]] = {}
    for result in results:
        scores.setdefault(result.spec.name, []).append(official_metric(result.spec, result.metrics[model]))
    return statistics.fmean(statistics.fmean(of_task) for of_task in scores.values())


def markdown(content: Mapping[str, Any]) -> str:
    """Return the table of `table` for people to read."""
    models = list(content["average"])
    published = sorted({name for task in content["tasks"].values() for s in task.values() for name in s["published"]})
    columns = [*models, *(f"{name}, published" for name in published)]
    lines = [
        "In percent, on the labelled evaluation splits.",
        "",
        f"| task | split | rows | metric | {' | '.join(columns)} |",
        f"|---|---|---:|---|{'---:|' * len(columns)}",
    ]
    for task, splits in content["tasks"].items():
        for split, result in splits.items():
            for metric in result["metrics"][models[0]]:
                figures = [result["metrics"][model][metric] for model in models]
                figures += [result["published"].get(name, {}).get(metric) for name in published]
                cells = " | ".join("" if figure is None else f"{100 * figure:.1f}" for figure in figures)
                lines.append(f"| {task} | {split} | {result['rows']:,} | {metric} | {cells} |")
    count = len(content["tasks"])
    if count > 1:
        cells = " | ".join([*(f"{100 * content['average'][model]:.1f}" for model in models), *("" for _ in published)])
        lines.append(f"| mean of the {count} tasks' official metrics | | | | {cells} |")
    if published:
        sources = dict.fromkeys(SOURCES[name] for name in published)
        lines += ["", f"Published: {'; '.join(sources)}. Only where the file has the benchmark's rows."]
    return "\n".join([*lines, *_submission_lines(content["submissions"])]) + "\n"


def _submission_lines(submissions: Mapping[str, Any]) -> list[str]:
    lines = []
    for model, files in submissions.items():
        missing = ", ".join(files["missing"])
        state = f"; the server wants {missing} too" if missing else ", complete"
        lines += ["", f"{model}-submission.zip: {', '.join(files['files'])}{state}."]
    clue = set(CLUE_SUBMISSION_FILES.values())
    if any(not clue.issuperset(files["files"]) for files in submissions.values()):
        lines += ["", "What the server gave the published models on the test sets (arXiv 1909.10351v5; percent):", ""]
        for model, figures in PUBLISHED_TEST.items():
            lines += [f"| | {' | '.join(figures)} |", f"|---|{'---:|' * len(figures)}"]
            lines.append(f"| {model} | {' | '.join(str(figure) for figure in figures.values())} |")
    return lines


def _comparable(result: SplitResult, model: str) -> dict[str, float]:
    found = {
        metric: comparable_figure(model, result.spec.name, result.split, metric, result.rows)
        for metric in result.spec.metrics
    }
    return {metric: figure for metric, figure in found.items() if figure is not None}
