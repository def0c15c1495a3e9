"""Queries and keys of both models, side by side, in chunks that stay in cache.

B batch rows, S sequence length, A attention heads, D head size; n heads in a chunk; L ≤ S positions in a chunk; p the
student's columns and d all columns of a chunk, D_student and D_student + D_teacher but for the filling.

With A = [student_scaling·Q_s | −teacher_scaling·Q_t] and B = [K_s | K_t], both (S, d), the difference of the two
models' scores is A·Bᵀ: one product instead of two, and the ground on which the closed form stands. Copying a few heads
at a time into such operands also converts their dtype, makes them contiguous and masks them, all inside the cache, and
fills each model's columns up with zeros to a width that matrix products are fast at: a head size of 26 is half as fast
as one of 32.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from tinybert_ds.losses.reference import CUTOFF_SCORE, Problem
from tinybert_ds.losses.workspace import workspace_bytes

QUERY_BLOCK = 128
"""Queries whose scores the tiled form holds at a time."""

COLUMN_BLOCK = 8
"""Columns of each model are filled up to a multiple of this: a vector register, or what a tensor core wants aligned."""

PROVED_SCORE = -CUTOFF_SCORE * 0.999
"""Scores bounded by this do not reach the cut-off; 0.1 % covers the rounding of the bound and of the scores."""


class Columns(NamedTuple):
    """How wide the operands are."""

    student: int  # p
    total: int  # d


class Chunk(NamedTuple):
    """Some heads of some rows. The operands are a workspace: whoever takes the chunk may overwrite them."""

    rows: slice
    heads: slice
    operands: Tensor  # (2, n, L, d): [Q_s | Q_t] and [K_s | K_t], unscaled, 0 where the padding rule says so


def columns_of(student_head: int, teacher_head: int) -> Columns:
    """Return the widths of the operands for two head sizes."""
    student, teacher = (-(-size // COLUMN_BLOCK) * COLUMN_BLOCK for size in (student_head, teacher_head))
    return Columns(student, student + teacher)


def column_scales(problem: Problem, dtype: torch.dtype) -> Tensor:
    """Return the (d,) factors that make [Q_s | Q_t]·[K_s | K_t]ᵀ the difference of the scores."""
    columns = columns_of(*problem.head_sizes)
    scales = problem.real.new_full((columns.total,), -problem.teacher_scaling, dtype=dtype)
    scales[: columns.student] = problem.student_scaling
    return scales


def loaded_chunks(problem: Problem, dtype: torch.dtype, *, block: int = 0) -> Iterator[Chunk]:
    """Yield all heads of all rows as chunks in one reused workspace of the given dtype.

    Padded keys are 0, and under padding="valid" padded queries too, whatever the tensors hold there. On a CPU, chunks
    under padding="valid" end at their last real position (L = 0 where there is none).

    Args:
        block: rows of scores that the taker holds for each head besides the operands; it counts as workspace.
    """
    batch, heads, length, _ = problem.student[0].shape
    if not batch * heads * length:
        return
    width = columns_of(*problem.head_sizes).total
    head_bytes = (2 * width + block) * length * dtype.itemsize
    row_step, head_step = chunk_shape(batch, heads, head_bytes, workspace_bytes(problem.real.device))
    workspace = torch.empty(2 * row_step * head_step * length * width, dtype=dtype, device=problem.real.device)
    extents = real_extents(problem)
    for row in range(0, batch, row_step):
        rows = slice(row, min(row + row_step, batch))
        last = max(end for end, _ in extents[rows])
        padded = None
        if any(count < last for _, count in extents[rows]):
            padded = ~problem.real[rows, None, :last, None]
        for head in range(0, heads, head_step):
            chosen = slice(head, min(head + head_step, heads))
            shape = (2, rows.stop - rows.start, chosen.stop - chosen.start, last, width)
            operands = workspace[: torch.Size(shape).numel()].view(shape)
            fill(operands, problem, (rows, chosen, slice(last)))
            if padded is not None:
                (operands if problem.padding == "valid" else operands[1:]).masked_fill_(padded, 0.0)
            yield Chunk(rows, chosen, operands.flatten(1, 2))


def chunk_shape(batch: int, heads: int, head_bytes: int, budget: int) -> tuple[int, int]:
    """Return how many rows and heads a chunk takes: heads of one row first, further rows only whole."""
    affordable = max(1, budget // max(1, head_bytes))
    return (1, affordable) if affordable < heads else (min(batch, affordable // heads), heads)


def real_extents(problem: Problem) -> list[tuple[int, int]]:
    """Return for each row how many leading positions to compute, and how many of them are known to be real.

    On a GPU, which is not waited for, that is all of them and none.
    """
    batch, length = problem.real.shape
    if problem.real.device.type != "cpu":
        return [(length, -1)] * batch
    counts = problem.real.sum(dim=1).tolist()
    if problem.padding == "reference":
        return [(length, count) for count in counts]
    ends = (problem.real * torch.arange(1, length + 1)).amax(dim=1).tolist()
    return list(zip(ends, counts, strict=True))


def fill(operands: Tensor, problem: Problem, where: tuple[slice, slice, slice]) -> None:
    """Copy the queries and keys at `where` into operands (2, rows, heads, L, d), zeros beside them."""
    student_head, teacher_head = problem.head_sizes
    columns = columns_of(student_head, teacher_head)
    for side in (0, 1):
        operands[side, ..., :student_head].copy_(problem.student[side][where])
        operands[side, ..., columns.student : columns.student + teacher_head].copy_(problem.teacher[side][where])
    operands[..., student_head : columns.student].zero_()
    operands[..., columns.student + teacher_head :].zero_()


def no_score_reaches_cutoff(operands: Tensor, student_columns: int, scales: Tensor) -> bool:
    """Return whether |q|·|k|·scaling proves, head by head, that no score is as low as −100; O(S·d)."""
    dtype = scales.dtype
    bounds = []
    for part in (slice(0, student_columns), slice(student_columns, None)):
        longest = torch.linalg.vector_norm(operands[..., part], dim=-1, dtype=dtype).amax(dim=-1)
        bounds.append((longest[0] * longest[1]).amax() * scales[part][0].abs())
    return bool(torch.stack(bounds).amax() < PROVED_SCORE)
