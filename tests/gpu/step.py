"""What a part of the check is told, and a whole step of distillation, which several parts run."""

from __future__ import annotations

import math
import statistics
import time
import warnings
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

LAUNCHES = ("cudaLaunch", "cuLaunch", "cudaGraphLaunch", "cudaMemcpyAsync", "cudaMemsetAsync")
LISTED = 28
"""Kernels of a step that are printed, longest first."""
SLEEP_CYCLES = 40_000_000
"""About 20 ms, longer than the host takes to launch what is timed."""


class Check:
    """What a part is told, and says."""

    def __init__(self, *, dry: bool) -> None:
        self.dry = dry
        self.failed = 0

    @property
    def device(self) -> str:
        return "cpu" if self.dry else "cuda"

    def say(self, name: str, passed: bool, text: str = "") -> None:
        """Print one line, and count it if it failed."""
        self.failed += not passed
        print(f"{'PASS' if passed else 'FAIL'} {name}: {text}", flush=True)

    def wait(self) -> None:
        """Wait for the device."""
        if not self.dry:
            import torch  # noqa: PLC0415 - in the parts' processes only

            torch.cuda.synchronize()

    def milliseconds(self, run: Callable[[], object], *, rounds: int = 15) -> float:
        """Return the median time of a call: on a GPU the GPU's own, which is kept busy while the host launches."""
        if self.dry:
            begin = time.perf_counter()
            run()
            return (time.perf_counter() - begin) * 1e3
        import torch  # noqa: PLC0415 - in the parts' processes only

        times = []
        for number in range(rounds + 3):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            self.wait()
            torch.cuda._sleep(SLEEP_CYCLES)
            begin.record()
            run()
            end.record()
            self.wait()
            if number >= 3:
                times.append(begin.elapsed_time(end))
        return statistics.median(times)


