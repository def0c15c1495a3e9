"""Made inputs for the relation loss, its KL form written as loops, and what rounding may do to it.

B batch rows, S sequence length, A attention heads, D head size, R relation heads, d_r their width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tests.support.numerics import ROUNDING, inner_product, mask_of
from tinybert_ds.losses import relation_loss


class RelationCase(NamedTuple):
    """Inputs of the relation loss: vectors (B, A, S, D) of both models, mask (B, S), R."""

    student: Tensor
    teacher: Tensor
    attention_mask: Tensor
    relation_heads: int

    def to(self, student_dtype: torch.dtype, teacher_dtype: torch.dtype | None = None) -> RelationCase:
        """Return the case in other dtypes, the student's vectors as a leaf that wants a gradient."""
        student = self.student.detach().to(student_dtype).requires_grad_()
        return self._replace(student=student, teacher=self.teacher.to(teacher_dtype or student_dtype))

    def loss(self, **options) -> Tensor:
        """Return the relation loss of the case, its KL form if nothing else is said."""
        return relation_loss(*self[:3], relation_heads=self.relation_heads, **{"form": "kl", **options})

    def loss_and_gradients(self, upstream: float = 1.0, **options) -> tuple[Tensor, Tensor]:
        """Return the loss and the gradient of `upstream` times it by the student's vectors."""
        loss = self.loss(**options)
        return (loss, *torch.autograd.grad(loss * upstream, self.student))

    def largest_score(self) -> float:
        """Return the largest X·X/√d_r of both models: how large the figures are that are rounded."""
        largest = 0.0
        for states in (self.student, self.teacher):
            cut = states.detach().double().transpose(1, 2).flatten(2).unflatten(2, (self.relation_heads, -1))
            largest = max(largest, cut.square().sum(dim=-1).max().item() / math.sqrt(cut.shape[-1]))
        return largest


def relation_case(
    *,
    relation_heads: int,
    widths: tuple[int, int],
    length: int,
    lengths: Sequence[int],
    heads: tuple[int, int] = (1, 1),
    distance: float = 2.0,
    size: float = 1.0,
    seed: int = 0,
) -> RelationCase:
    """Return a float64 case with one row for each of `lengths`, laid out as a projection leaves it.

    Args:
        widths, heads: A·D and A of the student and the teacher.
        distance: noise in the teacher's vectors, relative to what they share with the student's; at 2 the two have
            nothing to do with each other. The KL grows as its square.
        size: of the vectors.
    """
    generator = torch.Generator().manual_seed(seed)
    student_head, teacher_head = (width // relation_heads for width in widths)
    shared = min(student_head, teacher_head)

    def draw(head: int) -> Tensor:
        return torch.randn(len(lengths), length, relation_heads, head, generator=generator, dtype=torch.float64) * size

    student, teacher = draw(student_head), draw(teacher_head)
    if distance < 2:
        # A teacher that relates its tokens as the student does, in other dimensions of another number, and noise.
        rotation = torch.linalg.qr(torch.randn(teacher_head, shared, generator=generator, dtype=torch.float64))[0]
        student[..., shared:] = 0
        likeness = student[..., :shared] @ rotation.T * (teacher_head / student_head) ** 0.25
        teacher = likeness + distance * teacher
    captured = (
        states.flatten(2).unflatten(2, (count, -1)).transpose(1, 2)
        for states, count in zip((student, teacher), heads, strict=True)
    )
    return RelationCase(*captured, mask_of(lengths, length), relation_heads)


def kl_value_tolerance(dtype: torch.dtype, kl: float, largest_score: float) -> float:
    """Return the largest relative error of a KL that is computed in `dtype`, float32 or float64.

    An exp() is off by its last bit, and a row's probabilities add up to 1: ε in the KL, whatever it is. A score is
    off by ε times its size, which shows in the KL as far as the two probabilities differ, by √(2·KL) in a row
    (Pinsker's inequality).
    """
    epsilon = torch.finfo(dtype).eps
    return epsilon * (1 + largest_score * math.sqrt(2 * kl)) / kl + 2 * epsilon


def kl_gradient_tolerance(dtype: torch.dtype, kl: float, largest_score: float) -> float:
    """Return the largest relative error of a gradient of the KL that is returned in `dtype`.

    It is made of differences of probabilities, each off by ε·(1 + size of its score): the closer the student, the
    smaller they are, as √(2·KL). Half precision adds what rounding the gradient costs.
    """
    epsilon = torch.finfo(torch.promote_types(dtype, torch.float32)).eps
    return epsilon * (1 + largest_score) / min(1.0, math.sqrt(2 * kl)) + ROUNDING.get(dtype, 0.0)


def kl_by_loops(case: RelationCase, padding: str) -> float:
    """Return the KL form as a loop over rows, heads, queries and keys; for tiny float64 cases."""
    batch, _, length, _ = case.student.shape
    total, rows = 0.0, 0
    student, teacher = (states.transpose(1, 2).reshape(batch, length, -1) for states in case[:2])
    for b in range(batch):
        real = [bool(one) for one in case.attention_mask[b]]
        for head in range(case.relation_heads):
            for i in range(length):
                if padding == "valid" and not real[i]:
                    continue
                rows += 1
                if not any(real):
                    continue
                p, q = (relation_row(states[b], head, case.relation_heads, i, real) for states in (teacher, student))
                total += sum(one * math.log(one / other) for one, other in zip(p, q, strict=True))
    return total / rows if rows else 0.0


def relation_row(states: Tensor, head: int, heads: int, query: int, real: Sequence[bool]) -> list[float]:
    """Return softmax_j(X_query · X_j / √d_r) over the real tokens of a text, X (S, R·d_r)."""
    width = states.shape[1] // heads
    columns = slice(head * width, (head + 1) * width)
    keys = [j for j, one in enumerate(real) if one]
    exps = [math.exp(inner_product(states[query, columns], states[j, columns]) / math.sqrt(width)) for j in keys]
    return [one / sum(exps) for one in exps]
