"""Weak scaling of general distillation, modelled from what this machine measures.

    python tests/benchmarks/scaling_model.py [--rows 16] [--length 128] [--zero 0 1 2 3] [--ranks 2 8 64 512]
        [--link_gb_s 12.5] [--latency_us 20]

Measured: the time of an optimizer step on one rank (`--rows` samples of `--length` tokens, 12-layer teacher of width
768, the 4L_312 student, fp32), and on two ranks of this machine every collective that DeepSpeed calls in a step: its
kind, how often, how many bytes. Modelled: bytes sent and time per step for more ranks. Writes
results/scaling_model.json and prints a table with the assumptions.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import socket
import statistics
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.benchmarks.bench_step import prepare_ours
from tests.benchmarks.measurement import RESULTS, environment
from tests.benchmarks.step_cases import SIZES, Case
from tinybert_ds.engine.watch.communication import watched_collectives

ASSUMPTIONS = (
    """
weak scaling: every rank works on as many samples, all of one length, whatever the number of ranks
every rank computes as fast as the one rank that was measured; nobody waits for a slower rank, data or checkpoints
communication overlaps with nothing: real runs hide part of it behind the backward pass
a collective sends as little as is possible, (n - 1)/n of the tensor, twice that for an all-reduce, in log2(n) rounds
  (halving and doubling) or with --ring in n - 1, twice as many for an all-reduce; a broadcast or reduce is pipelined
