"""CUDA graphs of a step: what teacher and student launch is recorded for each shape of batch, and replayed by one call.

A step of a small student is hundreds of launches that the host is slower to make than the GPU to carry out. The length
bins give few shapes, and a step that nobody looks at reads nothing back: both make it recordable. The first step of a
shape runs as it is (kernels are compiled then, libraries set up), the second is recorded. Dropout draws the same
numbers either way: a replay reads the generator, which is seeded before each forward.

What is recorded works on tensors at fixed places: inputs are copied to theirs, outputs hold until the next replay.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from tinybert_ds.engine.cuda_recorder import CudaRecorder, Recorded
from tinybert_ds.engine.teacher import EngineTeacher, Teacher
from tinybert_ds.losses import gradients_suffice
from tinybert_ds.models.capture import ATTENTION_NAME, CapturingEncoder
from tinybert_ds.types import Batch, Counts, EncoderOutput, LossTerms, tensors_of

logger = logging.getLogger(__name__)

MOST_SHAPES = 64
"""Of batches that are recorded; 64 lengths up to 512 are that many."""


class Shapes:
    """Which shapes of batches have been seen, and which are recorded."""

    def __init__(self) -> None:
        self._most = MOST_SHAPES
        self._seen: set[Hashable] = set()
        self.recorded: dict[Hashable, Any] = {}

    def is_due(self, shape: Hashable, recorder: CudaRecorder) -> bool:
        """Whether to record the shape now: it has been seen before, and there is room for one more."""
        if shape in self._seen:
            return len(self.recorded) < self._most and recorder.has_room()
        self._seen.add(shape)
        return False

    def record(self, key: Hashable, record: Callable[..., Any], *arguments: Any) -> bool:
        """Record under a key; False where that cannot be done, which is said, and not tried again."""
        try:
            self.recorded[key] = record(*arguments)
        except RuntimeError as error:  # of CUDA, whatever in the models or losses it was that cannot be recorded
            first_line = (str(error).splitlines() or [type(error).__name__])[0]
            logger.debug("what could not be recorded", exc_info=True)
            logger.warning("no CUDA graphs any more, steps are launched as they are: %s", first_line[:300])
            self._most = 0
            return False
        logger.debug("recorded a shape of batch: %s", key)
        return True

    def forget(self) -> None:
        """Drop all that is recorded; shapes count as never seen."""
        self._seen.clear()
        self.recorded.clear()


class Places:
    """Tensors at fixed places that inputs are copied to.

    Args:
        examples: Of each input one, whose shape it keeps.
        fixed: Those that are at a fixed place already, by their id: they are taken as they are.
    """

    def __init__(self, examples: Sequence[Tensor], fixed: frozenset[int] = frozenset()) -> None:
        self.tensors = [example if id(example) in fixed else example.clone() for example in examples]

    def fill(self, inputs: Sequence[Tensor]) -> None:
        """Copy inputs to their places, but for those that are there."""
        for place, tensor in zip(self.tensors, inputs, strict=True):
            if place is not tensor:
                place.copy_(tensor, non_blocking=True)


class RecordedTeacher:
    """A teacher that is recorded for each shape of batch. What it returns holds until it is asked again."""

    def __init__(self, teacher: Teacher, recorder: CudaRecorder) -> None:
        self._teacher, self._recorder = teacher, recorder
        self._shapes = Shapes()
        self.fixed: frozenset[int] = frozenset()
        """The ids of all tensors that it has ever returned from a recording."""

    def __call__(self, batch: Batch) -> EncoderOutput:
        """Return the teacher's output for a batch."""
        shape, inputs = shape_of(batch), tensors_of(batch)
        if shape not in self._shapes.recorded:
            due = self._shapes.is_due(shape, self._recorder)
            if not due or not self._shapes.record(shape, self._record, batch):
                return self._teacher(batch)
        places, recorded, output = self._shapes.recorded[shape]
        places.fill(inputs)
        recorded.replay()
        return output

    def _record(self, batch: Batch) -> tuple[Places, Recorded, EncoderOutput]:
        places = Places(tensors_of(batch))
        fixed_batch = with_tensors(batch, places.tensors)
        examples: list[EncoderOutput] = []

        def work() -> list[Tensor]:
            examples[:] = [self._teacher(fixed_batch)]
            return tensors_of(examples[0])

        recorded = self._recorder.record(work)
        output = with_tensors(examples[0], recorded.outputs)
        self.fixed |= {id(tensor) for tensor in recorded.outputs}
        return places, recorded, output


class RecordedStep(NamedTuple):
    """Forward, losses and backward of a student for a shape of batch."""

    inputs: Places
    forward: Recorded  # the loss, and what was noted of the teacher
    upstream: Tensor  # the gradient of the loss
    backward: Recorded  # gradients of the parameters
    parameters: tuple[nn.Parameter, ...]


