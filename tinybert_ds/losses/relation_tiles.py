"""The KL of relations by tiles of scores: a few query rows against all keys, so that nothing is of size S².

B batch rows, S sequence length, R relation heads; n heads in a chunk, L ≤ S positions in a chunk, d a model's head
size, k query rows in a tile.

A tile holds whole rows of both relations, so that one pass gives their sums, their value and their gradient. With
scores s of the student and t of the teacher, each less a shift of its row, E = exp(score) and Z the row sums of E,
row i of the loss is

    KL_i = Σ_j P_ij · (t_ij − s_ij) + log(Zs_i / Zt_i),        P = Et / Zt, Q = Es / Zs,

and its gradient by the student's scores Q − P = (Es − Et · Zs/Zt) / Zs. A score s_ij depends on X_i as a query and on
X_j as a key: the gradient by X is (Q − P)·X + (Q − P)ᵀ·X, over √d.

The shift is the score of a token with itself, |X_i|²/√d: E is then 1 on the diagonal, and elsewhere at most
exp(max|X|² / 4√d), so that no row needs its maximum. It and the mask ride in two columns of the operands: queries
[X | −|X|² | 1], keys [X | 1 | 0 or EXCLUDED].
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from tinybert_ds.losses.attention_chunks import chunk_shape, real_extents
from tinybert_ds.losses.precomputed import Needs
from tinybert_ds.losses.reference import Problem
from tinybert_ds.losses.workspace import workspace_bytes

QUERY_BLOCK = 64
"""Queries of a head in a tile."""
TILE_SHARE = 4
"""A tile is passed over a dozen times: it takes this part of the workspace, about a core's own cache."""
EXCLUDED = -1e30
"""What keys that are padding add to a score: exp() of it is exactly 0 and nothing becomes NaN."""

LARGEST_GAIN = 70.0
"""How far scores may be from their row's shift, so that float32 holds sums of a million exps and the least of them."""


class Side(NamedTuple):
    """One model's vectors in a chunk."""

    keys: Tensor  # (n, L, d + 2): X, 1, and 0 or EXCLUDED
    squares: Tensor  # (n, L): |X|²
    scaling: float

    @property
    def vectors(self) -> Tensor:
        """X (n, L, d), a view."""
        return self.keys[..., :-2]


class Chunk(NamedTuple):
    """Some relation heads of some rows."""

    rows: slice
    heads: slice
    student: Side
    teacher: Side
    counted: Tensor  # (n, L, 1): 1 for query rows that count, else 0
    bounded: bool  # whether the score of a token with itself may be its row's shift


def kl_terms(problem: Problem, coefficient: Tensor, needs: Needs) -> tuple[Tensor | None, Tensor | None]:
    """Return the sum of KL_i (float64 scalar) and `coefficient` times its gradient (B, R, S, d) by the student's X."""
    student = problem.student[0]
    dtype = coefficient.dtype
    total = torch.zeros((), dtype=torch.float64, device=student.device) if needs.value else None
    gradient = torch.empty_like(student, dtype=dtype) if needs.gradient else None
    for chunk in relation_chunks(problem, dtype):
        part = torch.zeros_like(chunk.student.vectors) if needs.gradient else None
        value = add_tiles(chunk, part, need_value=needs.value)
        if total is not None and value is not None:
            total += value
        if gradient is not None and part is not None:
            target, length = gradient[chunk.rows, chunk.heads], part.shape[1]
            part.mul_(coefficient * problem.student_scaling)
            target[:, :, :length] = part.view(*target.shape[:2], length, target.shape[3])
            target[:, :, length:] = 0.0
    return total, gradient


