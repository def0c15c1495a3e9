"""Commands as users run them: in processes of their own, on one rank or several, and small inputs for them."""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess as Process
from pathlib import Path
from typing import Any

from tests.support.models import WORDS
from tinybert_ds.command_line import run_command
from tinybert_ds.launch.port import free_port
from tinybert_ds.stages.entry import prepare, run

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_SECONDS = 240

DATA_TOOLS = ("prepare_corpus", "inspect_shards", "augment_task", "label_rows")
STAGES = (
    "general_distill",
    "task_distill",
    "finetune",
    "evaluate_glue",
    "inherit",
    "embed_distill",
    "embed_evaluate",
    "export",
)
SERIES, THEN = "series", "then"
"""Several general distillations in one process, in turn: SERIES as the stage, THEN between their arguments."""

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(
    [
        "tests.support.runs",
        *(f"tinybert_ds.stages.{name}" for name in STAGES),
        *(f"data_tools.{name}" for name in DATA_TOOLS),
        "sklearn.metrics",  # which the stages import when a metric is computed
        "scipy.stats",
    ]
)


@dataclass(frozen=True)
class Finished:
    """A command that has ended: the worst exit code of its ranks, and what rank 0 printed."""

    returncode: int
    output: str

    def check(self) -> Finished:
        """Return itself, or fail the test with the output."""
        assert self.returncode == 0, self.output
        return self


def start_ranks(
    stage: str,
    arguments: Sequence[object],
    world_size: int,
    log: Path,
    sabotage: Mapping[int, Callable[[], None]] | None = None,
    *,
    of_any_machine: bool = True,
) -> list[Process]:
    """Start a command on so many ranks.

    They are forked from a server that has imported everything already: starting python for each of them would take
    most of the tests' time.

    Args:
        stage: One of STAGES or DATA_TOOLS, or SERIES.
        arguments: The command line.
        world_size: Ranks; with one, the command runs as under plain `python`.
        log: Rank r writes its output to `log` with the suffix `.rankr`.
        sabotage: For some ranks what is called in their process first (see `tests.support.sabotage`).
        of_any_machine: The default DeepSpeed config is that of a CPU without bf16 wherever this runs.
    """
    port = free_port()
    processes = []
    for rank in range(world_size):
        place: dict[str, object] = {}
        if world_size > 1:
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size}
            place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        environment = {name: str(value) for name, value in place.items()} | {"GLOO_SOCKET_IFNAME": "lo"}
        words = [str(argument) for argument in arguments]
        fault = (sabotage or {}).get(rank)
        place_and_log = (environment, log.with_suffix(f".rank{rank}"))
        process = _SERVER.Process(target=_run_rank, args=(stage, words, *place_and_log, fault, of_any_machine))
        process.start()
        processes.append(process)
    return processes


def wait_ranks(processes: Sequence[Process], log: Path, timeout: float = TIMEOUT_SECONDS) -> Finished:
    """Wait for all ranks; when one fails, or the time is over, the others are killed."""
    deadline = time.monotonic() + timeout
    while any(process.is_alive() for process in processes) and time.monotonic() < deadline:
        if any(process.exitcode for process in processes):
            time.sleep(1)  # let the others end by themselves
            break
        time.sleep(0.05)
    kill_ranks(processes)
    worst = next((process.exitcode for process in processes if process.exitcode), 0)
    return Finished(worst, log.with_suffix(".rank0").read_text(errors="replace"))


def kill_ranks(processes: Sequence[Process]) -> None:
    """Kill -9 what still runs."""
    for process in processes:
        if process.is_alive():
            process.kill()
        process.join()


def run_ranks(stage: str, arguments: Sequence[object], *, world_size: int = 1, log: Path) -> Finished:
    """Run a training command to its end."""
    return wait_ranks(start_ranks(stage, arguments, world_size, log), log)


def run_command_line(words: Sequence[object], *, timeout: float = TIMEOUT_SECONDS) -> Finished:
    """Run a command as a user types it, from the checkout and with the virtual environment's `bin` on the PATH."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    process = subprocess.Popen(
        [str(word) for word in words],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        cwd=ROOT,
        text=True,
        errors="replace",
    )
    try:
        output, _ = process.communicate(timeout=timeout)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return Finished(process.returncode, output)


def exit_codes(processes: Sequence[Process], *, timeout: float = TIMEOUT_SECONDS) -> list[int | None]:
    """Wait until all ranks have ended by themselves; None stands for one that had to be killed."""
    deadline = time.monotonic() + timeout
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
    codes = [process.exitcode for process in processes]
    kill_ranks(processes)
    return codes


def wait_for_step(directory: Path, step: int, processes: Sequence[Process], log: Path) -> None:
    """Wait until a run has logged so many training steps; fail the test if it ends before."""
    path = directory / "metrics.jsonl"
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not path.is_file() or path.read_text().count('"learning_rate"') < step:
        running = all(process.is_alive() for process in processes)
        assert running, wait_ranks(processes, log).output
        assert time.monotonic() < deadline, "the run did not get to the step"
        time.sleep(0.01)


def _run_rank(
    stage: str,
    words: list[str],
    environment: dict[str, str],
    log: Path,
    sabotage: Callable[[], None] | None,
    of_any_machine: bool,
) -> None:
    os.environ.update(environment)
    with log.open("wb") as handle:
        for stream in (1, 2):
            os.dup2(handle.fileno(), stream)
    sys.argv = [f"{stage}.py", *words]
    if of_any_machine:
        ds_config = importlib.import_module("tinybert_ds.engine.ds_config")
        ds_config.multiplies_fast = lambda dtype, device: False
    if sabotage is not None:
        sabotage()
    if stage == SERIES:
        for command in " ".join(words).split(f" {THEN} "):  # no word of a test's command line holds a space
            sys.argv = ["general_distill.py", *command.split(" ")]
            prepare()
            run(importlib.import_module("tinybert_ds.stages.general_distill").main)
    elif stage in DATA_TOOLS:
        run_command(importlib.import_module(f"data_tools.{stage}").main)
    else:
        prepare()
        run(importlib.import_module(f"tinybert_ds.stages.{stage}").main)


def read_metrics(directory: Path) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl without their clock."""
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "clock"} for line in lines]


def write_documents(path: Path, *, documents: int, seed: int = 0) -> None:
    """Write a corpus of random sentences: one a line, a blank line between documents."""
    rng = random.Random(seed)
    texts = []
    for _ in range(documents):
        sentences = [" ".join(rng.choices(WORDS, k=rng.randint(2, 14))) for _ in range(rng.randint(3, 12))]
        texts.append("\n".join(sentences))
    path.write_text("\n\n".join(texts) + "\n", encoding="utf-8")


def write_sentiment(directory: Path, *, rows: int, seed: int = 0) -> None:
    """Write train.tsv and dev.tsv in SST-2's layout; the label is whether "good" is in the sentence."""
    directory.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    neutral = [word for word in WORDS if word not in ("good", "bad") and not word.startswith("##")]
    for name, count in (("train", rows), ("dev", max(8, rows // 4))):
        lines = ["sentence\tlabel"]
        for _ in range(count):
            label = rng.randint(0, 1)
            words = rng.choices(neutral, k=rng.randint(1, 20))
            words.insert(rng.randint(0, len(words)), "good" if label else "bad")
            lines.append(f"{' '.join(words)}\t{label}")
        (directory / f"{name}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
