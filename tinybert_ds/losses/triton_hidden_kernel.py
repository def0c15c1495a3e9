"""The kernel of the hidden-state loss; `triton_hidden` launches it.

T tokens (B·S), H hidden size. A program takes BLOCK tokens and COLUMNS of the teacher's width: it multiplies these
states by these rows of the projection on tensor cores, operands as they are and sums in float32, takes the teacher's
states away, and writes what is left once, in the student's half precision, as the two products of the gradient read
it. Projected states are never written, nor any residual in float32: the value is summed up from registers.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_columns(base, rows, kept, start, WIDTH: tl.constexpr, COLUMNS: tl.constexpr):
    """Load COLUMNS of a matrix (·, WIDTH) from `start` on, of some rows; 0 where not kept and beyond the width."""
    columns = start + tl.arange(0, COLUMNS)
    mask = kept[:, None] & (columns < WIDTH)[None, :]
    return tl.load(base + rows[:, None] * WIDTH + columns[None, :], mask=mask, other=0.0)


@triton.jit
def hidden_residual_kernel(
    student, weight, teacher, bias, real, residuals, bias_sums, squares, tokens,
    STUDENT_WIDTH: tl.constexpr, TEACHER_WIDTH: tl.constexpr,
    BLOCK: tl.constexpr, COLUMNS: tl.constexpr, INNER: tl.constexpr,
    HAS_BIAS: tl.constexpr, VALID: tl.constexpr,
    NEED_VALUE: tl.constexpr, NEED_RESIDUALS: tl.constexpr, NEED_BIAS: tl.constexpr,
):  # fmt: skip
    """Write R = S·Wᵀ + b − (teacher's states), 0 for what does not count, its sums over tokens and the sum of R².

    Student (T, H_s), weight (H_t, H_s), teacher and residuals (T, H_t), all without gaps; bias (H_t,); real (T,) bool,
    obeyed if VALID. bias_sums (blocks of tokens, H_t) float32, squares (programs,) float64. Programs that share tokens
    are neighbours, so that these come from cache.
    """
    parts = tl.cdiv(TEACHER_WIDTH, COLUMNS)
    program = tl.program_id(0)
    block = program // parts
    columns = program % parts * COLUMNS + tl.arange(0, COLUMNS)
    rows = block * BLOCK + tl.arange(0, BLOCK)
    inside = rows < tokens
    wide = columns < TEACHER_WIDTH
    kept = inside
    if VALID:
        kept = tl.load(real + rows, mask=inside, other=0) != 0
    residual = tl.zeros((BLOCK, COLUMNS), tl.float32)
    for start in range(0, STUDENT_WIDTH, INNER):
        s = load_columns(student, rows, kept, start, STUDENT_WIDTH, INNER)
        w = load_columns(weight, columns, wide, start, STUDENT_WIDTH, INNER)
        residual = tl.dot(s, tl.trans(w), residual)
    places = rows[:, None] * TEACHER_WIDTH + columns[None, :]
    counted = kept[:, None] & wide[None, :]
    residual -= tl.load(teacher + places, mask=counted, other=0.0).to(tl.float32)
    if HAS_BIAS:
        residual += tl.load(bias + columns, mask=wide, other=0.0).to(tl.float32)[None, :]
        residual = tl.where(counted, residual, 0.0)
    if NEED_VALUE:
        tl.store(squares + program, tl.sum(tl.sum(residual * residual, axis=1).to(tl.float64)))
    if NEED_BIAS:
        tl.store(bias_sums + block * TEACHER_WIDTH + columns, tl.sum(residual, axis=0), mask=wide)
    if NEED_RESIDUALS:
        values = residual.to(residuals.dtype.element_ty)
        tl.store(residuals + places, values, mask=inside[:, None] & wide[None, :])