def add_tiles(chunk: Chunk, gradient: Tensor | None, *, need_value: bool) -> Tensor | None:
    """Return the sum of a chunk's KL_i, if needed, and add its gradient by X, times √d, to `gradient` (n, L, d)."""
    heads, length, _ = chunk.student.vectors.shape
    block = min(length, QUERY_BLOCK)
    scratch = chunk.student.keys.new_empty(3 if need_value else 2, heads * block * length)
    tiny = torch.finfo(scratch.dtype).tiny  # of texts without a real token, whose rows do not count
    total = torch.zeros((), dtype=torch.float64, device=scratch.device) if need_value else None
    for start in range(0, length, QUERY_BLOCK):
        rows = slice(start, min(start + QUERY_BLOCK, length))
        size = heads * (rows.stop - start) * length
        tiles = scratch[:, :size].view(-1, heads, rows.stop - start, length)
        student, teacher = (
            shifted_scores(side, rows, tile, bounded=chunk.bounded)
            for side, tile in zip((chunk.student, chunk.teacher), tiles, strict=False)
        )
        counted = chunk.counted[:, rows]
        scores, teacher = teacher, torch.exp(teacher, out=tiles[-1])  # in place unless the value needs the scores
        teacher_sums = teacher.sum(dim=2, keepdim=True).clamp_min_(tiny)
        if total is not None:
            mean = scores.sub_(student).mul_(teacher).sum(dim=2, keepdim=True).div_(teacher_sums)
        student.exp_()
        student_sums = student.sum(dim=2, keepdim=True).clamp_min_(tiny)
        ratio = student_sums / teacher_sums
        if total is not None:
            total += mean.add_(ratio.log()).mul_(counted).sum(dtype=torch.float64)
        if gradient is not None:
            weights = counted / student_sums
            difference = student.addcmul_(teacher, ratio, value=-1.0)
            vectors = chunk.student.vectors
            gradient.baddbmm_(difference.transpose(1, 2), vectors[:, rows] * weights)
            gradient[:, rows] += torch.bmm(difference, vectors).mul_(weights)
    return total


def shifted_scores(side: Side, rows: slice, out: Tensor, *, bounded: bool) -> Tensor:
    """Write the scores of some query rows (n, k, L), less a shift of each row that keeps their exp() in range."""
    queries = side.keys[:, rows].clone()
    queries[..., -2] = -side.squares[:, rows] if bounded else 0.0
    queries[..., -1] = 1.0
    torch.baddbmm(out, queries, side.keys.transpose(1, 2), beta=0, alpha=side.scaling, out=out)
    return out if bounded else out.sub_(out.amax(dim=2, keepdim=True))


def relation_chunks(problem: Problem, dtype: torch.dtype) -> Iterator[Chunk]:
    """Yield all relation heads of all rows, as many at a time as leave their tiles in cache.

    On a CPU, chunks under padding="valid" end at their last real position (L = 0 where there is none).
    """
    batch, heads, length, _ = problem.student[0].shape
    if not batch * heads * length:
        return
    device = problem.real.device
    head_bytes = 3 * min(length, QUERY_BLOCK) * length * dtype.itemsize
    row_step, head_step = chunk_shape(batch, heads, head_bytes, workspace_bytes(device) // TILE_SHARE)
    extents = real_extents(problem)
    for row in range(0, batch, row_step):
        rows = slice(row, min(row + row_step, batch))
        last = max(end for end, _ in extents[rows])
        real = problem.real[rows, :last]
        counted = real if problem.padding == "valid" else real.any(dim=1, keepdim=True).expand_as(real)
        for head in range(0, heads, head_step):
            chosen = slice(head, min(head + head_step, heads))
            number = chosen.stop - chosen.start
            student, teacher = (
                load_side(states[rows, chosen, :last], dtype, real, scaling, problem.padding)
                for states, scaling in (
                    (problem.student[0], problem.student_scaling),
                    (problem.teacher[0], problem.teacher_scaling),
                )
            )
            weights = counted[:, None, :, None].expand(-1, number, -1, -1).flatten(0, 1).to(dtype)
            bounded = device.type == "cpu" and last > 0
            bounded = bounded and all(is_bounded(side, problem.padding) for side in (student, teacher))
            yield Chunk(rows, chosen, student, teacher, weights, bounded)


def load_side(states: Tensor, dtype: torch.dtype, real: Tensor, scaling: float, padding: str) -> Side:
    """Return a model's vectors (rows, heads, L, d) with the columns of keys; padded ones are 0 under "valid"."""
    *outer, size = states.shape
    keys = states.new_empty(*outer, size + 2, dtype=dtype)
    keys[..., :size] = states
    padded = ~real[:, None, :]
    if padding == "valid":
        keys[..., :size].masked_fill_(padded[..., None], 0.0)
    keys[..., size] = 1.0
    keys[..., size + 1] = padded * EXCLUDED
    keys = keys.flatten(0, 1)
    return Side(keys, keys[..., :size].square().sum(dim=2), scaling)


def is_bounded(side: Side, padding: str) -> bool:
    """Return whether no exp() of a score less that of its token with itself can leave float32's range.

    x·y − |x|² is at most |y|²/4, and its row's sum is at least the 1 of the token with itself. Under "reference" the
    row of a padded token has no such key: there x·y − |x|² must not be far below 0, either.
    """
    largest = side.squares.amax() * side.scaling
    return bool(largest <= (4 * LARGEST_GAIN if padding == "valid" else LARGEST_GAIN / 2))
