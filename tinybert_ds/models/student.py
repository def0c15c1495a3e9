"""The student under training: encoder and objective in one module, and which of its parameters the optimizer gets.

One engine then owns every trained parameter, and every use of one is inside its forward, as ZeRO-3 demands.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tinybert_ds.models.capture import CapturingEncoder
from tinybert_ds.models.probe import in_eval_mode, probe_batch
from tinybert_ds.types import Batch, EncoderOutput, LossTerms


class TeacherPart(NamedTuple):
    """The part of a teacher's output that one of its students imitates: positions in the tuples of EncoderOutput."""

    states: tuple[int, ...]
    layers: tuple[int, ...]

    @classmethod
    def of(cls, teacher: CapturingEncoder, states: Sequence[int], attention_layers: Sequence[int]) -> TeacherPart:
        """Return where the teacher's output holds these states and attention layers of its model."""
        return cls(
            tuple(teacher.states.index(state) for state in states),
            tuple(teacher.attention_layers.index(layer) for layer in attention_layers),
        )

    def read(self, output: EncoderOutput) -> EncoderOutput:
        """Return the output with this part alone."""
        return EncoderOutput(
            hidden_states=tuple(output.hidden_states[state] for state in self.states),
            queries=self._own(output.queries),
            keys=self._own(output.keys),
            scalings=tuple(output.scalings[layer] for layer in self.layers),
            logits=output.logits,
            values=self._own(output.values),
        )

    def _own(self, captured: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The layers of this part, of queries, keys or values; nothing where they were not asked for."""
        return tuple(captured[layer] for layer in self.layers) if captured else ()


class DistilledStudent(nn.Module):
    """Encoder and objective (projections and losses) in one forward.

    Args:
        objective: Called as `objective(student_output, teacher_output, batch)`; returns LossTerms.
        teacher_part: The part of the teacher's output that the objective is given; None: all of it.
    """

    def __init__(
        self, encoder: CapturingEncoder, objective: nn.Module, teacher_part: TeacherPart | None = None
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.objective = objective
        self.teacher_part = teacher_part
        self.runner: Callable[..., LossTerms] | None = None
        """Called with what computes the terms, a batch and the teacher's output, it may do so in its own way."""
        self.teacher_check: Tensor | None = None
        """0 while all that the teacher has said since it was last taken is finite, else NaN; on the device, 0-dim."""

    def forward(self, batch: Batch, teacher_output: EncoderOutput | None = None) -> LossTerms:
        """Return the objective's terms for a batch."""
        if self.runner is not None:
            return self.runner(self.compute, batch, teacher_output)
        return self.compute(batch, teacher_output)

    def compute(self, batch: Batch, teacher_output: EncoderOutput | None) -> LossTerms:
        """Return what `forward` does, by the encoder and the objective."""
        if teacher_output is not None:
            check = finite_check(teacher_output)
            self.teacher_check = check if self.teacher_check is None else self.teacher_check + check
        if self.teacher_part is not None and teacher_output is not None:
            teacher_output = self.teacher_part.read(teacher_output)
        return self.objective(self.encoder(batch), teacher_output, batch)


def take_teacher_check(module: Any) -> Tensor | float:
    """Return what a student's module has noted of its teacher since the last call, 0 where nothing; it starts anew."""
    check, module.teacher_check = getattr(module, "teacher_check", None), None
    return 0.0 if check is None else check


def finite_check(output: EncoderOutput) -> Tensor:
    """Return 0 for an output of finite numbers, else NaN: 0-dim float32, without waiting for the device.

    The last state and layer are looked at: what is non-finite in one layer is so in those above it.
    """
    last = [*output.hidden_states[-1:], *output.queries[-1:], *output.keys[-1:], *output.values[-1:]]
    tensors = last if output.logits is None else [*last, output.logits]
    return torch.stack([tensor.detach().sum(dtype=torch.float32) for tensor in tensors]).mul(0).sum()


def freeze_unused(encoder: CapturingEncoder) -> tuple[str, ...]:
    """Take the parameters out of training that nothing the encoder returns depends on.

    A pooler without a head, for example, or the head when only hidden states are asked for. They are found by asking
    autograd on a tiny batch, so that it holds for every architecture; they stay in the saved model as they are.
    Call it before DeepSpeed takes the module (ZeRO-3 leaves no parameters to probe).

    Args:
        encoder: Its parameters all hold their values; those that already are frozen stay so.

    Returns:
        The names of all parameters that do not train, in the names of `encoder.model`.
    """
    parameters = [parameter for parameter in encoder.model.parameters() if parameter.requires_grad]
    with in_eval_mode(encoder), torch.enable_grad():
        output = encoder(probe_batch(encoder.model, sequence_length=8))
        tensors = [*output.hidden_states, *output.queries, *output.keys, *output.values]
        if output.logits is not None:
            tensors.append(output.logits)
        total = torch.stack([tensor.float().sum() for tensor in tensors]).sum()
        gradients = torch.autograd.grad(total, parameters, allow_unused=True)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if gradient is None:
            parameter.requires_grad_(False)
    return tuple(name for name, parameter in encoder.model.named_parameters() if not parameter.requires_grad)


def decay_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Split the trainable parameters for AdamW: no weight decay on biases and normalisation weights, as BERT has it.

    Returns:
        One or two parameter groups with the keys "params" and "weight_decay"; none of them is empty.
    """
    plain = {
        id(parameter)
        for owner in module.modules()
        for name, parameter in owner.named_parameters(recurse=False)
        if name == "bias" or name.endswith("_bias") or "Norm" in type(owner).__name__
    }
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    decayed: list[Tensor] = [parameter for parameter in trainable if id(parameter) not in plain]
    undecayed: list[Tensor] = [parameter for parameter in trainable if id(parameter) in plain]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": undecayed, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def count_parameters(model: nn.Module) -> int:
    """Return the number of parameters, each tied one once, whether they train or not."""
    return sum(parameter.numel() for parameter in model.parameters())
