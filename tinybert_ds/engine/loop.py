"""The only training loop: all stages run through it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from itertools import chain, pairwise
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from tinybert_ds.data.batching import BatchSource, prefetch, token_counts
from tinybert_ds.engine.checkpoints.best_student import keep_best
from tinybert_ds.engine.graphs import record_steps
from tinybert_ds.engine.ranks.consensus import Consensus
from tinybert_ds.engine.ranks.process_group import World, barrier, mean_over_ranks, seed_forward
from tinybert_ds.engine.run.plan import Plan, locate
from tinybert_ds.engine.run.run import Run, StudentRun
from tinybert_ds.engine.student import gradient_norm
from tinybert_ds.engine.teacher import Teacher
from tinybert_ds.engine.teacher_pass import TeacherPass, pin, side_stream
from tinybert_ds.engine.watch.communication import watched_collectives
from tinybert_ds.engine.watch.health import TEACHER, require_finite, skipped_step
from tinybert_ds.engine.watch.monitor import Stopwatch
from tinybert_ds.errors import PreemptedError, TrainingError
from tinybert_ds.losses import gradients_only
from tinybert_ds.models.student import take_teacher_check
from tinybert_ds.preemption import Preemption
from tinybert_ds.types import Batch, LossTerms


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


def train(run: Run, teacher: Teacher | None, *, overlap_teacher: bool = False) -> None:
    """Take all students of a run, which stand at the same step, to its end; their states are kept up to date.

    Args:
        teacher: None where nothing asks one.
        overlap_teacher: Let the teacher work on the next batch while the students work on this one, where that can be.

    Raises:
        PreemptedError: Some rank was asked to stop; all students are saved.
        UserError: On all ranks: data that cannot be read, non-finite numbers, a checkpoint that cannot be written.
    """
    plan, world, students = run.plan, run.world, run.students
    engines = [student.engine for student in students]
    teacher = record_steps(run.arguments, engines, teacher, world.device, overlapped=overlap_teacher)
    teacher_pass = TeacherPass(teacher, world.device, side_stream(world.device) if overlap_teacher else None)
    preemption = Preemption(run.arguments.preempt_grace_seconds)
    stopwatch, consensus = Stopwatch(world.device), Consensus(world)
    for engine in engines:
        engine.train()
    is_monitored = any(engine.monitor.enabled for engine in engines)  # by DeepSpeed, which reads the loss of every step
    first_step = saved_step = students[0].state.step
    batches = prefetch(with_following(global_batches(run.source, first_step, plan, world)))
    run.until_closed.enter_context(run.stall)
    with preemption.listening(), closing(batches) as steps, watched_collectives(stopwatch, world.size):
        for _ in range(first_step, plan.total_steps):
            with stopwatch.measure("data"):
                step = consensus.draw(steps, stop=preemption.asked)
            if step is None:
                stop(students, saved_step, preemption)
            looked_at = plan.is_looked_at(step.number)
            # The one switch: what nobody reads is not computed, and the device not waited for.
            with nullcontext() if looked_at or is_monitored else gradients_only():
                place = {"seed": plan.seed, "rank": world.rank}
                all_terms = optimizer_step(engines, teacher_pass, step, stopwatch, need_terms=looked_at, **place)
            stopwatch.count(samples=step.num_samples, tokens=step.token_counts()[0])
            for student in students:
                student.state.step = step.number
                student.state.samples += step.num_samples
                student.monitor.advance()
            examine(students, all_terms, looked_at=looked_at)
            if plan.is_due(plan.logging_steps, step.number):
                clock = stopwatch.read()
                for student, terms in zip(students, all_terms, strict=True):
                    log_step(student, terms, step, clock, world)
            if plan.is_due(plan.evaluation_steps, step.number):
                with stopwatch.measure("evaluation"):
                    for student in students:
                        evaluate(student, world)
            if plan.is_due(plan.checkpoint_steps, step.number):
                with stopwatch.measure("save"):
                    save(students)
                saved_step = step.number
            run.stall.alive(f"step {step.number}")
        if consensus.any_wishes(stop=preemption.asked):  # since the last step was drawn: the next start finishes
            stop(students, saved_step, preemption)
    rest = stopwatch.read()  # what came after the last logged step
    for student in students:
        student.monitor.account(rest)


def save(students: Sequence[StudentRun]) -> None:
    """Write a checkpoint of each student; older ones go only when all are written, so that all can go on together."""
    for student in students:
        student.monitor.flush()
        student.checkpoints.save(student.engine, student.state)
    for student in students:
        student.checkpoints.prune()


def stop(students: Sequence[StudentRun], saved_step: int, preemption: Preemption) -> NoReturn:
    """Save all students where they stand, unless a checkpoint has them so, and leave."""
    step = students[0].state.step
    if step != saved_step:
        for student in students:
            student.health.require_finite_so_far(student.checkpoints.last_good)
        save(students)
    barrier()
    preemption.done()
    where = f"at step {step} with everything saved" if step else "before the first step"
    raise PreemptedError(f"preempted {where}; start the same command again to go on")


def examine(
    students: Sequence[StudentRun], all_terms: Sequence[Mapping[str, Tensor | float]], *, looked_at: bool
) -> None:
    """Watch the numbers of a step, and stop where one was not finite since the last look.

    A step that fp16's loss scaler has left out changed nothing, and is not held against the student.
    """
    for student, terms in zip(students, all_terms, strict=True):
        taught = take_teacher_check(student.engine.module)
        try:
            skipped = skipped_step(student.engine, student.state.step, student.checkpoints.last_good)
        except TrainingError:
            student.health.watch(student.state.step, TEACHER, taught)
            student.health.require_finite_so_far(student.checkpoints.last_good)  # was it the teacher, say that
            raise
        if not skipped:
            student.health.watch(student.state.step, TEACHER, taught)
            if looked_at:
                student.health.watch(student.state.step, "loss", terms["loss"])
            if "grad_norm" in terms:
                student.health.watch(student.state.step, "gradient norm", terms["grad_norm"])
        if looked_at:
            student.health.require_finite_so_far(student.checkpoints.last_good)


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


def optimizer_step(
    engines: Sequence[Any],
    teacher_pass: TeacherPass,
    step: Step,
    stopwatch: Stopwatch,
    *,
    seed: int,
    rank: int,
    need_terms: bool = True,
) -> list[dict[str, Tensor | float]]:
    """Forward, backward and step of every student over this rank's micro-batches of one global batch.

    Returns:
        For each student this rank's mean of each scalar loss term, still on the device, if `need_terms`;
        "learning_rate"; and where the engine knows it, "grad_norm" (global, before clipping).
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
                terms = engine(batch, teacher_output)  # `DistilledStudent.forward`: the encoder, then the objective
                if engine is engines[-1]:
                    del teacher_output  # no backward needs it: the losses took their gradients in the forward
                scalars = backward_and_step(engine, terms, need_norm=last)
            if "grad_norm" in scalars:
                mean["grad_norm"] = scalars.pop("grad_norm")
            if need_terms:
                add_share(mean, scalars, len(step.micro_batches))
    return means