every rank has a link of its own of the stated bandwidth in each direction, and each round waits the stated latency
kinds, numbers and sizes of the collectives are those of two ranks (DeepSpeed's buckets do not depend on the ranks)
""".strip()
    .replace("\n  ", " ")
    .splitlines()
)

Payload = dict[str, tuple[float, float]]
"""Kind of collective -> (calls, bytes) of one step. Bytes are of the full tensor, before or after it is split."""


class Link(NamedTuple):
    """What connects a rank to the next."""

    bytes_per_second: float
    latency_s: float


class Measured(NamedTuple):
    """A step on this machine."""

    step_s: float
    communication_s: float
    payload: Payload


class Modelled(NamedTuple):
    """A step on so many ranks."""

    ranks: int
    sent_bytes: float  # by each rank
    communication_s: float
    step_s: float
    samples_per_s: float
    efficiency: float  # share of the throughput that as many single ranks would have


def passes(operation: str, ranks: int) -> float:
    """Return how often each rank sends the full tensor of a collective."""
    if operation in ("broadcast", "reduce"):
        return 1.0
    around = (ranks - 1) / ranks
    return 2 * around if "all_reduce" in operation else around


def rounds(operation: str, ranks: int, *, ring: bool) -> int:
    """Return how many times the ranks wait for one another in a collective."""
    few = math.ceil(math.log2(ranks))
    if operation in ("broadcast", "reduce"):
        return few
    return (2 if "all_reduce" in operation else 1) * (ranks - 1 if ring else few)


def model(step_s: float, payload: Payload, rows: int, ranks: int, link: Link, *, ring: bool = False) -> Modelled:
    """Return a step on `ranks` ranks.

    Args:
        step_s: Of one rank without communication.
        payload: Of a step.
        rows: Samples of a step on each rank.
        ranks: At least 2.
        link: Between the ranks.
        ring: Whether collectives go around a ring.
    """
    sent = sum(num_bytes * passes(operation, ranks) for operation, (_, num_bytes) in payload.items())
    waits = sum(calls * rounds(operation, ranks, ring=ring) for operation, (calls, _) in payload.items())
    communication_s = sent / link.bytes_per_second + waits * link.latency_s
    total_s = step_s + communication_s
    return Modelled(ranks, sent, communication_s, total_s, ranks * rows / total_s, step_s / total_s)


class Counter:
    """Counts the collectives of a process and the time in them."""

    def __init__(self) -> None:
        self.calls: dict[str, list[int]] = {}
        self.seconds = 0.0

    def carry(self, operation: str, num_bytes: int) -> None:
        self.calls.setdefault(operation, []).append(num_bytes)

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - started


def measure(world_size: int, zero: int, case: Case, sizes: str, steps: int) -> Measured:
    """Take so many steps in fresh processes on this machine; return what rank 0 saw of one."""
    context = multiprocessing.get_context("spawn")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    answers: Any = context.Queue()
    places = [{"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size} for rank in range(world_size)]
    environments = [{**place, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port} for place in places]
    how = (f"zero{zero}_fp32.json", case, sizes, steps, answers)
    processes = [context.Process(target=_rank, args=(environment, *how)) for environment in environments]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        raise SystemExit("a rank has failed; its message is above")
    return answers.get()


def _rank(around: Mapping[str, object], ds_config: str, case: Case, sizes: str, steps: int, answers: Any) -> None:
    os.environ.update({name: str(value) for name, value in around.items()}, GLOO_SOCKET_IFNAME="lo")
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    run = prepare_ours(case, sizes, "fp32", ds_config)
    run()  # a warm-up, in which ZeRO also learns the order of its parameters
    counter, seconds = Counter(), []
    with watched_collectives(counter, int(os.environ["WORLD_SIZE"])):
        for _ in range(steps):
            started = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - started)
    payload = {name: (len(sizes) / steps, sum(sizes) / steps) for name, sizes in counter.calls.items()}
    if os.environ["RANK"] == "0":
        answers.put(Measured(statistics.median(seconds), counter.seconds / steps, payload))


def describe(zero: int, alone: Measured, pair: Measured, modelled: Sequence[Modelled]) -> str:
    """Return what was measured and modelled of a ZeRO stage, as Markdown."""
    calls = ", ".join(f"{c:g} {name} of {b / 2**20:.2f} MiB in all" for name, (c, b) in pair.payload.items())
    lines = [
        f"## ZeRO {zero}",
        "",
        f"Measured: one rank {alone.step_s:.3f} s a step; two ranks of this machine, which share its cores, "
        f"{pair.step_s:.3f} s, {pair.communication_s:.3f} s of them in collectives: {calls or 'none'}.",
        "",
        "| ranks | MiB a step, each rank | MiB a step, all | s in communication | s a step | samples/s | efficiency |",
        "|---:|---:|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {m.ranks} | {m.sent_bytes / 2**20:.2f} | {m.ranks * m.sent_bytes / 2**20:.1f} | {m.communication_s:.4f} | "
        f"{m.step_s:.3f} | {m.samples_per_s:.1f} | {m.efficiency:.1%} |"
        for m in modelled
    ]
    return "\n".join([*lines, ""])


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the command; return what it writes."""
    parser = argparse.ArgumentParser(description="Model weak scaling from a measured step.", allow_abbrev=False)
    parser.add_argument("--rows", type=int, default=16, help="samples of a step on each rank")
    parser.add_argument("--length", type=int, default=128, help="tokens of a sample")
    parser.add_argument("--zero", type=int, nargs="+", choices=(0, 1, 2, 3), default=[0, 1, 2, 3])
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 8, 64, 512])
    parser.add_argument("--link_gb_s", type=float, default=12.5, help="GB/s of a rank's link in each direction")
    parser.add_argument("--latency_us", type=float, default=20.0, help="microseconds that a round waits")
    parser.add_argument("--ring", action="store_true", help="collectives go around a ring, in n - 1 rounds")
    parser.add_argument("--steps", type=int, default=3, help="steps that are measured, after one that is not")
    parser.add_argument("--sizes", choices=SIZES, default="usual", help="tiny: models that only show that it runs")
    parser.add_argument("--out", type=Path, default=RESULTS / "scaling_model.json")
    values = parser.parse_args(arguments)
    if min(values.ranks) < 2 or min(values.rows, values.steps) < 1:
        parser.error("--ranks start at 2, --rows and --steps at 1")
    case = Case("scaling", 2 * values.rows, 1, values.length, values.length)
    alone_case = Case("scaling", values.rows, 1, values.length, values.length)
    link = Link(values.link_gb_s * 1e9, values.latency_us * 1e-6)
    alone = measure(1, 0, alone_case, values.sizes, values.steps)
    print("Assumptions:\n" + "\n".join(f"- {line}" for line in ASSUMPTIONS))
    print(f"- link: {values.link_gb_s:g} GB/s, {values.latency_us:g} us\n", flush=True)
    found = {}
    for zero in values.zero:
        pair = measure(2, zero, case, values.sizes, values.steps)
        modelled = [model(alone.step_s, pair.payload, values.rows, n, link, ring=values.ring) for n in values.ranks]
        print(describe(zero, alone, pair, modelled), flush=True)
        found[f"zero{zero}"] = {"two_ranks_here": pair._asdict(), "modelled": [m._asdict() for m in modelled]}
    report = {
        "assumptions": ASSUMPTIONS,
        "settings": {name: value for name, value in vars(values).items() if name != "out"},
        "environment": environment(),
        "one_rank": alone._asdict(),
        **found,
    }
    values.out.parent.mkdir(parents=True, exist_ok=True)
    values.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return report


if __name__ == "__main__":
    main()
