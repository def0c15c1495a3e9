"""What the stages of a chain compute, in floating-point operations: the multiplications of matrices, two for each pair
of numbers. The optimizer, LayerNorms, softmaxes and the embeddings' rows are left out.

H hidden size, I intermediate size, L layers, A heads, D head size; a small letter is the student's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from tinybert_ds.models.inherit.start import BASIS_TOKENS

NOMINAL_FLOPS = 2e10
"""A second of a budget: about what one core does in steps of a small student, its fixed costs included."""

TRAINING_FORWARDS = 3  # forward and backward together


class Shape(NamedTuple):
    """What the operations of an encoder follow from."""

    layers: int
    hidden: int
    intermediate: int
    heads: int

    @classmethod
    def of(cls, config: Any) -> Shape:
        """Return the shape that a Hugging Face config describes."""
        return cls(config.num_hidden_layers, config.hidden_size, config.intermediate_size, config.num_attention_heads)


def forward_flops(shape: Shape, tokens: float, length: float) -> float:
    """Return the operations of a forward pass over so many tokens in rows of a mean length."""
    linear = 2 * (4 * shape.hidden**2 + 2 * shape.hidden * shape.intermediate)
    return shape.layers * tokens * (linear + 4 * length * shape.hidden)


def label_step(student: Shape, tokens: float, length: float) -> float:
    """Return the operations of a step on gold labels."""
    return TRAINING_FORWARDS * forward_flops(student, tokens, length)


def prediction_step(teacher: Shape, student: Shape, tokens: float, length: float) -> float:
    """Return the operations of a step on the teacher's predictions, which is asked."""
    return label_step(student, tokens, length) + forward_flops(teacher, tokens, length)


def layer_step(teacher: Shape, student: Shape, tokens: float, length: float) -> float:
    """Return the operations of a step on states and attention scores: the losses in the forms that are taken."""
    small, large = student.hidden // student.heads, teacher.hidden // teacher.heads
    projections = (student.layers + 1) * TRAINING_FORWARDS * 2 * student.hidden * teacher.hidden
    scores = student.layers * student.heads * (8 * small**2 + 4 * large**2 + 8 * small * large)
    return prediction_step(teacher, student, tokens, length) + tokens * (projections + scores)


def start_flops(teacher: Shape, student: Shape, tokens: float, length: float) -> float:
    """Return the operations of a closed-form start on so many tokens of text."""
    basis_tokens = min(tokens, BASIS_TOKENS * teacher.hidden)
    basis = forward_flops(teacher, basis_tokens, length) + basis_tokens * (student.layers + 1) * 2 * teacher.hidden**2
    small, large = student.hidden, teacher.hidden
    states = 2 * (2 * small**2 + 2 * small * large)  # a state's projection, and what queries, keys and values come of
    heads = 4 * 2 * large * (large // teacher.heads)
    attention = 2 * (small**2 + small**2)
    neurons = 2 * (small**2 + small * student.intermediate + student.intermediate**2 + student.intermediate * small)
    sums = student.layers * tokens * (states + heads + attention + neurons)
    passes = 4  # each layer is run anew for the fits of its output, of its neurons, of what they put out, of its norms
    return basis + forward_flops(teacher, tokens, length) + passes * forward_flops(student, tokens, length) + sums


def steps_within(budget: float, costs: Sequence[float], shares: Sequence[float]) -> list[int]:
    """Return how many steps of each stage a budget pays, the stages having these shares of it."""
    return [max(1, int(budget * share / sum(shares) / cost)) for cost, share in zip(costs, shares, strict=True)]
