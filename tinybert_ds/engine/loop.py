"""The only training loop: all stages run through it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch.distributed as dist
from torch import Tensor

from tinybert_ds.data.batching import BatchSource, prefetch, token_counts
from tinybert_ds.engine.checkpoints.best_student import keep_best
from tinybert_ds.engine.checkpoints.store import Checkpoints, TrainingState
from tinybert_ds.engine.ranks.consensus import Consensus
from tinybert_ds.engine.ranks.process_group import World, mean_over_ranks, seed_forward
from tinybert_ds.engine.student import gradient_norm
from tinybert_ds.engine.teacher_pass import TeacherPass, pin
from tinybert_ds.engine.watch.communication import watched_collectives
from tinybert_ds.engine.watch.health import Health, require_finite, skipped_step
from tinybert_ds.engine.watch.monitor import Monitor, Stopwatch
from tinybert_ds.engine.watch.stall import StallWatch
from tinybert_ds.errors import PreemptedError
from tinybert_ds.preemption import Preemption
from tinybert_ds.types import Batch, LossTerms


@dataclass(frozen=True)
class Plan:
    """When what happens, in optimizer steps."""

    total_steps: int
    logging_steps: int
    checkpoint_steps: int
    evaluation_steps: int | None
    accumulation: int
    seed: int

    def is_looked_at(self, step: int) -> bool:
        """Whether the numbers of this step are read: they are logged, or something rests on them."""
        intervals = (self.logging_steps, self.checkpoint_steps, self.evaluation_steps)
        return any(self.is_due(interval, step) for interval in intervals)

    def is_due(self, interval: int | None, step: int) -> bool:
        """Whether something that happens every `interval` steps, and at the end, happens after this step."""
        return interval is not None and (step % interval == 0 or step == self.total_steps)


@dataclass(frozen=True)
class Evaluation:
    """How the student is judged while it trains."""

    run: Callable[[], dict[str, float]]  # metrics by name, "eval_...", the same on all ranks
    score: str | None  # the metric whose highest value is the best; None: the last state is the result


@dataclass(frozen=True)
class StudentRun:
    """A student in training and all that is its own; several of them may learn from one teacher pass."""

    engine: Any
    state: TrainingState
    checkpoints: Checkpoints
    monitor: Monitor
    evaluation: Evaluation | None
    export: Callable[[Path], None]  # writes the student as it is to a directory; called on all ranks
    health: Health


class Guards(NamedTuple):
    """What looks after the process that trains."""

    preemption: Preemption
    stall: StallWatch


class Step(NamedTuple):
    """One optimizer step and its place in the data, with this rank's part of it."""

    number: int  # from 1
    epoch: int
    num_samples: int  # of the global batch
    micro_batches: list[Batch]
    following: Batch | None = None  # the first micro-batch of the next step

    def token_counts(self) -> tuple[int, int]:
        """(real tokens, computed tokens) of this rank's part."""
        counts = [token_counts(batch) for batch in self.micro_batches]
        return sum(real for real, _ in counts), sum(computed for _, computed in counts)


