"""The real commands, as the benchmarks of quality run them, and what these write of them."""

from __future__ import annotations

import csv
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from tests.benchmarks.measurement import environment
from tests.support.runs import start_ranks, wait_ranks

TIMEOUT_SECONDS = 4 * 3600


def run_to_the_end(stage: str, words: Sequence[object], log: Path) -> None:
    """Run a command on one rank, with this machine's defaults, and say how long it took; one that fails ends the
    benchmark with what it printed."""
    log.parent.mkdir(parents=True, exist_ok=True)
    begin = time.monotonic()
    finished = wait_ranks(start_ranks(stage, words, 1, log, of_any_machine=False), log, TIMEOUT_SECONDS)
    if finished.returncode:
        raise SystemExit(f"{log.name} failed with exit code {finished.returncode}:\n{finished.output}")
    print(f"{log.name}: {time.monotonic() - begin:.0f} s", flush=True)


def write_table(folder: Path, name: str, text: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a table as Markdown and its figures as CSV, with what they depend on."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.md").write_text(text, encoding="utf-8")
    around = environment()
    with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow([*columns, *around])
        for row in rows:
            figures = [f"{value:.6g}" if isinstance(value, float) else value for value in row]
            writer.writerow([*figures, *around.values()])
