"""Host time of a recorded step of small rows under the GPU's default config, on a CPU: Python and DeepSpeed alone.

    python tests/benchmarks/host_step.py [--configs zero2_bf16 ...] [--steps 300]

Models of the usual depth and of a width of 12 to 32, so that no operator takes time, and recordings whose replay does
nothing, as the host has nothing to do in one but to start it. What is left is what the host does in a step that is not
logged: batch, engine, gradients, norm, clipping, AdamW, learning rate. Milliseconds of one thread's processor time,
medians; what a launch on CUDA costs beside its call on a CPU is not in them. "operators" are what PyTorch dispatches
there beside views and allocations.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.benchmarks import bench_step, step_cases
from tests.benchmarks.count_step import configs, modules
from tests.benchmarks.launch_counter import LaunchCounter
from tests.benchmarks.measurement import environment_line
from tinybert_ds.engine.cuda_recorder import Recorded, Work
from tinybert_ds.engine.graphs import RecordedStudent, RecordedTeacher
from tinybert_ds.engine.loop import Step, optimizer_step
from tinybert_ds.engine.student import build_engine
from tinybert_ds.engine.teacher_pass import TeacherPass
from tinybert_ds.engine.watch.monitor import Stopwatch
from tinybert_ds.losses import gradients_only

PARTS = ("forward", "backward", "step")
"""Methods of the engine that are timed; what is left is the loop's."""
WARMUPS = 10


class IdleRecorder:
    """Does the work once; its replay does nothing, and the outputs stay what they were."""

    def record(self, work: Work) -> Recorded:
        """Return the outputs of one time."""
        return Recorded(tuple(work()), lambda: None)

    def has_room(self) -> bool:
        """There always is."""
        return True


def prepare(config: str) -> tuple[Callable[[], object], Any]:
    """Return a step under a shipped config that is replayed, and its engine."""
    world = bench_step.joined_world()
    case = step_cases.Case("host", 2, 1, 8, 8)
    torch.manual_seed(0)
    teacher, student = modules(*configs(width_divisor=24))
    ds_config = bench_step.deepspeed_config(case, f"{config}.json", world)
    engine = build_engine(student, ds_config, weight_decay=0.01, total_steps=10**6, warmup=0.0, schedule="constant")
    engine.train()
    teacher.to(next(student.parameters()).dtype)
    asked = RecordedTeacher(torch.no_grad()(teacher), IdleRecorder())  # type: ignore[arg-type]
    student.runner = RecordedStudent(student, IdleRecorder(), teacher=asked)  # type: ignore[arg-type]
    batch = next(step_cases.batches_of(case, bins=True))
    step = Step(1, 0, case.rows, [batch._replace(input_ids=batch.input_ids % 100)])
    teacher_pass, stopwatch = TeacherPass(asked, world.device), Stopwatch(world.device)

    def run() -> None:
        with gradients_only():
            optimizer_step([engine], teacher_pass, step, stopwatch, seed=0, rank=0, need_terms=False)

    for _ in range(WARMUPS):
        run()
    return run, engine


def timed(work: Callable[..., Any], seconds: list[float]) -> Callable[..., Any]:
    """Return the same that notes the processor time of this thread."""

    def run(*arguments: Any, **options: Any) -> Any:
        begin = time.thread_time()
        result = work(*arguments, **options)
        seconds.append(time.thread_time() - begin)
        return result

    return run


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", nargs="+", default=["zero2_bf16", "zero1_bf16", "zero0_autocast_bf16"])
    parser.add_argument("--steps", type=int, default=300)
    values = parser.parse_args(arguments)
    torch.set_num_threads(1)
    print(environment_line())
    print("\n| config | operators | ms | forward | backward | step | loop |\n|---|---:|---:|---:|---:|---:|---:|")
    for config in values.configs:
        run, engine = prepare(config)
        with LaunchCounter() as counter:
            run()
        seconds: dict[str, list[float]] = {name: [] for name in ("all", *PARTS)}
        for name in PARTS:
            setattr(engine, name, timed(getattr(engine, name), seconds[name]))
        run = timed(run, seconds["all"])
        for _ in range(values.steps):
            run()
        total, *parts = (statistics.median(found) * 1e3 for found in seconds.values())
        cells = " | ".join(f"{ms:.2f}" for ms in (total, *parts, total - sum(parts)))
        print(f"| {config} | {counter.tally.launches} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