class RecordedStudent:
    """Runs a student's module, recorded for each shape of batch; see `DistilledStudent.runner`.

    A step that somebody looks at, an evaluation, or a batch of a new shape runs as it is.

    Args:
        keeps_gradients: Whether a gradient is added to by the next micro-batch: it is copied from its place then.
        teacher: Whose outputs are at fixed places, and need not be copied.
    """

    def __init__(
        self,
        module: nn.Module,
        recorder: CudaRecorder,
        *,
        keeps_gradients: bool = False,
        teacher: RecordedTeacher | None = None,
    ) -> None:
        self._module, self._recorder, self._keeps_gradients, self._teacher = module, recorder, keeps_gradients, teacher
        self._shapes = Shapes()
        self._parameters = tuple(module.parameters())  # to walk through all modules takes a tenth of a step's host time
        self._addresses: tuple[int, ...] = ()
        self._counts: Any = None  # what losses are divided by, as tensors: it differs from step to step

    def __call__(
        self, compute: Callable[[Batch, EncoderOutput | None], LossTerms], batch: Batch, lesson: EncoderOutput | None
    ) -> LossTerms:
        """Return `compute(batch, lesson)`, or of a recorded step the loss alone."""
        is_plain = self._module.training and torch.is_grad_enabled() and gradients_suffice()
        depends_on_content = batch.units is not None or batch.groups is not None  # how much is computed
        if not is_plain or depends_on_content:
            return compute(batch, lesson)
        self._forget_what_moved()
        inputs = tensors_of((batch, lesson))
        places = tuple(id(tensor) if self._is_fixed(tensor) else 0 for tensor in inputs)
        key = (shape_of(batch), places)
        if key not in self._shapes.recorded:
            due = self._shapes.is_due(shape_of(batch), self._recorder)
            if not due or not self._shapes.record(key, self._record, compute, batch, lesson):
                return compute(batch, lesson)
        step: RecordedStep = self._shapes.recorded[key]
        step.inputs.fill(inputs)
        for place, count in zip(self._counts_on(batch.input_ids.device), batch.counts, strict=True):
            place.fill_(count)
        return {"loss": _Replayed.apply(self._module, step, self._keeps_gradients, *step.parameters)}

    def _record(self, compute: Callable[..., LossTerms], batch: Batch, lesson: EncoderOutput | None) -> RecordedStep:
        fixed = self._teacher.fixed if self._teacher is not None else frozenset()
        inputs = Places(tensors_of((batch, lesson)), fixed)
        fixed_batch, fixed_lesson = with_tensors((batch, lesson), inputs.tensors)
        fixed_batch = fixed_batch._replace(counts=self._counts_on(batch.input_ids.device))
        module: Any = self._module
        noted, module.teacher_check = module.teacher_check, None
        losses: list[Tensor] = []

        def forward() -> list[Tensor]:
            before, module.teacher_check = module.teacher_check, None
            with torch.enable_grad(), with_leaves_of_its_own(module) as aliases:
                leaves[:] = [aliases[parameter] for parameter in used or trained]
                losses[:] = [compute(fixed_batch, fixed_lesson)["loss"]]
            check, module.teacher_check = module.teacher_check, before
            return [losses[0].detach(), torch.zeros_like(losses[0]).detach() if check is None else check]

        trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        leaves: list[Tensor] = []
        used: list[nn.Parameter] = []

        def backward() -> list[Tensor]:
            found = torch.autograd.grad(losses[0], leaves, upstream, allow_unused=not used)
            if not used:
                used[:] = [parameter for parameter, one in zip(trained, found, strict=True) if one is not None]
            return [gradient for gradient in found if gradient is not None]

        try:
            recorded_forward = self._recorder.record(forward)
            upstream = torch.ones_like(recorded_forward.outputs[0])
            recorded_backward = self._recorder.record(backward)
        finally:
            module.teacher_check = noted
        return RecordedStep(inputs, recorded_forward, upstream, recorded_backward, tuple(used))

    def _counts_on(self, device: torch.device) -> Any:
        if self._counts is None:
            ones: Any = [torch.ones((), dtype=torch.float64, device=device) for _ in Counts._fields]
            self._counts = Counts(*ones)
        return self._counts

    def _is_fixed(self, tensor: Tensor) -> bool:
        return self._teacher is not None and id(tensor) in self._teacher.fixed

    def _forget_what_moved(self) -> None:
        """Drop all recordings when a parameter has moved to another place, as a recording would go on with the old."""
        addresses = tuple(parameter.data_ptr() for parameter in self._parameters)
        if addresses != self._addresses:
            self._shapes.forget()
            self._addresses = addresses


