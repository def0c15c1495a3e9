"""Damaged files, thousands of them: what their readers do. `python tests/benchmarks/fuzz.py --seconds 600`

The files are made by our own commands: a corpus, a run with a checkpoint, a recipe, a task file, a DeepSpeed JSON, a
hostfile, words for a remote shell. Each mutation of one of them is read in this process by what the commands read it
with, and some of them by the commands themselves. What may come of it:

refused    a message that ends the command with exit code 2 (or takes the checkpoint before)
unchanged  what was read is what the undamaged file gives, because nothing that matters was hit
other      another valid file: a user may have meant it. Of files that are read without anybody looking at them
           (a corpus, a checkpoint's record) it counts as silent
silent     something else was read, and nobody is told: never allowed
traceback  any other exception, or one in a command's output: never allowed
slow       over 5 seconds: never allowed

`--only TARGET`, `--seed` and `--mutations` repeat a part; the seed of a mutation is its number. Exit code 1 when
something was found that is not allowed; the mutation is then kept below --keep.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import json
import logging
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("DS_ACCELERATOR", "cpu")

from tests.benchmarks.fuzz_targets import make_files, make_targets
from tests.benchmarks.fuzzed_file import Target, digest
from tests.benchmarks.measurement import RESULTS, replace_section, write_csv
from tinybert_ds.errors import UserError, raise_all

ROOT = Path(__file__).resolve().parents[2]
SLOW_SECONDS = 5.0
GIVE_UP_SECONDS = 20.0
MEMORY_BYTES = 24 << 30
OUTCOMES = ("refused", "unchanged", "other", "silent", "traceback", "slow")
FORBIDDEN = ("silent", "traceback", "slow")


class TooSlowError(BaseException):
    """A reader was stopped; no handler of its own may take it for its error."""


class Row(NamedTuple):
    """The counts of one target."""

    benchmark: str
    target: str
    mutations: int
    refused: int
    unchanged: int
    other: int
    silent: int
    traceback: int
    slow: int
    slowest_s: float
    commands: int


@contextlib.contextmanager
def stopped_after(seconds: float) -> Iterator[None]:
    """Raise TooSlowError inside the context after so many seconds."""

    def stop(number: int, frame: object) -> None:
        raise TooSlowError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def outcome_of(target: Target) -> tuple[str, float, str]:
    """Read a damaged file in this process; return the outcome, its seconds and what was said."""
    begin = time.perf_counter()
    said = ""
    try:
        with stopped_after(GIVE_UP_SECONDS), contextlib.redirect_stdout(io.StringIO()):
            found = digest(target.read())
        outcome = "unchanged" if found == target.expected else "silent" if target.unseen else "other"
    except UserError as error:
        outcome, said = "refused", str(error)
    except TooSlowError:
        outcome = "slow"
    except Exception:
        outcome, said = "traceback", traceback.format_exc()
    seconds = time.perf_counter() - begin
    return ("slow" if seconds > SLOW_SECONDS else outcome), seconds, said


def outcome_of_command(target: Target, allowance: float) -> tuple[str, str]:
    """Run the command on a damaged file; `allowance` is what it takes for the undamaged one."""
    begin = time.perf_counter()
    code, output = run_command_once(target.command)
    if "Traceback (most recent call last)" in output or code not in (0, 2):
        return "traceback", output
    if time.perf_counter() - begin > 2 * allowance + SLOW_SECONDS:
        return "slow", output
    return ("refused" if code else "other"), output


def run_command_once(words: Sequence[object]) -> tuple[int, str]:
    """Run a command; return its exit code and what it said."""
    command = [sys.executable, *map(str, words)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with contextlib.suppress(subprocess.TimeoutExpired):
        done = subprocess.run(command, env=environment, capture_output=True, check=False, timeout=300, cwd=ROOT)
        return done.returncode, (done.stdout + done.stderr).decode(errors="replace")
    return -1, "no end after 300 s"


def fuzz(name: str, target: Target, seconds: float, seed: int, most: int | None, *, keep: Path) -> Row:
    """Damage one file over and over; return the counts. Each mutation is made of its number alone."""
    counts: Counter[str] = Counter()
    slowest = 0.0
    deadline = time.monotonic() + seconds
    mutation = seed
    while time.monotonic() < deadline and (most is None or mutation - seed < most):
        counts["mutations"] += damage(target, mutation)
        outcome, took, said = outcome_of(target)
        counts[outcome] += 1
        slowest = max(slowest, took)
        note(name, mutation, outcome, said, target.file, keep)
        mutation += 1
    target.file.write_bytes(target.whole)
    figures = [counts[outcome] for outcome in OUTCOMES]
    return Row("fuzz", name, counts["mutations"], *figures, slowest_s=round(slowest, 3), commands=0)


def sample(name: str, target: Target, seed: int, commands: int, row: Row, keep: Path) -> dict[str, int]:
    """Let the command itself read some mutations; return the counts of a row that change with it."""
    if not target.command or not commands:
        return {}
    begin = time.perf_counter()
    code, output = run_command_once(target.command)
    assert code == 0, output
    allowance = time.perf_counter() - begin
    counts = Counter({outcome: getattr(row, outcome) for outcome in FORBIDDEN})
    for number in range(seed, seed + commands):
        damage(target, number)
        outcome, said = outcome_of_command(target, allowance)
        counts[outcome] += outcome in FORBIDDEN
        note(f"{name}, command", number, outcome, said, target.file, keep)
    target.file.write_bytes(target.whole)
    return {**{outcome: counts[outcome] for outcome in FORBIDDEN}, "commands": commands}


def damage(target: Target, mutation: int) -> int:
    """Write a mutation of a target's file; return 1."""
    rng = random.Random(mutation)
    target.file.write_bytes(target.damages[mutation % len(target.damages)](target.whole, rng))
    return 1


