"""Operator calls and processor time of a step of general distillation on a CPU, whatever it learns.

    python tests/benchmarks/count_calls.py [--configs zero0_fp32 ...] [--rounds 9] [--parts]

4 rows of 16 tokens, a 12-layer teacher of width 768 and the 4L_312 student, one thread. Calls are those that PyTorch's
profiler sees, all of them and those that no other operator made; the time is the fastest round's.

--parts tells them by the part of a step that they are made in, and beside them those of the least step: both models as
transformers has them, the student's backward from a gradient of ones, clipping and fused AdamW of PyTorch, no loss.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch.profiler import ProfilerActivity, profile, record_function

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.benchmarks import bench_step
from tests.benchmarks.measurement import environment_line
from tests.benchmarks.step_cases import Case, batches_of, build_models
from tinybert_ds.engine.teacher import EngineTeacher
from tinybert_ds.models.student import DistilledStudent
from tinybert_ds.objective import IntermediateObjective

CONFIGS = {"zero0_fp32": "fp32", "zero0_autocast_bf16": "bf16", "zero1_bf16": "bf16"}
"""A shipped DeepSpeed config, and the teacher's precision beside it."""

OPERATORS = ("aten::", "mkldnn::")
CASE = Case("fixed", 4, 1, 16, 16)
PART = "part of a step: "
PARTS = ("teacher", "student", "losses", "backward", "optimizer")
OWNERS = ((EngineTeacher, "__call__", "teacher"), (DistilledStudent, "forward", "student"))
OWNERS += ((IntermediateObjective, "forward", "losses"),)


class Calls(NamedTuple):
    """Operator calls."""

    all: int
    outer: int  # made by no other operator
    parts: Mapping[str, int]  # all of them, by the innermost part of a step


def count(run: Callable[[], object]) -> Calls:
    """Count what one call makes."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        run()
    calls = [event for event in profiler.events() if event.name.startswith(OPERATORS)]
    parts = dict.fromkeys((*PARTS, ""), 0)
    for call in calls:
        parts[part_of(call)] += 1
    outer = [call for call in calls if call.cpu_parent is None or not call.cpu_parent.name.startswith(OPERATORS)]
    return Calls(len(calls), len(outer), parts)


def part_of(event: Any) -> str:
    """Return the innermost part of a step that an event of the profiler lies in, "" for none."""
    while event is not None and not event.name.startswith(PART):
        event = event.cpu_parent
    return event.name.removeprefix(PART) if event is not None else ""


def marked(work: Callable[..., Any], part: str) -> Callable[..., Any]:
    """Return the same, whose calls are of a part of a step."""

    def run(*arguments: Any, **options: Any) -> Any:
        with record_function(PART + part):
            return work(*arguments, **options)

    return run


@contextmanager
def marked_parts() -> Iterator[None]:
    """Let engines that are built inside the context mark the parts of their steps there."""
    build = bench_step.build_engine

    def marking(*arguments: Any, **options: Any) -> Any:
        engine = build(*arguments, **options)
        engine.backward, engine.step = marked(engine.backward, "backward"), marked(engine.step, "optimizer")
        return engine

    patches = [mock.patch.object(owner, name, marked(getattr(owner, name), part)) for owner, name, part in OWNERS]
    with patches[0], patches[1], patches[2], mock.patch.object(bench_step, "build_engine", marking):
        yield


def least_step(dtype: str) -> Callable[[], None]:
    """Return the least step that PyTorch and transformers have without anything of ours, under autocast for "bf16"."""
    models = build_models("usual", 0.0)
    models.teacher.pooler = models.student.pooler = None
    teacher, student = models.teacher.eval().to(bench_step.DTYPES[dtype]), models.student.train()
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-5, fused=True)
    batch = next(batches_of(CASE, bins=True))
    inputs = {"input_ids": batch.input_ids, "token_type_ids": batch.token_type_ids}

    def update() -> None:
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()

    def run() -> None:
        optimizer.zero_grad()
        with torch.no_grad():
            marked(teacher, "teacher")(**inputs)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == "bf16"):
            states = marked(student, "student")(**inputs).last_hidden_state
        marked(states.backward, "backward")(torch.ones_like(states))
        marked(update, "optimizer")()

    return run


def line(name: str, calls: Calls, seconds: float, *, by_parts: bool) -> str:
    """Return a row of the table."""
    parts = "".join(f" {calls.parts[part]:,} |" for part in PARTS) if by_parts else ""
    return f"| {name} | {calls.all:,} | {calls.outer:,} | {seconds:.3f} |{parts}"


def fastest(run: Callable[[], object], rounds: int) -> float:
    """Return the processor seconds of the fastest round, after one that does not count."""
    run()
    times = []
    for _ in range(rounds):
        begin = time.process_time()
        run()
        times.append(time.process_time() - begin)
    return min(times)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", nargs="+", choices=CONFIGS, default=list(CONFIGS))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--parts", action="store_true", help="by parts of a step, beside the least step")
    words = parser.parse_args()
    torch.set_num_threads(1)
    print(environment_line())
    titles = "".join(f" {part} |" for part in PARTS) if words.parts else ""
    print(f"\n| config | calls | by no other operator | s |{titles}")
    print("|---|---:|---:|---:|" + "---:|" * (len(PARTS) if words.parts else 0))
    with marked_parts():
        for config in words.configs:
            run = bench_step.prepare_ours(CASE, "usual", CONFIGS[config], f"{config}.json")
            seconds = fastest(run, words.rounds)
            print(line(config, count(run), seconds, by_parts=words.parts), flush=True)
    for dtype in ("fp32", "bf16") if words.parts else ():
        run = least_step(dtype)
        seconds = fastest(run, words.rounds)
        print(line(f"the least step, {dtype}", count(run), seconds, by_parts=True), flush=True)


if __name__ == "__main__":
    main()
