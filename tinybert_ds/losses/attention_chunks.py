"""Queries and keys of both models, side by side, in chunks that stay in cache.

B batch rows, S sequence length, A attention heads, D head size; d = D_student + D_teacher; n heads in a chunk; L ≤ S
positions in a chunk.

With A = [student_scaling·Q_s | −teacher_scaling·Q_t] and B = [K_s | K_t], both (S, d), the difference of the two
models' scores is A·Bᵀ: one product instead of two, and the ground on which the closed form stands. Copying a few heads
at a time into such operands also converts their dtype, makes them contiguous and masks them, all inside the cache.
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


PROVED_SCORE = -CUTOFF_SCORE * 0.999
"""Scores bounded by this do not reach the cut-off; 0.1 % covers the rounding of the bound and of the scores."""


class Chunk(NamedTuple):
    """Some heads of some rows. The operands are a workspace: whoever takes the chunk may overwrite them."""

    rows: slice
    heads: slice
    operands: Tensor  # (2, n, L, d): [Q_s | Q_t] and [K_s | K_t], unscaled, 0 where the padding rule says so


def loaded_chunks(problem: Problem, dtype: torch.dtype, *, block: int = 0) -> Iterator[Chunk]:
    """Yield all heads of all rows as chunks in one reused workspace of the given dtype.

    Padded keys are 0, and under padding="valid" padded queries too, whatever the tensors hold there. On a CPU, chunks
    under padding="valid" end at their last real position (L = 0 where there is none).

    Args:
        block: rows of scores that the taker holds for each head besides the operands; it counts as workspace.
    """
    batch, heads, length, _ = problem.student[0].shape
    width = sum(problem.head_sizes)
    head_bytes = (2 * width + block) * length * dtype.itemsize
    on_cpu = problem.real.device.type == "cpu"
    row_step, head_step = chunk_shape(batch, heads, head_bytes, workspace_bytes(problem.real.device))
    workspace = torch.empty(2 * row_step * head_step * length * width, dtype=dtype, device=problem.real.device)
    for row in range(0, batch, row_step):
        rows = slice(row, min(row + row_step, batch))
        real = problem.real[rows]
        if on_cpu and problem.padding == "valid":
            real = real[:, : last_real_position(real)]
        for head in range(0, heads, head_step):
            chosen = slice(head, min(head + head_step, heads))
            shape = (2, rows.stop - rows.start, chosen.stop - chosen.start, real.shape[1], width)
            operands = workspace[: torch.Size(shape).numel()].view(shape)
            fill(operands, problem, (rows, chosen, slice(real.shape[1])), real)
            yield Chunk(rows, chosen, operands.flatten(1, 2))


def chunk_shape(batch: int, heads: int, head_bytes: int, budget: int) -> tuple[int, int]:
    """Return how many rows and heads a chunk takes: heads of one row first, further rows only whole."""
    affordable = max(1, budget // max(1, head_bytes))
    return (1, affordable) if affordable < heads else (min(batch, affordable // heads), heads)


def last_real_position(real: Tensor) -> int:
    """Return the number of leading positions, of a (rows, S) mask, that hold every real token."""
    positions = real.any(dim=0).nonzero()
    return int(positions[-1]) + 1 if len(positions) else 0


def fill(operands: Tensor, problem: Problem, where: tuple[slice, slice, slice], real: Tensor) -> None:
    """Copy the queries and keys at `where` into operands (2, rows, heads, L, d) and mask them by `real` (rows, L)."""
    student_head, _ = problem.head_sizes
    for side in (0, 1):
        operands[side, ..., :student_head].copy_(problem.student[side][where])
        operands[side, ..., student_head:].copy_(problem.teacher[side][where])
    if real.device.type == "cpu" and bool(real.all()):
        return
    masked = operands if problem.padding == "valid" else operands[1:]
    masked.masked_fill_(~real[None, :, None, :, None], 0.0)


def no_score_reaches_cutoff(operands: Tensor, student_head: int, scales: Tensor) -> bool:
    """Return whether |q|·|k|·scaling proves, head by head, that no score is as low as −100; O(S·d)."""
    dtype = scales.dtype
    bounds = []
    for part in (slice(0, student_head), slice(student_head, None)):
        longest = torch.linalg.vector_norm(operands[..., part], dim=-1, dtype=dtype).amax(dim=-1)
        bounds.append((longest[0] * longest[1]).amax() * scales[part][0].abs())
    return bool(torch.stack(bounds).amax() < PROVED_SCORE)
