"""When what happens in a run, in optimizer steps: pure functions of the arguments and the source."""

from __future__ import annotations

from dataclasses import dataclass

from tinybert_ds.data.batching import BatchSource


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


def count_steps(source: BatchSource, *, max_steps: int | None, num_epochs: float) -> int:
    """Return the optimizer steps of a run: `max_steps`, or those of so many epochs (at least one step)."""
    if max_steps is not None:
        return max_steps
    whole = int(num_epochs)
    steps = sum(source.steps_in_epoch(epoch) for epoch in range(whole))
    if num_epochs > whole:
        steps += int((num_epochs - whole) * source.steps_in_epoch(whole))
    return max(1, steps)


def locate(source: BatchSource, step: int) -> tuple[int, int]:
    """Return the epoch, and the position inside it, of the optimizer step after the first `step` ones."""
    epoch = 0
    while step >= source.steps_in_epoch(epoch):
        step -= source.steps_in_epoch(epoch)
        epoch += 1
    return epoch, step
