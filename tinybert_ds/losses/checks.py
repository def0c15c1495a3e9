"""Arguments of the losses that do not fit together, said in the words of the models they come from.

What a user can cause (another head count, another width, a mistyped option) is a ConfigError; what only a caller inside
the project can cause (tensors of different batches) is an assert.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from tinybert_ds.errors import ConfigError
from tinybert_ds.losses.relation_heads import choose_relation_heads

PADDINGS = ("valid", "reference")


def check_option(name: str, value: str, allowed: Sequence[str]) -> None:
    """Raise ConfigError unless `value` is one of `allowed`."""
    if value not in allowed:
        raise ConfigError(f"{name}={value!r} is not known; choose one of {', '.join(allowed)}")


def check_denominator(denominator: float | Tensor | None) -> None:
    """Assert that a given denominator is a count: not negative, not NaN; infinity (a filler row) is allowed."""
    assert isinstance(denominator, Tensor | None) or (denominator >= 0 and not math.isnan(denominator)), (
        f"denominator={denominator} is no count: give a figure >= 0, infinity for filler rows, or None"
    )


def check_attention(
    student_query: Tensor, student_key: Tensor, teacher_query: Tensor, teacher_key: Tensor, attention_mask: Tensor
) -> None:
    """Check queries and keys (B, A, S, D) of both models and the mask (B, S) against each other."""
    for name, query, key in (("student", student_query, student_key), ("teacher", teacher_query, teacher_key)):
        assert query.dim() == 4, f"{name} query has shape {tuple(query.shape)}; expected (B, A, S, D)"
        assert query.shape == key.shape, f"{name} query {tuple(query.shape)} and key {tuple(key.shape)} differ in shape"
        assert query.dtype == key.dtype, f"{name} query is {query.dtype}, its key {key.dtype}"
    student_heads, teacher_heads = student_query.shape[1], teacher_query.shape[1]
    if student_heads != teacher_heads:
        raise ConfigError(
            f"the student has {student_heads} attention heads and the teacher {teacher_heads}; attention scores are "
            "compared head by head, so both need the same number: set num_attention_heads in the student's config.json "
            f"to {teacher_heads}"
        )
    batch, _, length, _ = student_query.shape
    check_same_batch("queries", (batch, length), (teacher_query.shape[0], teacher_query.shape[2]))
    check_mask(attention_mask, batch, length)


def check_relations(student: Tensor, teacher: Tensor, attention_mask: Tensor, relation_heads: int) -> None:
    """Check queries, keys or values (B, A, S, D) of both models, the mask (B, S) and the number of relation heads."""
    for name, states in (("student", student), ("teacher", teacher)):
        assert states.dim() == 4, f"the {name}'s vectors have shape {tuple(states.shape)}; expected (B, A, S, D)"
    batch, _, length, _ = student.shape
    check_same_batch("vectors", (batch, length), (teacher.shape[0], teacher.shape[2]))
    check_mask(attention_mask, batch, length)
    student_width, teacher_width = (states.shape[1] * states.shape[3] for states in (student, teacher))
    choose_relation_heads(student_width, teacher_width, relation_heads)


def check_hidden(
    student_hidden: Tensor, teacher_hidden: Tensor, weight: Tensor | None, bias: Tensor | None, attention_mask: Tensor
) -> None:
    """Check hidden states (B, S, H), projection (H_teacher, H_student) and the mask (B, S) against each other."""
    assert student_hidden.dim() == 3, f"student states have shape {tuple(student_hidden.shape)}; expected (B, S, H)"
    check_same_batch("hidden states", student_hidden.shape[:2], teacher_hidden.shape[:2])
    student_width, teacher_width = student_hidden.shape[2], teacher_hidden.shape[2]
    if weight is None:
        assert bias is None, "a bias was given without a projection weight"
        if student_width != teacher_width:
            raise ConfigError(
                f"the student is {student_width} wide and the teacher {teacher_width}; without a projection the widths "
                "must agree: use --projection per_layer or shared"
            )
    elif tuple(weight.shape) != (teacher_width, student_width):
        raise ConfigError(
            f"the projection is {tuple(weight.shape)}; from a student of width {student_width} to a teacher of width "
            f"{teacher_width} it must be ({teacher_width}, {student_width}): start with fresh projections, or use the "
            "models these were trained with"
        )
    assert bias is None or tuple(bias.shape) == (teacher_width,), (
        f"the projection's bias is {tuple(bias.shape)}; expected ({teacher_width},)"
    )
    check_mask(attention_mask, *student_hidden.shape[:2])


def check_same_batch(what: str, student_size: Sequence[int], teacher_size: Sequence[int]) -> None:
    """Assert that both models' tensors are of one batch: equal rows and, where there is one, equal sequence length."""
    assert tuple(student_size) == tuple(teacher_size), (
        f"the student's {what} are of a batch of {tuple(student_size)}, the teacher's of one of {tuple(teacher_size)}"
    )


def check_mask(attention_mask: Tensor, batch: int, length: int) -> None:
    """Assert that the mask is (B, S)."""
    assert tuple(attention_mask.shape) == (batch, length), (
        f"attention_mask has shape {tuple(attention_mask.shape)}; expected ({batch}, {length})"
    )


def check_logits(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> None:
    """Check logits (B, C) of both models and the temperature."""
    assert student_logits.dim() == 2, f"student logits have shape {tuple(student_logits.shape)}; expected (B, C)"
    if student_logits.shape[1] != teacher_logits.shape[1]:
        raise ConfigError(
            f"the student has {student_logits.shape[1]} classes and the teacher {teacher_logits.shape[1]}; both must "
            "be models of one task: fine-tune the teacher on it, or set the student's num_labels"
        )
    check_same_batch("logits", student_logits.shape[:1], teacher_logits.shape[:1])
    if not (temperature > 0 and math.isfinite(temperature)):
        raise ConfigError(
            f"temperature={temperature} makes no softmax; it must be a number above 0, 1 is the published one"
        )