@contextlib.contextmanager
def with_leaves_of_its_own(module: nn.Module) -> Iterator[dict[nn.Parameter, nn.Parameter]]:
    """Let a module compute with other parameters at the same places; yield them by the module's own. Tied parameters
    stay one. What a module reaches in another way than by its attributes is not replaced.

    A parameter's gradient is added up on the stream on which it was first used. DeepSpeed has used them all, to hook
    them, on the stream of plain steps: a recorded backward pass would wait for that stream, which CUDA refuses.
    """
    own = [(owner, name, one) for owner in module.modules() for name, one in owner._parameters.items()]
    aliases = {one: nn.Parameter(one.detach(), one.requires_grad) for _, _, one in own if one is not None}
    for owner, name, one in own:
        owner._parameters[name] = None if one is None else aliases[one]
    try:
        yield aliases
    finally:
        for owner, name, one in own:
            owner._parameters[name] = one


class _Replayed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, module: Any, step: RecordedStep, keeps_gradients: bool, *parameters: Tensor) -> Tensor:
        ctx.step, ctx.keeps_gradients = step, keeps_gradients
        step.forward.replay()
        loss, check = (output.clone() for output in step.forward.outputs)
        module.teacher_check = check if module.teacher_check is None else module.teacher_check + check
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        step: RecordedStep = ctx.step
        step.upstream.copy_(upstream)
        step.backward.replay()
        # A view is taken over as .grad without a copy.
        found = (one.clone() if ctx.keeps_gradients else one.detach() for one in step.backward.outputs)
        return None, None, None, *found


def graph_refusal(arguments: Any, engines: Sequence[Any], device: torch.device) -> str | None:
    """Return why the steps of a run cannot be recorded, None where they can; "" where it need not be said."""
    if device.type != "cuda" or arguments.cuda_graphs == "off":
        return ""
    reasons = {
        "ZeRO 3 gathers parameters at places of their own in every step": any(
            engine.zero_optimization_partition_weights() for engine in engines
        ),
        "an offloaded optimizer moves gradients to the host": any(
            engine.zero_offload_optimizer() is not None or engine.zero_offload_param() is not None for engine in engines
        ),
        "--gradient_checkpointing reads the random generator": arguments.gradient_checkpointing,
        "--compile records by itself": arguments.compile,
        "--teacher_engine zero3 gathers parameters in every step": getattr(arguments, "teacher_engine", "") == "zero3",
        "the student's attention or its losses may read numbers of the device": not all(
            can_be_recorded(engine.module) for engine in engines
        ),
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def record_steps(
    arguments: Any, engines: Sequence[Any], teacher: Teacher | None, device: torch.device, *, overlapped: bool
) -> Teacher | None:
    """Let the steps of a run be recorded where they can be; return the teacher to ask.

    Args:
        overlapped: Whether the teacher works on the next batch meanwhile: its outputs must not be at fixed places then.
    """
    refusal = graph_refusal(arguments, engines, device)
    if refusal is not None:
        if refusal:
            logger.info("no CUDA graphs: %s", refusal)
        return teacher
    logger.info("CUDA graphs: steps are recorded for each shape of batch from its second one on (--cuda_graphs off)")
    asked = None
    if isinstance(teacher, EngineTeacher) and has_plain_attention(teacher.encoder) and not overlapped:
        asked = RecordedTeacher(teacher, CudaRecorder(device))
    recorder = CudaRecorder(device)
    for engine in engines:
        module = engine.module
        module.runner = RecordedStudent(
            module, recorder, keeps_gradients=arguments.gradient_accumulation_steps > 1, teacher=asked
        )
    return asked or teacher


def can_be_recorded(module: nn.Module) -> bool:
    """Whether nothing in a student's module reads numbers of the device in a step that nobody looks at."""
    objective = getattr(module, "objective", None)
    return getattr(objective, "is_recordable", False) and has_plain_attention(getattr(module, "encoder", None))


def has_plain_attention(encoder: nn.Module | None) -> bool:
    """Whether an encoder's attention is the one that is known to ask the device nothing."""
    return isinstance(encoder, CapturingEncoder) and encoder.config._attn_implementation == ATTENTION_NAME


def shape_of(batch: Batch) -> Hashable:
    """Return all that decides about what is launched for a batch."""
    return (tuple(batch.input_ids.shape), batch.padded, batch.labels is None, batch.units is None)


def with_tensors(tree: Any, tensors: Sequence[Tensor]) -> Any:
    """Return nested tuples with other tensors, in the order of `tensors_of`."""
    left = iter(tensors)

    def rebuild(part: Any) -> Any:
        if isinstance(part, Tensor):
            return next(left)
        if not isinstance(part, tuple):
            return part
        parts = [rebuild(inner) for inner in part]
        return part._make(parts) if hasattr(part, "_make") else tuple(parts)

    return rebuild(tree)
