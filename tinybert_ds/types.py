"""What passes between the parts: one batch type, one encoder-output type, one type for losses.

B batch rows, S sequence length, A attention heads, D head size, H hidden size, C classes. NamedTuples and dicts only:
ZeRO-3 looks for tensors inside those, not inside dataclasses.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

LossTerms = dict[str, Tensor]
"""Scalar losses by name. `"loss"` is the one to differentiate; the others are for the log."""


class Counts(NamedTuple):
    """What the losses of a micro-batch are divided by.

    Each figure is that of the *global* batch divided by (world_size · gradient_accumulation_steps), so that the mean of
    the micro-batch losses over ranks and accumulation steps is the loss of the global batch. All are infinite for a
    micro-batch that holds no row of its own (see `Batch.sample_ids`): its losses and gradients are then exactly 0.
    """

    rows: float
    tokens: float  # padding="valid": Σ length; padding="reference": rows · S
    token_pairs: float  # padding="valid": Σ length²; padding="reference": rows · S²
    units: float = 0.0  # `Batch.units`, or pairs of rows of one group; 0 where losses count rows alone


class Batch(NamedTuple):
    """A micro-batch: the rows that one rank takes through one forward."""

    input_ids: Tensor  # (B, S) int64
    attention_mask: Tensor  # (B, S) int64, 1 = real token
    token_type_ids: Tensor  # (B, S) int64
    labels: Tensor | None  # (B, ...) int64 or float32, as the task's target has them; None in a corpus
    sample_ids: Tensor  # (B,) int64; -1 marks the filler row of a rank that has no row of its own in this step
    counts: Counts
    padded: bool = True
    """Whether some row has padding, known where the batch is made: no device is asked. True where it is not known."""
    units: Tensor | None = None  # (B, S) bool: the tokens that are answered, each by itself; None: rows are
    groups: Tensor | None = None  # (B,) int64: rows of one group may be compared; None: nothing says so


class EncoderOutput(NamedTuple):
    """What distillation reads of a forward pass: only the states and layers that were asked for, in that order."""

    hidden_states: tuple[Tensor, ...]  # each (B, S, H); state 0 of a model is its embedding output
    queries: tuple[Tensor, ...]  # each (B, A, S, D), unscaled; or none, where they are not compared
    keys: tuple[Tensor, ...]  # each (B, A, S, D), unscaled; or none
    scalings: tuple[float, ...]  # score = query · keyᵀ · scaling
    logits: Tensor | None  # (B, C), or (B, S, C) of a head for tokens
    values: tuple[Tensor, ...] = ()  # each (B, A, S, D); of the layers of queries and keys, or none


def unit_outputs(logits: Tensor, batch: Batch) -> Tensor:
    """Return the outputs (n, C) of a batch's units: the rows, or of a head for tokens those that are answered."""
    return logits[batch.units] if batch.units is not None and logits.dim() == 3 else logits


def move(batch: Batch, device: torch.device) -> Batch:
    """Return the batch on a device."""
    if device.type == "cpu":
        return batch
    return Batch._make(value.to(device, non_blocking=True) if isinstance(value, Tensor) else value for value in batch)


def tensors_of(tree: Any) -> list[Tensor]:
    """Return the tensors in nested tuples, in order."""
    if isinstance(tree, Tensor):
        return [tree]
    return [tensor for part in tree for tensor in tensors_of(part)] if isinstance(tree, tuple) else []
