"""Relation heads: the vectors of any two models cut alike (MiniLMv2, arXiv 2012.15828, section 3.1).

B batch rows, S sequence length, A attention heads, D head size, R relation heads.
"""

from __future__ import annotations

import math

from torch import Tensor

from tinybert_ds.errors import ConfigError
from tinybert_ds.losses.reference import Problem

MOST_RELATION_HEADS = 48
"""What MiniLMv2 cuts teachers of width 768 into (arXiv 2012.15828, section 4)."""


def choose_relation_heads(student_width: int, teacher_width: int, asked: int | None = None) -> int:
    """Return the number of relation heads: what was asked for, or the largest that both widths allow, at most 48.

    Args:
        student_width, teacher_width: A·D of what is captured: query heads times their size.
        asked: a number that must divide both widths; None for the largest.

    Raises:
        ConfigError: `asked` does not divide both widths; the message names what does.
    """
    common = math.gcd(student_width, teacher_width)
    divisors = [heads for heads in range(1, common + 1) if common % heads == 0]
    if asked is None:
        return max(heads for heads in divisors if heads <= MOST_RELATION_HEADS)
    if asked not in divisors:
        raise ConfigError(
            f"{asked} relation heads do not divide the student's width {student_width} and the teacher's "
            f"{teacher_width}; choose one of {', '.join(map(str, divisors))}"
        )
    return asked


def relation_problem(
    student: Tensor, teacher: Tensor, attention_mask: Tensor, *, relation_heads: int, padding: str
) -> Problem:
    """Return the comparison of two models' vectors (B, A, S, D) with themselves, cut into relation heads."""
    ours, theirs = (split_relation_heads(captured, relation_heads) for captured in (student, teacher))
    student_scaling, teacher_scaling = (states.shape[3] ** -0.5 for states in (ours, theirs))
    return Problem((ours, ours), (theirs, theirs), attention_mask.bool(), student_scaling, teacher_scaling, padding)


def split_relation_heads(captured: Tensor, relation_heads: int) -> Tensor:
    """Return (B, A, S, D) as (B, R, S, A·D / R): heads side by side, then cut anew. A view where a projection's is."""
    batch, heads, length, size = captured.shape
    merged = captured.transpose(1, 2).reshape(batch, length, heads * size)
    return merged.unflatten(2, (relation_heads, heads * size // relation_heads)).transpose(1, 2)
