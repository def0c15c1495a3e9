"""Non-finite losses and gradients: seen at the step where they appear, and nothing is saved of such a state."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from tinybert_ds.engine.deepspeed_private import min_loss_scale
from tinybert_ds.engine.ranks.process_group import gather_objects
from tinybert_ds.errors import TrainingError

_WHAT_TO_DO = (
    "Lower --learning_rate, switch clipping on (--max_grad_norm), or train in fp32 or bf16, in another --output_dir"
)


TEACHER = "teacher's output"
"""The name under which it is watched: what the student's settings are has no influence on it."""
_MOST_LOOSE = 256
_WHAT_TO_DO_ABOUT_THE_TEACHER = (
    "Its numbers leave the range of the precision that it runs in, whatever the student does: take a wider one with "
    "--teacher_dtype (fp32, or bf16 instead of fp16), or another teacher, in another --output_dir"
)


class Health:
    """Keeps, on the device, the numbers of the steps since somebody looked; to keep one more launches nothing there.

    A gradient norm that is NaN or infinite makes every parameter so, and a parameter stays so: to look before a save,
    a log or an evaluation is enough.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._places: list[tuple[int, str]] = []  # step and name of each number that is kept
        self._packed: list[Tensor] = []  # the first of them, (n,) float64 each
        self._loose: list[Tensor] = []  # the others, 0-dim
        self._has_watched = False

    def watch(self, step: int, name: str, value: Tensor | float) -> None:
        """Take note of a number of a step; it is not read yet. A tensor must not be written to any more."""
        self._has_watched = True
        if not isinstance(value, Tensor):
            if math.isfinite(value):
                return
            value = torch.full((), value, dtype=torch.float64, device=self._device)
        self._places.append((step, name))
        self._loose.append(value.detach())
        if len(self._loose) == _MOST_LOOSE:
            self._pack()

    def require_finite_so_far(self, last_good: Callable[[], str]) -> None:
        """Look at what was watched since the last look, on all ranks together.

        Raises:
            TrainingError: On every rank, when some number on any of them was not finite; names the first one.
        """
        if not self._has_watched:
            return
        own = self._not_finite()
        earliest = torch.tensor(min((step for step, *_ in own), default=math.inf), dtype=torch.float64)
        earliest = earliest.to(self._device)
        dist.all_reduce(earliest, op=dist.ReduceOp.MIN)
        if math.isinf(earliest):
            self._places, self._packed = [], []
            return
        every = [found for rank in gather_objects(own) for found in rank]
        step, name, value = min(every, key=lambda found: (found[0], found[1] != TEACHER, found[1]))
        advice = _WHAT_TO_DO_ABOUT_THE_TEACHER if name == TEACHER else _WHAT_TO_DO
        raise TrainingError(f"the {name} at step {step:.0f} is {value}. {advice}. {last_good()}")

    def _not_finite(self) -> list[tuple[int, str, float]]:
        """Return step, name and value of every kept number that is not finite; the device is waited for once."""
        if not self._places:
            return []
        self._pack()
        values = torch.cat(self._packed).tolist()
        kept = zip(self._places, values, strict=True)
        return [(step, name, value) for (step, name), value in kept if not math.isfinite(value)]

    def _pack(self) -> None:
        """Put loose numbers together, so that a long time without a look holds few tensors."""
        if self._loose:
            self._packed.append(torch.stack([value.to(self._device, torch.float64) for value in self._loose]))
        self._loose = []


def require_finite(values: Mapping[str, float], step: int, last_good: Callable[[], str]) -> None:
    """Refuse non-finite results; they must be the same on all ranks.

    Raises:
        TrainingError: Names the first that is NaN or infinite.
    """
    for name, value in values.items():
        if not math.isfinite(value):
            raise TrainingError(f"{name} at step {step} is {value}. {_WHAT_TO_DO}. {last_good()}")


def skipped_step(engine: Any, step: int, last_good: Callable[[], str]) -> bool:
    """Whether fp16's loss scaler has left out the step just taken; its numbers may be infinite then.

    Raises:
        TrainingError: The loss scale has fallen to its minimum: the numbers are too large at any scale.
    """
    if not engine.fp16_enabled() or engine.was_step_applied():
        return False
    scale, minimum = float(engine.optimizer.loss_scale), min_loss_scale(engine)
    if engine.dynamic_loss_scale() and scale <= minimum:
        raise TrainingError(
            f"the fp16 loss scale has fallen to its minimum, {minimum:g}, at step {step}, after "
            f"{engine.skipped_steps} skipped steps: gradients overflow at any scale. {_WHAT_TO_DO}. {last_good()}"
        )
    return True