def note(name: str, mutation: int, outcome: str, said: str, file: Path, keep: Path) -> None:
    """Keep what must not be."""
    if outcome not in FORBIDDEN:
        return
    keep.mkdir(parents=True, exist_ok=True)
    stem = f"{name}-{mutation}-{outcome}".replace(" ", "_").replace("/", "_")
    shutil.copy(file, keep / f"{stem}-{file.name}")
    (keep / f"{stem}.txt").write_text(said, encoding="utf-8", errors="backslashreplace")
    print(f"{name}: mutation {mutation} is {outcome}; kept in {keep}", flush=True)


def markdown(rows: Sequence[Row]) -> str:
    """Return the counts as a table."""
    lines = ["| file | mutations | " + " | ".join(OUTCOMES) + " | slowest, s | as commands |", "|---|" + "---:|" * 9]
    for row in rows:
        figures = [f"{figure:,}" for figure in row[2:9]]
        lines.append(f"| {row.target} | {' | '.join(figures)} | {row.slowest_s:.2f} | {row.commands} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    """Run the command."""
    formatter = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False, formatter_class=formatter)
    parser.add_argument("--seconds", type=float, default=600.0, help="of reading, all targets together")
    parser.add_argument("--mutations", type=int, help="most of each target")
    parser.add_argument("--seed", type=int, default=0, help="number of the first mutation")
    parser.add_argument("--commands", type=int, default=2, help="mutations of each target that are run as commands")
    parser.add_argument("--only", nargs="+", help="targets")
    parser.add_argument("--keep", type=Path, default=Path("fuzz-findings"), help="where findings go")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--readme", metavar="SECTION", help="put the table into this section of README.md")
    values = parser.parse_args(arguments)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, resource.getrlimit(resource.RLIMIT_AS)[1]))
    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as folder:
        targets = make_targets(make_files(Path(folder)))
        chosen = {name: make for name, make in targets.items() if not values.only or name in values.only}
        unknown = set(values.only or ()) - set(targets)
        raise_all([f"there is no target {name}; there are {', '.join(targets)}" for name in sorted(unknown)])
        left, rows = values.seconds, []
        for name, make in chosen.items():
            share = left / (len(chosen) - len(rows))  # what one does not need is the others'
            begin = time.monotonic()
            row = fuzz(name, make(), share, values.seed, values.mutations, keep=values.keep)
            left -= time.monotonic() - begin
            rows.append(row._replace(**sample(name, make(), values.seed, values.commands, row, values.keep)))
            print(json.dumps(rows[-1]._asdict()), flush=True)
    write_csv(values.out / "fuzz.csv", rows)
    table = markdown(rows)
    print(table)
    if values.readme:
        replace_section(values.readme, f"{table}\n")
    return rows


if __name__ == "__main__":
    sys.exit(any(getattr(row, outcome) for row, outcome in itertools.product(main(), FORBIDDEN)))
