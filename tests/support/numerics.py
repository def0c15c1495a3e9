"""Made inputs for the losses, the losses written as loops, and errors as the tolerances state them.

B batch rows, S sequence length, A attention heads, D head size, H hidden size.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tinybert_ds.losses import attention_score_loss

ROUNDING = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
LOSS_SCALE = 3 * 2.0**14
"""An upstream gradient that is not 1; with less, float16 gradients of a mean underflow in any implementation."""


class AttentionCase(NamedTuple):
    """Inputs of the attention loss: queries and keys (B, A, S, D) of both models, mask (B, S), scalings."""

    student_query: Tensor
    student_key: Tensor
    teacher_query: Tensor
    teacher_key: Tensor
    attention_mask: Tensor
    student_scaling: float
    teacher_scaling: float

    @property
    def scalings(self) -> dict[str, float]:
        """The scalings as keyword arguments of the loss."""
        return {"student_scaling": self.student_scaling, "teacher_scaling": self.teacher_scaling}

    def to(self, dtype: torch.dtype) -> AttentionCase:
        """Return the case with queries and keys in another dtype, the student's as leaves that want a gradient."""
        converted = [tensor.detach().to(dtype) for tensor in self[:4]]
        return self._replace(
            student_query=converted[0].requires_grad_(),
            student_key=converted[1].requires_grad_(),
            teacher_query=converted[2],
            teacher_key=converted[3],
        )

    def rows(self, rows: slice) -> AttentionCase:
        """Return some rows of the batch, as views."""
        return AttentionCase(*(tensor[rows] for tensor in self[:5]), *self[5:])

    def loss(self, **options) -> Tensor:
        """Return the attention loss of the case."""
        return attention_score_loss(*self[:5], **self.scalings, **options)

    def loss_and_gradients(self, upstream: float = 1.0, **options) -> tuple[Tensor, Tensor, Tensor]:
        """Return the loss and the gradients of `upstream` times it by the student's query and key."""
        loss = self.loss(**options)
        return (loss, *torch.autograd.grad(loss * upstream, (self.student_query, self.student_key)))

    def teacher_power(self, padding: str) -> float:
        """Return the loss of a student whose scores are all 0."""
        silent = self._replace(student_query=self.student_query.detach() * 0)
        return silent.loss(padding=padding, backend="reference").item()


def mask_of(lengths: Sequence[int], length: int) -> Tensor:
    """Return the (B, S) int64 mask of rows of the given lengths."""
    return (torch.arange(length)[None] < torch.tensor(lengths)[:, None]).long()


def attention_case(
    *, heads: int, length: int, head_sizes: tuple[int, int], lengths: Sequence[int], rho: float = 2.0, seed: int = 0
) -> AttentionCase:
    """Return a float64 case with one row for each of `lengths`, laid out as SDPA hands it out (not contiguous).

    Args:
        head_sizes: D_student, D_teacher.
        rho: about the loss over the teacher's power: the student's scores are the teacher's and noise. At 2 the two
            have nothing to do with each other.
    """
    generator = torch.Generator().manual_seed(seed)
    student_head, teacher_head = head_sizes
    shared = min(head_sizes)

    def draw(head: int) -> Tensor:
        shape = (len(lengths), length, heads, head)
        return torch.randn(*shape, generator=generator, dtype=torch.float64).transpose(1, 2)

    student = [draw(student_head), draw(student_head)]
    if rho >= 2:
        teacher = [draw(teacher_head), draw(teacher_head)]
    else:
        # A teacher that scores as the student does, in other dimensions of another number, and noise on its queries.
        rotation = torch.linalg.qr(torch.randn(teacher_head, shared, generator=generator, dtype=torch.float64))[0]
        width = math.sqrt(math.sqrt(teacher_head / student_head))
        student = [tensor * (torch.arange(student_head) < shared) for tensor in student]
        teacher = [tensor[..., :shared] @ rotation.T * width for tensor in student]
        noise = draw(teacher_head)
        teacher[0] = teacher[0] + noise * math.sqrt(rho) * teacher[0].norm() / noise.norm()
    return AttentionCase(*student, *teacher, mask_of(lengths, length), student_head**-0.5, teacher_head**-0.5)


def gradient_tolerance(dtype: torch.dtype, rho: float) -> float:
    """Return the largest relative error of an attention gradient that is returned in `dtype`, at ρ."""
    if dtype is torch.float64:
        return 1e-12
    if dtype is torch.float32:
        return max(2e-6, 1e-6 / math.sqrt(rho))
    return 1e-5 / math.sqrt(rho) + ROUNDING[dtype]


def value_tolerance(dtype: torch.dtype, kappa: float) -> float:
    """Return the bound on the closed form's value, which is taken again where that bound is above 1e-4."""
    return 1e-12 if dtype is torch.float64 else min(2.0**-24 * kappa, 1e-4) + 1e-6


def kappa_of(case: AttentionCase, padding: str, loss: float) -> float:
    """Return the size of the terms that the closed form adds up, over the loss."""
    student = case._replace(teacher_query=case.teacher_query * 0).loss(padding=padding, backend="reference").item()
    teacher = case.teacher_power(padding)
    return (student + abs(loss - student - teacher) + teacher) / loss


def attention_loss_by_loops(case: AttentionCase, padding: str) -> float:
    """Return the attention loss as a loop over rows, heads, queries and keys; for tiny float64 cases."""
    batch, heads, length, _ = case.student_query.shape
    total, pairs = 0.0, 0
    for b in range(batch):
        for a in range(heads):
            for i in range(length):
                for j in range(length):
                    real_query, real_key = bool(case.attention_mask[b, i]), bool(case.attention_mask[b, j])
                    if padding == "valid" and not (real_query and real_key):
                        continue
                    pairs += 1
                    if not real_key:
                        continue
                    student = inner_product(case.student_query[b, a, i], case.student_key[b, a, j])
                    teacher = inner_product(case.teacher_query[b, a, i], case.teacher_key[b, a, j])
                    total += (student * case.student_scaling - teacher * case.teacher_scaling) ** 2
    return total / pairs if pairs else 0.0


def inner_product(left: Tensor, right: Tensor) -> float:
    """Return left · right, term by term."""
    return sum(x * y for x, y in zip(left.tolist(), right.tolist(), strict=True))


def relative_error(found: Tensor | Iterable[Tensor], expected: Tensor | Iterable[Tensor]) -> float:
    """Return ‖found − expected‖ / ‖expected‖ over all the tensors together, in float64; 0 for two zeros."""
    found, expected = (
        torch.cat([tensor.detach().double().flatten() for tensor in ([side] if isinstance(side, Tensor) else side)])
        for side in (found, expected)
    )
    error = (found - expected).norm()
    return 0.0 if error == 0 else (error / expected.norm()).item()


class AllocationLog(TorchDispatchMode):
    """Notes the sizes, in elements, of the tensors that operators return, views left out."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        """Run the operator and note its results that are no view of an argument."""
        result = function(*args, **(kwargs or {}))
        held = {leaf.untyped_storage().data_ptr() for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.untyped_storage().data_ptr() not in held:
                self.sizes.append(leaf.numel())
        return result