def train(
    runs: Sequence[StudentRun], teacher_pass: TeacherPass, source: BatchSource, plan: Plan, world: World, guards: Guards
) -> None:
    """Take all students, which stand at the same step, to the end of the plan; their states are kept up to date.

    Raises:
        PreemptedError: Some rank was asked to stop; all students are saved.
        UserError: On all ranks: data that cannot be read, numbers that are none any more, a checkpoint that cannot be
            written.
    """
    stopwatch = Stopwatch(world.device)
    consensus = Consensus(world)
    engines = [run.engine for run in runs]
    for engine in engines:
        engine.train()
    first_step = saved_step = runs[0].state.step
    batches = prefetch(with_following(global_batches(source, first_step, plan, world)))
    with closing(batches) as steps, watched_collectives(stopwatch, world.size):
        for _ in range(first_step, plan.total_steps):
            with stopwatch.measure("data"):
                step = consensus.draw(steps, stop=guards.preemption.asked)
            if step is None:
                stop(runs, saved_step, guards.preemption)
            looked_at = plan.is_looked_at(step.number)
            all_terms = optimizer_step(
                engines, teacher_pass, step, stopwatch, seed=plan.seed, rank=world.rank, need_value=looked_at
            )
            stopwatch.count(samples=step.num_samples, tokens=step.token_counts()[0])
            for run in runs:
                run.state.step = step.number
                run.state.samples += step.num_samples
                run.monitor.advance()
            examine(runs, all_terms, looked_at=looked_at)
            if plan.is_due(plan.logging_steps, step.number):
                clock = stopwatch.read()
                for run, terms in zip(runs, all_terms, strict=True):
                    log_step(run, terms, step, clock, world)
            if plan.is_due(plan.evaluation_steps, step.number):
                with stopwatch.measure("evaluation"):
                    for run in runs:
                        evaluate(run, world)
            if plan.is_due(plan.checkpoint_steps, step.number):
                with stopwatch.measure("save"):
                    save(runs)
                saved_step = step.number
            guards.stall.alive(f"step {step.number}")
    if consensus.any_wishes(stop=guards.preemption.asked):  # since the last step was drawn: the next start finishes
        stop(runs, saved_step, guards.preemption)
    rest = stopwatch.read()  # what came after the last logged step
    for run in runs:
        run.monitor.account(rest)


def save(runs: Sequence[StudentRun]) -> None:
    """Write a checkpoint of each student; older ones go only when all are written, so that all can go on together."""
    for run in runs:
        run.monitor.flush()
        run.checkpoints.save(run.engine, run.state)
    for run in runs:
        run.checkpoints.prune()


def stop(runs: Sequence[StudentRun], saved_step: int, preemption: Preemption) -> NoReturn:
    """Save all students where they stand, unless a checkpoint has them so, and leave."""
    step = runs[0].state.step
    if step != saved_step:
        for run in runs:
            run.health.require_finite_so_far(run.checkpoints.last_good)
        save(runs)
    dist.barrier()
    preemption.done()
    where = f"at step {step} with everything saved" if step else "before the first step"
    raise PreemptedError(f"preempted {where}; start the same command again to go on")


def examine(runs: Sequence[StudentRun], all_terms: Sequence[Mapping[str, Tensor | float]], *, looked_at: bool) -> None:
    """Watch the numbers of a step, and stop where one that was seen since the last look is none.

    A step that fp16's loss scaler has left out changed nothing, and is not held against the student.
    """
    for run, terms in zip(runs, all_terms, strict=True):
        if not skipped_step(run.engine, run.state.step, run.checkpoints.last_good):
            if looked_at:
                run.health.watch(run.state.step, "loss", terms["loss"])
            if "grad_norm" in terms:
                run.health.watch(run.state.step, "gradient norm", terms["grad_norm"])
        if looked_at:
            run.health.require_finite_so_far(run.checkpoints.last_good)


def global_batches(source: BatchSource, first_step: int, plan: Plan, world: World) -> Iterator[Step]:
    """Yield this rank's part of every optimizer step after the first `first_step` ones."""
    epoch, position = locate(source, first_step)
    for number in range(first_step + 1, plan.total_steps + 1):
        if position == source.steps_in_epoch(epoch):
            epoch, position = epoch + 1, 0
        micro_batches = source.micro_batches(
            epoch, position, rank=world.rank, world_size=world.size, accumulation=plan.accumulation
        )
        pinned = [pin(batch, world.device) for batch in micro_batches]
        yield Step(number, epoch, source.samples_in_step(epoch, position), pinned)
        position += 1


def with_following(steps: Iterable[Step]) -> Iterator[Step]:
    """Tell each step what comes after it, so that the teacher can be ahead of the student."""
    for step, after in pairwise(chain(steps, [None])):
        assert step is not None
        yield step._replace(following=after.micro_batches[0] if after else None)


def locate(source: BatchSource, step: int) -> tuple[int, int]:
    """Return the epoch, and the position inside it, of the optimizer step after the first `step` ones."""
    epoch = 0
    while step >= source.steps_in_epoch(epoch):
        step -= source.steps_in_epoch(epoch)
        epoch += 1
    return epoch, step


