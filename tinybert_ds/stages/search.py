"""A search over learning rates and seeds: every run, the mean and the standard deviation, never the best alone."""

from __future__ import annotations

import dataclasses
import json
import logging
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tinybert_ds.arguments import FinetuneArguments
from tinybert_ds.engine.ranks.process_group import write_on_main
from tinybert_ds.engine.run.run import Session
from tinybert_ds.engine.watch.trackers import RUN_NAMES_FILE
from tinybert_ds.errors import ConfigError
from tinybert_ds.files import make_output_directory, refuse_file, refuse_foreign_files, write_atomically
from tinybert_ds.models.saving import copy_student
from tinybert_ds.stages.start import with_arguments

logger = logging.getLogger(__name__)

SEARCH_FILE = "search.json"
SEARCH_TABLE = "search.md"
_NOT_OF_THE_MODEL = ("run.json", "metrics.jsonl", "eval_results.json", RUN_NAMES_FILE)


class Trial(NamedTuple):
    """One run of a search."""

    learning_rate: float
    seed: int

    @property
    def name(self) -> str:
        """Of its directory."""
        return f"lr{self.learning_rate:g}-seed{self.seed}"


def search(
    session: Session[FinetuneArguments],
    run: Callable[[Session[FinetuneArguments]], dict[str, float]],
    *,
    score: str,
) -> dict[str, float]:
    """Run every trial that is not finished, write the table, and take over the model of the best run of the best mean.

    Args:
        session: Its output directory is the search's; each trial has a directory in it.
        run: Trains into a session's output directory, or finds it finished; returns the metrics.

    Returns:
        The metrics of the run whose model is taken over.
    """
    arguments = session.arguments
    results: dict[Trial, dict[str, float]] = {}
    for learning_rate in arguments.search_learning_rates:
        for seed in arguments.search_seeds:
            trial = Trial(learning_rate, seed)
            own = dataclasses.replace(
                arguments,
                learning_rate=learning_rate,
                seed=seed,
                output_dir=str(session.output_dir / trial.name),
                resume="auto",
            )
            logger.info("search: learning rate %g, seed %d", learning_rate, seed)
            results[trial] = run(with_arguments(session, own))
    content = summarise(results, score)
    text = markdown(content)
    chosen = Trial(**content["taken"])

    def finish() -> None:
        copy_student(session.output_dir / chosen.name, session.output_dir, leave_out=_NOT_OF_THE_MODEL)
        write_atomically(session.output_dir / SEARCH_TABLE, text)
        write_atomically(session.output_dir / SEARCH_FILE, json.dumps(content, indent=2) + "\n")

    write_on_main(session.world, session.output_dir, finish)
    logger.info("%s", text)
    return results[chosen]


def taken_directory(directory: Path) -> Path:
    """Return the directory of the trial whose model a finished search has taken over."""
    content = json.loads((directory / SEARCH_FILE).read_text(encoding="utf-8"))
    return directory / Trial(**content["taken"]).name


def summarise(results: Mapping[Trial, Mapping[str, float]], score: str) -> dict[str, Any]:
    """Return all trials and, for each learning rate and metric, mean and sample standard deviation over the seeds.

    "taken" is the best seed of the learning rate with the highest mean score; of equals the first.
    """
    rates = list(dict.fromkeys(trial.learning_rate for trial in results))
    names = list(next(iter(results.values())))
    summary: list[dict[str, Any]] = []
    for rate in rates:
        own = {trial.seed: metrics for trial, metrics in results.items() if trial.learning_rate == rate}
        values = {name: [metrics[name] for metrics in own.values()] for name in names}
        summary.append(
            {
                "learning_rate": rate,
                "seeds": list(own),
                "values": values,
                "mean": {name: statistics.fmean(of_name) for name, of_name in values.items()},
                "standard_deviation": {name: statistics.stdev(of_name) for name, of_name in values.items()},
            }
        )
    best_rate = max(summary, key=lambda row: row["mean"][score])["learning_rate"]
    own_trials = [trial for trial in results if trial.learning_rate == best_rate]
    taken = max(own_trials, key=lambda trial: results[trial][score])
    return {"score": score, "learning_rates": summary, "taken": {"learning_rate": best_rate, "seed": taken.seed}}


def markdown(content: Mapping[str, Any]) -> str:
    """Return the table of `summarise` for people to read."""
    score = content["score"]
    seeds = content["learning_rates"][0]["seeds"]
    lines = [
        f"{score.removeprefix('eval_')} on the evaluation split, mean and standard deviation over {len(seeds)} seeds:",
        "",
        f"| learning rate | mean | standard deviation | {' | '.join(f'seed {seed}' for seed in seeds)} |",
        f"|---:|---:|---:|{'---:|' * len(seeds)}",
    ]
    for row in content["learning_rates"]:
        cells = " | ".join(f"{value:.4f}" for value in row["values"][score])
        mean, deviation = row["mean"][score], row["standard_deviation"][score]
        lines.append(f"| {row['learning_rate']:g} | {mean:.4f} | {deviation:.4f} | {cells} |")
    taken = content["taken"]
    lines += [
        "",
        f"The model here is that of learning rate {taken['learning_rate']:g}, whose mean is the highest, and of its "
        f"best seed, {taken['seed']}. Chosen on the evaluation split, its own figure flatters it; the mean less so.",
    ]
    return "\n".join(lines) + "\n"


def open_search(directory: Path, *, resume: str) -> None:
    """Make the directory of a search, or check that it holds one.

    Raises:
        ConfigError: It holds something else, cannot be made, or holds a search although `--resume` is never.
    """
    refuse_file(directory)
    names = [path.name for path in directory.iterdir() if not path.name.startswith(".")] if directory.exists() else []
    if SEARCH_FILE in names:
        if resume == "never":
            raise ConfigError(
                f"--output_dir {directory} holds a search and --resume is never; give another one, or --resume auto"
            )
        return
    refuse_foreign_files(directory, names, "holds files that are no search of this program")
    make_output_directory(directory)
    write_atomically(directory / SEARCH_FILE, "{}\n")  # from now on the directory is known as a search's