def build_step(
    check: Check,
    *,
    padded: bool = True,
    config: str = "zero2_bf16.json",
    graphs: bool = False,
    overlap: bool = False,
    teacher_dtype: str = "float16",
    dropout: float = 0.1,
    rows: int = 256,
) -> tuple[Callable[..., float | None], Any]:
    """Return a step of general distillation, 12 layers of 768 to 4L_312, rows of 128; small in a dry run.

    The step returns its loss if it is called with need_value=True. The second is its engine.
    """
    import torch  # noqa: PLC0415

    from tests.benchmarks import bench_step, count_step, step_cases  # noqa: PLC0415
    from tests.support.standin_recorder import StandInRecorder  # noqa: PLC0415
    from tinybert_ds.engine import graphs as recording  # noqa: PLC0415
    from tinybert_ds.engine.cuda_recorder import CudaRecorder  # noqa: PLC0415
    from tinybert_ds.engine.loop import Step, optimizer_step  # noqa: PLC0415
    from tinybert_ds.engine.student import build_engine  # noqa: PLC0415
    from tinybert_ds.engine.teacher import build_teacher  # noqa: PLC0415
    from tinybert_ds.engine.teacher_pass import TeacherPass, pin, side_stream  # noqa: PLC0415
    from tinybert_ds.engine.watch.monitor import Stopwatch  # noqa: PLC0415
    from tinybert_ds.losses import gradients_only  # noqa: PLC0415

    world = bench_step.joined_world()
    rows, length = (4, 16) if check.dry else (rows, 128)
    torch.manual_seed(0)
    configs = count_step.configs(24 if check.dry else 1)
    for one in configs:
        one.update({"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout})
    encoder, student = count_step.modules(*configs)
    case = step_cases.Case("check", rows, 1, length - 7 if padded else length, length)
    ds_config = bench_step.deepspeed_config(case, config, world)
    how = {"weight_decay": 0.01, "total_steps": 10**6, "warmup": 0.0, "schedule": "constant"}
    engine = build_engine(student, ds_config, **how)
    engine.train()
    dtype = torch.float32 if check.dry else getattr(torch, teacher_dtype)
    teacher = build_teacher(encoder, dtype)
    if graphs:
        recorder = StandInRecorder() if check.dry else CudaRecorder(world.device)
        own = StandInRecorder() if check.dry else CudaRecorder(world.device)
        teacher = recording.RecordedTeacher(teacher, own)
        engine.module.runner = recording.RecordedStudent(engine.module, recorder, teacher=teacher)
    teacher_pass = TeacherPass(teacher, world.device, side_stream(world.device) if overlap else None)
    (batch,) = step_cases.batches_of(case, bins=True)
    batch = pin(batch._replace(input_ids=batch.input_ids % configs[1].vocab_size), world.device)
    watch, numbers = Stopwatch(world.device), iter(range(1, 10**9))

    def run(*, need_value: bool = False) -> float | None:
        step = Step(next(numbers), 0, rows, [batch], batch)
        context = gradients_only() if not need_value else warnings.catch_warnings()
        with context:
            (terms,) = optimizer_step([engine], teacher_pass, step, watch, seed=0, rank=0, need_terms=need_value)
        watch._events.clear()
        return float(terms["loss"]) if need_value else None

    return run, engine


def part_step(check: Check) -> None:
    """Sequences a second, peak memory, waits and kernels of a step."""
    import torch  # noqa: PLC0415

    kinds: dict[str, dict[str, Any]] = {
        "recorded, padded rows": {"graphs": True},
        "recorded, full rows": {"graphs": True, "padded": False},
        "launched one by one, padded rows": {},
        "launched one by one, full rows": {"padded": False},
        "overlapped teacher, padded rows": {"overlap": True},
    }
    for name, how in list(kinds.items())[: 3 if check.dry else None]:
        run, engine = build_step(check, **how)
        asks_nothing = isinstance(engine.optimizer.scaled_global_norm, partial)
        check.say(f"norm and clipping, {name}", asks_nothing, "" if asks_nothing else "are DeepSpeed's own")
        first = run(need_value=True)
        for _ in range(3 if check.dry else 8):
            run()
        check.wait()
        begin, steps = time.perf_counter(), 2 if check.dry else 20
        for _ in range(steps):
            run()
        host = (time.perf_counter() - begin) / steps
        check.wait()
        seconds = (time.perf_counter() - begin) / steps
        peak = 0 if check.dry else torch.cuda.max_memory_allocated() >> 20
        last = run(need_value=True)
        assert first is not None
        assert last is not None
        rows = 4 if check.dry else 256
        text = f"{seconds * 1e3:.1f} ms (host {host * 1e3:.1f}), {rows / seconds:,.0f} sequences/s, peak {peak} MiB, "
        text += f"{first:.3f} to {last:.3f}"
        check.say(f"step {name}", math.isfinite(last) and last < first, text)
        if not check.dry and name.endswith("padded rows") and "overlap" not in how:
            look_inside(check, run)
        del run, engine
        if not check.dry:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()


def look_inside(check: Check, run: Callable[..., object]) -> None:
    """Print what a step waits for and its kernels; waiting fails."""
    import torch  # noqa: PLC0415

    torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        run()
    torch.cuda.set_sync_debug_mode("default")
    places = sorted({f"{Path(warning.filename).name}:{warning.lineno}" for warning in found})
    check.say("no waiting in a step", not places, ", ".join(places))
    activities = [torch.profiler.ProfilerActivity.CUDA, torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities) as profile:
        begin = time.perf_counter()
        run()
        host = time.perf_counter() - begin
        check.wait()
    calls = Counter(event.name for event in profile.events() if event.name.startswith(LAUNCHES))
    kernels: dict[str, list[float]] = {}
    for event in profile.events():
        if event.device_type == torch.autograd.DeviceType.CUDA and not event.is_user_annotation:
            kernels.setdefault(event.name, []).append(event.device_time_total / 1e3)
    busy, count = sum(map(sum, kernels.values())), sum(map(len, kernels.values()))
    print(f"{count} kernels and copies, busy {busy:.2f} ms, host {host * 1e3:.1f} ms (profiled); calls {dict(calls)}")
    for name, times in sorted(kernels.items(), key=lambda kernel: -sum(kernel[1]))[:LISTED]:
        print(f"{sum(times):.3f} {len(times)} {name[:90]}", flush=True)