def count_steps(source: BatchSource, *, max_steps: int | None, num_epochs: float) -> int:
    """Return the optimizer steps of a run: `max_steps`, or those of so many epochs (at least one step)."""
    if max_steps is not None:
        return max_steps
    whole = int(num_epochs)
    steps = sum(source.steps_in_epoch(epoch) for epoch in range(whole))
    if num_epochs > whole:
        steps += int((num_epochs - whole) * source.steps_in_epoch(whole))
    return max(1, steps)


def optimizer_step(
    engines: Sequence[Any],
    teacher_pass: TeacherPass,
    step: Step,
    stopwatch: Stopwatch,
    *,
    seed: int,
    rank: int,
    need_value: bool,
) -> list[dict[str, Tensor | float]]:
    """Forward, backward and step of every student over this rank's micro-batches of one global batch.

    Returns:
        For each student this rank's mean of each scalar loss term, still on the device, which may be NaN without
        `need_value`; "learning_rate"; and where the engine knows it, "grad_norm" (global, before clipping).
    """
    means: list[dict[str, Tensor | float]] = [{"learning_rate": float(engine.get_lr()[0])} for engine in engines]
    followings = [*step.micro_batches[1:], step.following]
    for index, (micro_batch, following) in enumerate(zip(step.micro_batches, followings, strict=True)):
        with stopwatch.measure("teacher"):
            batch, teacher_output = teacher_pass(micro_batch, following)
        last = index == len(step.micro_batches) - 1
        for engine, mean in zip(engines, means, strict=True):
            with stopwatch.measure("student"):
                seed_forward(seed, step.number, index, rank)
                terms = engine(batch, teacher_output, need_value)
                if engine is engines[-1]:
                    del teacher_output  # no backward needs it: the losses took their gradients in the forward
                scalars = backward_and_step(engine, terms, need_norm=last)
            for name, value in scalars.items():
                share = value if name == "grad_norm" else value / len(step.micro_batches)
                mean[name] = mean.get(name, 0.0) + share
    return means


def backward_and_step(engine: Any, terms: LossTerms, *, need_norm: bool) -> dict[str, Tensor | float]:
    """Take a student's engine from its losses on; return the scalar terms and, on demand, the gradient norm."""
    engine.backward(terms["loss"])
    norm = gradient_norm(engine) if need_norm else None
    engine.step()
    scalars: dict[str, Tensor | float] = {name: value.detach() for name, value in terms.items() if value.dim() == 0}
    if need_norm:
        norm = engine.get_global_grad_norm() if norm is None else norm
    if norm is not None:
        scalars["grad_norm"] = norm
    return scalars


def log_step(
    run: StudentRun, terms: Mapping[str, Tensor | float], step: Step, clock: dict[str, float], world: World
) -> None:
    """Average over the ranks and write the step."""
    real, computed = step.token_counts()
    values = mean_over_ranks(
        {
            **{name: float(value) for name, value in terms.items()},
            "real": real,
            "computed": computed,
            "speed": clock["tokens_per_second"],
        },
        world,
    )
    if run.engine.fp16_enabled():
        values = {name: value for name, value in values.items() if math.isfinite(value)}  # of a step left out
        values["skipped_steps"] = run.engine.skipped_steps
    clock = {**clock, "tokens_per_second": values.pop("speed") * world.size}
    padding_share = 1 - values.pop("real") / values.pop("computed")
    place = {"epoch": step.epoch, "samples": run.state.samples}
    run.monitor.log_step(step.number, {**values, "padding_share": padding_share, **place}, clock)


def evaluate(run: StudentRun, world: World) -> None:
    """Evaluate a student, log, and keep it if it is the best so far."""
    if run.evaluation is None:
        return
    run.engine.eval()
    metrics = run.evaluation.run()
    run.engine.train()
    require_finite(metrics, run.state.step, run.checkpoints.last_good)
    run.state.metrics = metrics
    run.monitor.log_evaluation(run.state.step, metrics)
    if run.evaluation.score is None:
        return
    score = metrics[run.evaluation.score]
    if run.state.best_score is None or score > run.state.best_score:
        run.state.best_score, run.state.best_step = score, run.state.step
        keep_best(run.checkpoints.directory, run.state.step, run.export, world)