def add_share(mean: dict[str, Tensor | float], scalars: Mapping[str, Tensor | float], parts: int) -> None:
    """Add a micro-batch's part of the mean of each term; nothing is computed for a step of one micro-batch."""
    for name, value in scalars.items():
        share = value if parts == 1 else value / parts
        mean[name] = mean[name] + share if name in mean else share


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


def read_together(terms: Mapping[str, Tensor | float]) -> dict[str, float]:
    """Return all terms as numbers; the device is waited for once. An offloaded optimizer's norm is not on it."""
    away = {name: value for name, value in terms.items() if isinstance(value, Tensor) and value.device.type != "cpu"}
    values = torch.stack([value.double() for value in away.values()]).tolist() if away else []
    numbers = {name: float(value) for name, value in terms.items() if name not in away}
    return numbers | dict(zip(away, values, strict=True))


def log_step(
    student: StudentRun, terms: Mapping[str, Tensor | float], step: Step, clock: dict[str, float], world: World
) -> None:
    """Average over the ranks and write the step."""
    real, computed = step.token_counts()
    values = mean_over_ranks(
        {
            **read_together(terms),
            "real": real,
            "computed": computed,
            "speed": clock["tokens_per_second"],
        },
        world,
    )
    if student.engine.fp16_enabled():
        values = {name: value for name, value in values.items() if math.isfinite(value)}  # of a step left out
        values["skipped_steps"] = student.engine.skipped_steps
    clock = {**clock, "tokens_per_second": values.pop("speed") * world.size}
    padding_share = 1 - values.pop("real") / values.pop("computed")
    place = {"epoch": step.epoch, "samples": student.state.samples}
    student.monitor.log_step(step.number, {**values, "padding_share": padding_share, **place}, clock)


def evaluate(student: StudentRun, world: World) -> None:
    """Evaluate a student, log, and keep it if it is the best so far."""
    if student.evaluate is None:
        return
    student.engine.eval()
    metrics = student.evaluate()
    student.engine.train()
    student.health.watch(student.state.step, TEACHER, take_teacher_check(student.engine.module))
    student.health.require_finite_so_far(student.checkpoints.last_good)
    require_finite(metrics, student.state.step, student.checkpoints.last_good)
    student.state.metrics = metrics
    student.monitor.log_evaluation(student.state.step, metrics)
    if student.score is None:
        return
    score = metrics[student.score]
    if student.state.best_score is None or score > student.state.best_score:
        student.state.best_score, student.state.best_step = score, student.state.step
        keep_best(student.checkpoints.directory, student.state.step, student.export, world)
