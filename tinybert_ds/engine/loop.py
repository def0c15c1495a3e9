"""The only training loop: all stages run through it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any, NamedTuple

from torch import Tensor

from tinybert_ds.data.batching import BatchSource, prefetch, token_counts
from tinybert_ds.engine.checkpoint import Checkpoints, TrainingState
from tinybert_ds.engine.communication import watched_collectives
from tinybert_ds.engine.distributed import World, mean_over_ranks, seed_step
from tinybert_ds.engine.lessons import Lessons, pin
from tinybert_ds.engine.monitor import Monitor, Stopwatch
from tinybert_ds.engine.student import gradient_norm
from tinybert_ds.errors import TrainingError
from tinybert_ds.types import Batch


@dataclass(frozen=True)
class Plan:
    """When what happens, in optimizer steps."""

    total_steps: int
    logging_steps: int
    checkpoint_steps: int
    evaluation_steps: int | None
    accumulation: int
    seed: int

    def is_due(self, interval: int | None, step: int) -> bool:
        """Whether something that happens every `interval` steps, and at the end, happens after this step."""
        return interval is not None and (step % interval == 0 or step == self.total_steps)


@dataclass(frozen=True)
class Evaluation:
    """How the student is judged while it trains."""

    run: Callable[[], dict[str, float]]  # metrics by name, "eval_...", the same on all ranks
    score: str | None  # the metric whose highest value is the best; None: the last state is the result
    keep_best: Callable[[], None]  # writes the current student as the best one


class Step(NamedTuple):
    """One optimizer step's place in the data, with this rank's part of it."""

    epoch: int
    num_samples: int  # of the global batch
    micro_batches: list[Batch]
    following: Batch | None = None  # the first micro-batch of the next step

    def token_counts(self) -> tuple[int, int]:
        """(real tokens, computed tokens) of this rank's part."""
        counts = [token_counts(batch) for batch in self.micro_batches]
        return sum(real for real, _ in counts), sum(computed for _, computed in counts)


def train(
    engine: Any,
    lessons: Lessons,
    source: BatchSource,
    plan: Plan,
    evaluation: Evaluation | None,
    *,
    state: TrainingState,
    checkpoints: Checkpoints,
    monitor: Monitor,
    world: World,
) -> TrainingState:
    """Train from `state` to the end of the plan and return the last state."""
    stopwatch = Stopwatch(world.device)
    engine.train()
    batches = prefetch(with_following(global_batches(source, state.step, plan, world)))
    with closing(batches) as steps, watched_collectives(stopwatch, world.size):
        for _ in range(state.step, plan.total_steps):
            with stopwatch.measure("data"):
                step = next(steps)
            state.step += 1
            seed_step(plan.seed, state.step, world.rank)
            log_due = plan.is_due(plan.logging_steps, state.step)
            terms = optimizer_step(engine, lessons, step, stopwatch, log_due=log_due)
            state.samples += step.num_samples
            stopwatch.count(samples=step.num_samples, tokens=step.token_counts()[0])
            monitor.advance()
            if log_due:
                log_step(monitor, state, terms, step, stopwatch, world)
            if evaluation and plan.is_due(plan.evaluation_steps, state.step):
                with stopwatch.measure("evaluation"):
                    evaluate(engine, evaluation, state, monitor)
            if plan.is_due(plan.checkpoint_steps, state.step):
                monitor.flush()
                with stopwatch.measure("save"):
                    checkpoints.save(engine, state)
    monitor.account(stopwatch.read())  # what came after the last logged step
    return state


def global_batches(source: BatchSource, first_step: int, plan: Plan, world: World) -> Iterator[Step]:
    """Yield this rank's part of every optimizer step after the first `first_step` ones."""
    epoch, position = locate(source, first_step)
    for _ in range(first_step, plan.total_steps):
        if position == source.steps_in_epoch(epoch):
            epoch, position = epoch + 1, 0
        micro_batches = source.micro_batches(
            epoch, position, rank=world.rank, world_size=world.size, accumulation=plan.accumulation
        )
        pinned = [pin(batch, world.device) for batch in micro_batches]
        yield Step(epoch, source.samples_in_step(epoch, position), pinned)
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
    engine: Any, lessons: Lessons, step: Step, stopwatch: Stopwatch, *, log_due: bool
) -> dict[str, Tensor | float]:
    """Forward, backward and step over this rank's micro-batches of one global batch.

    Returns:
        This rank's mean of each scalar loss term, still on the device; "learning_rate"; "grad_norm" (global, before
        clipping). Where no log is due the losses may be NaN and the norm is left out.
    """
    means: dict[str, Tensor | float] = {}
    learning_rate = float(engine.get_lr()[0])
    norm = None
    last = step.micro_batches[-1]
    for micro_batch, following in zip(step.micro_batches, [*step.micro_batches[1:], step.following], strict=True):
        with stopwatch.measure("teacher"):
            batch, teacher_output = lessons(micro_batch, following)
        with stopwatch.measure("student"):
            terms = engine(batch, teacher_output, log_due)
            engine.backward(terms["loss"])
            if log_due and micro_batch is last:
                norm = gradient_norm(engine)
            engine.step()
        for name, value in terms.items():
            if value.dim() == 0:
                means[name] = means.get(name, 0.0) + value.detach() / len(step.micro_batches)
    if log_due:
        means["grad_norm"] = norm if norm is not None else float(engine.get_global_grad_norm() or 0.0)
    return {**means, "learning_rate": learning_rate}


def log_step(
    monitor: Monitor,
    state: TrainingState,
    terms: dict[str, Tensor | float],
    step: Step,
    stopwatch: Stopwatch,
    world: World,
) -> None:
    """Average over the ranks, stop on a loss that is no number, and write the step."""
    real, computed = step.token_counts()
    clock = stopwatch.read()
    values = mean_over_ranks(
        {
            **{name: float(value) for name, value in terms.items()},
            "real": real,
            "computed": computed,
            "speed": clock["tokens_per_second"],
        },
        world,
    )
    if not math.isfinite(values["loss"]):
        raise TrainingError(
            f"the loss at step {state.step} is {values['loss']}; lower --learning_rate or train in fp32 or bf16. "
            "The checkpoints before this step are intact"
        )
    clock["tokens_per_second"] = values.pop("speed") * world.size
    padding_share = 1 - values.pop("real") / values.pop("computed")
    place = {"epoch": step.epoch, "samples": state.samples}
    monitor.log_step(state.step, {**values, "padding_share": padding_share, **place}, clock)


def evaluate(engine: Any, evaluation: Evaluation, state: TrainingState, monitor: Monitor) -> None:
    """Evaluate, log, and keep the student if it is the best so far."""
    engine.eval()
    metrics = evaluation.run()
    engine.train()
    state.metrics = metrics
    monitor.log_evaluation(state.step, metrics)
    if evaluation.score is None:
        return
    score = metrics[evaluation.score]
    if state.best_score is None or score > state.best_score:
        state.best_score, state.best_step = score, state.step
        evaluation.keep_best()
