"""Random faults at random moments, run after run: `python tests/benchmarks/fault_campaign.py --runs 50`

Every run is a small general distillation on two ranks, under ZeRO 1, 2 or 3. It meets one fault or several: a rank is
killed at some step or in the middle of a save, some rank gets SIGTERM or SIGUSR1, a rank stands still, the disk is full
for one rank, a shard is cut or gone, a file of a checkpoint is damaged. Each attempt must end by itself, on all ranks,
with a message; then what was broken is mended and the same command is started again. In the end the run's metrics, the
clock aside, and its weights must equal those of a run that nothing happened to. The last lines say how often each fault
was tried, and how often it struck before its attempt was over. The seed of a run is its number: `--first N --runs 1`
repeats one.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("DS_ACCELERATOR", "cpu")

from data_tools import prepare_corpus
from tests.support.configs import zero_config
from tests.support.models import config_directory, model_directory
from tests.support.runs import exit_codes, read_metrics, start_ranks, write_documents
from tests.support.sabotage import die_writing_checkpoint, leave_at_once
from tinybert_ds.errors import EXIT_FAULT, EXIT_PREEMPTED, EXIT_USER_ERROR

RANKS = 2
STEPS, SAVE_STEPS = 24, 4
MOST_FAULTS = 3
PATIENCE_SECONDS = 180
MESSAGES = {
    EXIT_FAULT: "fault on rank",
    EXIT_USER_ERROR: "error: ",
    EXIT_PREEMPTED: "preempted at step",
    -signal.SIGKILL: "",
}
KILLED_IN_A_SAVE, DAMAGED = "killed in a save", "checkpoint damaged"
ENDS = {
    "killed": (-signal.SIGKILL, EXIT_FAULT),
    KILLED_IN_A_SAVE: (-signal.SIGKILL, EXIT_FAULT),
    "SIGTERM": (EXIT_PREEMPTED,),
    "SIGUSR1": (EXIT_PREEMPTED,),
    "stalled": (EXIT_FAULT,),
    "disk full": (EXIT_USER_ERROR, EXIT_FAULT),  # at a save; in a log
    "shard cut": (EXIT_USER_ERROR,),
    "shard lost": (EXIT_USER_ERROR,),
    None: (),
}
"""How the ranks may end under a fault that strikes before they are through; where it does not, all of them end well."""


@dataclass
class Run:
    """One run of the campaign and what became of it."""

    number: int
    directory: Path
    words: list[object]
    rng: random.Random
    story: list[str] = field(default_factory=list)
    faults: list[tuple[str, bool]] = field(default_factory=list)  # each with whether it struck
    failure: str | None = None

    @property
    def out(self) -> Path:
        return self.directory / "out"

    @property
    def shards(self) -> Path:
        return self.directory / "shards"

    def log(self) -> Path:
        return self.directory / f"log{len(self.story)}"


@dataclass(frozen=True)
class Attempt:
    """A launch that is under way."""

    run: Run
    processes: list[Any]
    rank: int  # the one that the fault strikes
    log: Path

    def strike(self, number: signal.Signals) -> None:
        """Send a signal to the rank, if it still lives."""
        if self.processes[self.rank].is_alive():
            os.kill(self.processes[self.rank].pid, number)


def stand_still(attempt: Attempt) -> None:
    """Stop a rank until the others have given it up."""
    attempt.strike(signal.SIGSTOP)
    other = attempt.processes[1 - attempt.rank]
    other.join(PATIENCE_SECONDS)
    attempt.strike(signal.SIGCONT)


def fill_disk(attempt: Attempt) -> None:
    """Let no file of a rank grow beyond what a checkpoint needs."""
    if attempt.processes[attempt.rank].is_alive():
        resource.prlimit(attempt.processes[attempt.rank].pid, resource.RLIMIT_FSIZE, (30_000, 30_000))


def cut_shard(attempt: Attempt) -> None:
    """Cut a shard short."""
    os.truncate(next(attempt.run.shards.glob("*.bin")), 1000)


def lose_shard(attempt: Attempt) -> None:
    """Remove a shard."""
    next(attempt.run.shards.glob("*.bin")).unlink()


LIVE_FAULTS: dict[str, Callable[[Attempt], None]] = {
    "killed": lambda attempt: attempt.strike(signal.SIGKILL),
    "SIGTERM": lambda attempt: attempt.strike(signal.SIGTERM),
    "SIGUSR1": lambda attempt: attempt.strike(signal.SIGUSR1),
    "stalled": stand_still,
    "disk full": fill_disk,
    "shard cut": cut_shard,
    "shard lost": lose_shard,
}


def damage_checkpoint(run: Run) -> None:
    """Spoil a file of the newest checkpoint as a dying disk does: it is gone, cut, or has a hole of zeros."""
    complete = sorted(run.out.glob("checkpoints/step-*/complete.json"))
    run.faults.append((DAMAGED, bool(complete)))
    if not complete:
        run.story.append("nothing to damage yet")
        return
    victim = run.rng.choice(sorted(complete[-1].parent.rglob("*.*")))
    how = run.rng.choice(("lost", "cut", "zeros in"))
    if how == "lost":
        victim.unlink()
    elif how == "cut":
        os.truncate(victim, victim.stat().st_size // 2)
    else:
        content = bytearray(victim.read_bytes())
        begin, end = len(content) // 3, len(content) * 2 // 3
        content[begin:end] = bytes(end - begin)
        victim.write_bytes(content)
    run.story.append(f"{how} {victim.relative_to(run.out)}")


def make_inputs(folder: Path) -> list[object]:
    """Write models and shards; return the arguments without the output directory and the shards."""
    model_directory(folder / "teacher")
    config_directory(folder / "student", hidden_dropout_prob=0.1)
    write_documents(folder / "corpus.txt", documents=60)
    words = ["--train_corpus", folder / "corpus.txt", "--bert_model", folder / "teacher"]
    words += ["--output_dir", folder / "shards", "--max_seq_len", 64]
    prepare_corpus.main([str(word) for word in words])
    return [
        *("--teacher_model", folder / "teacher", "--student_model", folder / "student", "--max_seq_length", 64),
        *("--train_batch_size", 12, "--learning_rate", 1e-3, "--logging_steps", 1, "--max_steps", STEPS),
        *("--eval_fraction", 0.1, "--save_steps", SAVE_STEPS, "--teacher_dtype", "fp32"),
        *("--stall_timeout_seconds", 5),
    ]


def launch(run: Run, fault: str | None) -> list[int | None]:
    """Start the command, let the fault happen at a random moment, and return how the ranks ended."""
    log, rank = run.log(), run.rng.randrange(RANKS)
    sabotage: dict[int, Callable[[], None]] = {1: leave_at_once}
    if fault == KILLED_IN_A_SAVE:
        step = run.rng.randrange(SAVE_STEPS, STEPS + 1, SAVE_STEPS)
        sabotage[rank] = partial(die_writing_checkpoint, f"step-{step:08d}")
    processes = start_ranks("general_distill", run.words, RANKS, log, sabotage)
    if fault in LIVE_FAULTS:
        wait_for_moment(run, processes, log)
        LIVE_FAULTS[fault](Attempt(run, processes, rank, log))
    codes = exit_codes(processes, timeout=PATIENCE_SECONDS)
    run.story.append(f"{fault or 'nothing'} (rank {rank}): {codes}")
    if fault:
        run.faults.append((fault, any(codes)))
    return codes


def wait_for_moment(run: Run, processes: list[Any], log: Path) -> None:
    """Wait for a random step of this attempt and a random part of it, or the end of the run.

    Not for less than one step: before the ranks have met, it is a launcher that ends them all when one of them dies.
    """
    steps = run.rng.randint(1, STEPS // 2)
    told = log.with_suffix(".rank0")
    deadline = time.monotonic() + PATIENCE_SECONDS
    while any(process.is_alive() for process in processes) and time.monotonic() < deadline:
        if told.is_file() and told.read_text(errors="replace").count("samples/s") >= steps:
            break
        time.sleep(0.002)
    time.sleep(run.rng.random() * 0.1)


def check_end(fault: str | None, codes: list[int | None], log: Path) -> str | None:
    """Return what is wrong with how the ranks of an attempt ended, None if nothing is."""
    if any(code is None for code in codes):
        return "a rank had to be killed: it hung"
    if len({code == 0 for code in codes}) > 1:
        return f"some ranks ended well and some did not: {codes}"
    for rank, code in enumerate(codes):
        text = log.with_suffix(f".rank{rank}").read_text(errors="replace")
        if code not in (0, *ENDS[fault]):
            return f"rank {rank} ended with {code}: {text[-600:]}"
        if rank == 0 and code != 0 and MESSAGES[code] not in text:
            return f"rank 0 ended with {code} and said nothing: {text[-600:]}"
    return None


def campaign_run(number: int, folder: Path, inputs: Path, common: list[object], references: dict[int, Path]) -> Run:
    """Take one run through its faults to its end."""
    rng = random.Random(number)
    directory = folder / f"run{number}"
    shutil.copytree(inputs / "shards", directory / "shards")
    stage = rng.choice(sorted(references))
    config = ["--deepspeed_config", inputs / f"zero{stage}.json", "--pregenerated_data", directory / "shards"]
    run = Run(number, directory, [*common, *config, "--output_dir", directory / "out"], rng)
    faults = [rng.choice([*LIVE_FAULTS, KILLED_IN_A_SAVE]) for _ in range(rng.randint(1, MOST_FAULTS))]
    for fault in [*faults, None]:
        log = run.log()
        run.failure = check_end(fault, launch(run, fault), log)
        if run.failure:
            return run
        shutil.copytree(inputs / "shards", directory / "shards", dirs_exist_ok=True)  # mended
        if fault and rng.random() < 0.3:
            damage_checkpoint(run)
    run.failure = difference(run.out, references[stage])
    return run


def difference(out: Path, reference: Path) -> str | None:
    """Return how a finished run differs from one that nothing happened to; None: not at all."""
    if read_metrics(out) != read_metrics(reference):
        return "the metrics differ from the reference"
    if (out / "model.safetensors").read_bytes() != (reference / "model.safetensors").read_bytes():
        return "the weights differ from the reference"
    return None


def main() -> None:
    """Run the campaign; the exit code is 1 if any run did not end as it should."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--first", type=int, default=0, help="number, and seed, of the first run")
    parser.add_argument("--stages", default="1,2,3", help="ZeRO stages to draw from")
    parser.add_argument("--keep", type=Path, help="directory for inputs, runs and logs; default: a temporary one")
    options = parser.parse_args()
    folder = options.keep or Path(tempfile.mkdtemp(prefix="fault-campaign-"))
    inputs = folder / "inputs"
    inputs.mkdir(parents=True)
    common = make_inputs(inputs)
    references = {}
    for stage in map(int, options.stages.split(",")):
        config = zero_config(inputs / f"zero{stage}.json", stage=stage)
        words = [*common, "--deepspeed_config", config, "--pregenerated_data", inputs / "shards"]
        reference = Run(-1, inputs, [*words, "--output_dir", inputs / f"reference{stage}"], random.Random(0))
        assert launch(reference, None) == [0] * RANKS, reference.story
        references[stage] = inputs / f"reference{stage}"
    good, started = 0, time.monotonic()
    tried, struck = Counter[str](), Counter[str]()
    for number in range(options.first, options.first + options.runs):
        run = campaign_run(number, folder, inputs, common, references)
        good += run.failure is None
        tried.update(fault for fault, _ in run.faults)
        struck.update(fault for fault, hit in run.faults if hit)
        print(f"run {number}: {'; '.join(run.story)}: {run.failure or 'complete and equal'}", flush=True)
        if run.failure is None and options.keep is None:
            shutil.rmtree(run.directory)
    for fault in (*LIVE_FAULTS, KILLED_IN_A_SAVE, DAMAGED):
        print(f"{fault}: tried {tried[fault]} times, struck {struck[fault]} times")
    print(f"{good} of {options.runs} runs complete and equal to the reference, {time.monotonic() - started:.0f} s")
    if options.keep is None and good == options.runs:
        shutil.rmtree(folder)
    sys.exit(good != options.runs)


if __name__ == "__main__":
    multiprocessing.freeze_support()
    main()
