"""The KL of relations between tokens: the choice of its implementation, its value, its gradient.

B batch rows, S sequence length, R relation heads, d_r their width. See `relation_tiles` for a CPU and
`triton_relations` for a GPU.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from tinybert_ds.losses import reference
from tinybert_ds.losses.backends import WITHOUT_TRITON, announce, triton_is_installed
from tinybert_ds.losses.precomputed import Needs, attach_gradients, needs_of
from tinybert_ds.losses.reference import Problem
from tinybert_ds.losses.relation_tiles import kl_terms

NAME, PLAIN_FORM = "relation", "tiled"
definition = reference.relation_kl_loss


def fused_loss(problem: Problem, *, form: str, denominator: float | None) -> Tensor:
    """Return the KL of a problem's relations with its gradient by the student's vectors; form "tiled" or "triton"."""
    student, teacher = problem.student[0], problem.teacher[0]
    dtype = reference.compute_dtype(student, teacher)
    count = partial(reference.relation_row_count, problem.real, student.shape[1], problem.padding)
    coefficient = reference.share(1.0, denominator, count, like=problem.real, dtype=dtype)
    needs = needs_of(student)
    with torch.no_grad():
        terms = triton_terms if form == "triton" else kl_terms
        total, gradient = terms(problem, coefficient, needs)
        if total is None:
            value = torch.zeros_like(coefficient)
        else:
            value = reference.divide(total, denominator, count).to(dtype)
    return value if gradient is None else attach_gradients(value, (student,), (gradient,))


def triton_terms(problem: Problem, coefficient: Tensor, needs: Needs) -> tuple[Tensor | None, Tensor | None]:
    """Return what `kl_terms` returns, from two launches on a GPU."""
    from tinybert_ds.losses import triton_relations  # noqa: PLC0415 - optional, and a second to import

    return triton_relations.launch(problem, coefficient, needs)


def choose_form(problem: Problem) -> str:
    """Return the form for the problem: the Triton kernels where they can take it, else tiles."""
    if problem.real.device.type == "cpu":
        return PLAIN_FORM
    sizes = f"relation loss, relation heads of {problem.head_sizes[0]} and {problem.head_sizes[1]}"
    if refusal := triton_refusal(problem):
        announce(f"{sizes}: tiles by matrix products, no Triton kernel: {refusal}")
        return PLAIN_FORM
    announce(f"{sizes}: tiles in two launches (triton)")
    return "triton"


def triton_refusal(problem: Problem) -> str | None:
    """Return why the Triton kernels cannot take the problem, None where they can."""
    if not triton_is_installed():
        return WITHOUT_TRITON
    from tinybert_ds.losses import triton_relations  # noqa: PLC0415 - optional, and a second to import

    return triton_relations.refusal(problem)
