"""The kernel of the closed attention loss; `triton_attention` launches it.

B batch rows, S sequence length, A attention heads, D head size. The formulas are those of `attention_forms`: with
A = [student_scaling·Q_s | −teacher_scaling·Q_t] and B = [K_s | K_t] the loss is ⟨AᵀA, BᵀB⟩, and its gradients are
products of A and B with these Gram matrices. A program takes one head of one row. It reads the head twice, once of it
from cache: for the Gram matrices, which stay in registers, and for the gradients. (Few heads of long rows are parted
between programs: see `triton_split_kernel`.)

Strides come over the largest power of two, up to 8, that all of a tensor's have in common, its UNIT: the compiler then
knows how many elements it may load at once, of heads of 26 two instead of one.

Everything is multiplied on tensor cores, in their TF32 format (8 bits of exponent, 10 of mantissa) into float32.
bfloat16 and float16 inputs, in any mixture, are exact in it; the Gram matrices, which are not, are split into a high
and a low part for the second product.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_rows(base, positions, kept, stride, HEAD: tl.constexpr, COLUMNS: tl.constexpr):
    """Load positions of a head as (BLOCK, COLUMNS) float32: 0 where not kept, and beyond the head's size."""
    columns = tl.arange(0, COLUMNS)
    mask = kept[:, None] & (columns < HEAD)[None, :]
    return tl.load(base + positions[:, None] * stride + columns[None, :], mask=mask, other=0.0).to(tl.float32)


@triton.jit
def kept_positions(positions, end, real, MASKED: tl.constexpr):
    """Return which positions count: those before the end and, if MASKED, only real tokens."""
    kept = positions < end
    if MASKED:
        kept = tl.load(real + positions, mask=kept, other=0) != 0
    return kept


@triton.jit
def teacher_gram(
    teacher, real, begin, end, stride,
    HEAD: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Return the Gram matrix of some positions of the teacher's queries or keys of a head, (COLUMNS, COLUMNS)."""
    gram = tl.zeros((COLUMNS, COLUMNS), tl.float32)
    for start in range(begin, end, BLOCK):
        positions = start + tl.arange(0, BLOCK)
        t = load_rows(teacher, positions, kept_positions(positions, end, real, MASKED), stride, HEAD, COLUMNS)
        gram = tl.dot(tl.trans(t), t, gram, input_precision="tf32")
    return gram


@triton.jit
def student_grams(
    student, teacher, real, begin, end, student_stride, teacher_stride,
    STUDENT_HEAD: tl.constexpr, TEACHER_HEAD: tl.constexpr, STUDENT_BLOCK: tl.constexpr, TEACHER_BLOCK: tl.constexpr,
    BLOCK: tl.constexpr, MASKED: tl.constexpr, NEED_BOUND: tl.constexpr,
):  # fmt: skip
    """Return, for some positions of one side (queries or keys) of a head, the products of student by student columns
    and of teacher by student columns, and the largest squared length of a student's and of a teacher's row (0 unless
    NEED_BOUND)."""
    by_student = tl.zeros((STUDENT_BLOCK, STUDENT_BLOCK), tl.float32)
    by_teacher = tl.zeros((TEACHER_BLOCK, STUDENT_BLOCK), tl.float32)
    longest_student = 0.0
    longest_teacher = 0.0
    for start in range(begin, end, BLOCK):
        positions = start + tl.arange(0, BLOCK)
        kept = kept_positions(positions, end, real, MASKED)
        s = load_rows(student, positions, kept, student_stride, STUDENT_HEAD, STUDENT_BLOCK)
        t = load_rows(teacher, positions, kept, teacher_stride, TEACHER_HEAD, TEACHER_BLOCK)
        by_student = tl.dot(tl.trans(s), s, by_student, input_precision="tf32")
        by_teacher = tl.dot(tl.trans(t), s, by_teacher, input_precision="tf32")
        if NEED_BOUND:
            longest_student = tl.maximum(longest_student, tl.max(tl.sum(s * s, axis=1)))
            longest_teacher = tl.maximum(longest_teacher, tl.max(tl.sum(t * t, axis=1)))
    return by_student, by_teacher, longest_student, longest_teacher


@triton.jit
def to_tf32(values):
    """Drop the 13 bits of mantissa that TF32 has not, so that no hardware has anything left to round."""
    return (values.to(tl.int32, bitcast=True) & -8192).to(tl.float32, bitcast=True)


@triton.jit
def times_gram(rows, gram, product):
    """Return product + rows (BLOCK, D) · gram (D, D'), without rounding the Gram matrix to TF32."""
    high = to_tf32(gram)
    product = tl.dot(rows, high, product, input_precision="tf32")
    return tl.dot(rows, to_tf32(gram - high), product, input_precision="tf32")


@triton.jit
def store_gradient(
    gradient, student, teacher, real, begin, end,
    gradient_stride, student_stride, teacher_stride, by_student, by_teacher,
    STUDENT_HEAD: tl.constexpr, TEACHER_HEAD: tl.constexpr, STUDENT_BLOCK: tl.constexpr, TEACHER_BLOCK: tl.constexpr,
    BLOCK: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Write student · by_student + teacher · by_teacher for some positions of one side, queries or keys, of a head."""
    columns = tl.arange(0, STUDENT_BLOCK)
    for start in range(begin, end, BLOCK):
        positions = start + tl.arange(0, BLOCK)
        kept = kept_positions(positions, end, real, MASKED)
        product = tl.zeros((BLOCK, STUDENT_BLOCK), tl.float32)
        s = load_rows(student, positions, kept, student_stride, STUDENT_HEAD, STUDENT_BLOCK)
        product = times_gram(s, by_student, product)
        t = load_rows(teacher, positions, kept, teacher_stride, TEACHER_HEAD, TEACHER_BLOCK)
        product = times_gram(t, by_teacher, product)
        inside = (positions < end)[:, None] & (columns < STUDENT_HEAD)[None, :]
        values = product.to(gradient.dtype.element_ty)
        tl.store(gradient + positions[:, None] * gradient_stride + columns[None, :], values, mask=inside)


@triton.jit
def head_offset(program, heads, batch_stride, head_stride, UNIT: tl.constexpr):
    """Return where head `program % heads` of row `program // heads` begins."""
    row, head = (program // heads).to(tl.int64), (program % heads).to(tl.int64)
    return (row * batch_stride + head * head_stride) * UNIT


@triton.jit
def attention_loss_kernel(
    student_query, student_key, teacher_query, teacher_key, real, coefficient, query_gradient, key_gradient, statistics,
    programs, heads, length,
    student_batch_stride, student_head_stride, student_stride,
    teacher_batch_stride, teacher_head_stride, teacher_stride,
    gradient_batch_stride, gradient_head_stride, gradient_stride,
    student_scaling, teacher_scaling,
    STUDENT_HEAD: tl.constexpr, TEACHER_HEAD: tl.constexpr, STUDENT_BLOCK: tl.constexpr, TEACHER_BLOCK: tl.constexpr,
    STUDENT_UNIT: tl.constexpr, TEACHER_UNIT: tl.constexpr, GRADIENT_UNIT: tl.constexpr,
    BLOCK: tl.constexpr, VALID: tl.constexpr, NEED_VALUE: tl.constexpr, NEED_GRADIENT: tl.constexpr,
):  # fmt: skip
    """Write the sums, the bound and the gradients of head `program % heads` of row `program // heads`.

    Queries and keys (B, A, S, D), those of a model laid out alike, elements of a head side by side; real (B, S) bool;
    coefficient a float32 scalar, 2 / denominator; statistics (4, programs) float64 as `triton_attention.launch` says.
    """
    program = tl.program_id(0)
    student_offset = head_offset(program, heads, student_batch_stride, student_head_stride, STUDENT_UNIT)
    teacher_offset = head_offset(program, heads, teacher_batch_stride, teacher_head_stride, TEACHER_UNIT)
    student_stride *= STUDENT_UNIT
    teacher_stride *= TEACHER_UNIT
    gradient_stride *= GRADIENT_UNIT
    real += (program // heads).to(tl.int64) * length
    student_query += student_offset
    student_key += student_offset
    teacher_query += teacher_offset
    teacher_key += teacher_offset
    statistics += program
    if NEED_VALUE:  # no gradient needs these two: they leave the registers before the others come
        query_tt = teacher_gram(
            teacher_query, real, 0, length, teacher_stride, TEACHER_HEAD, TEACHER_BLOCK, BLOCK, VALID
        )
        key_tt = teacher_gram(teacher_key, real, 0, length, teacher_stride, TEACHER_HEAD, TEACHER_BLOCK, BLOCK, True)
        teacher_sum = tl.sum((query_tt * key_tt).to(tl.float64))
        tl.store(statistics + 2 * programs, teacher_sum * teacher_scaling * teacher_scaling)
    # Queries are multiplied by the Gram matrices of the keys, and keys by those of the queries. One side's leave the
    # registers before the other's come, unless the value needs both.
    key_ss, key_ts, longest_sk, longest_tk = student_grams(
        student_key, teacher_key, real, 0, length, student_stride, teacher_stride,
        STUDENT_HEAD, TEACHER_HEAD, STUDENT_BLOCK, TEACHER_BLOCK, BLOCK, True, not VALID,
    )  # fmt: skip
    if NEED_GRADIENT:
        factor = tl.load(coefficient) * student_scaling
        by_student, by_teacher = factor * student_scaling, -factor * teacher_scaling
        gradient_offset = head_offset(program, heads, gradient_batch_stride, gradient_head_stride, GRADIENT_UNIT)
        store_gradient(
            query_gradient + gradient_offset, student_query, teacher_query, real, 0, length,
            gradient_stride, student_stride, teacher_stride, key_ss * by_student, key_ts * by_teacher,
            STUDENT_HEAD, TEACHER_HEAD, STUDENT_BLOCK, TEACHER_BLOCK, BLOCK, VALID,
        )  # fmt: skip
    query_ss, query_ts, longest_sq, longest_tq = student_grams(
        student_query, teacher_query, real, 0, length, student_stride, teacher_stride,
        STUDENT_HEAD, TEACHER_HEAD, STUDENT_BLOCK, TEACHER_BLOCK, BLOCK, VALID, not VALID,
    )  # fmt: skip
    if NEED_VALUE:
        student_sum = tl.sum((query_ss * key_ss).to(tl.float64))
        mixed_sum = tl.sum((query_ts * key_ts).to(tl.float64))
        tl.store(statistics, student_sum * student_scaling * student_scaling)
        tl.store(statistics + programs, mixed_sum * -2.0 * student_scaling * teacher_scaling)
    if not VALID:
        student_bound = tl.sqrt(longest_sq) * tl.sqrt(longest_sk) * tl.abs(student_scaling)
        teacher_bound = tl.sqrt(longest_tq) * tl.sqrt(longest_tk) * tl.abs(teacher_scaling)
        tl.store(statistics + 3 * programs, tl.maximum(student_bound, teacher_bound).to(tl.float64))
    if NEED_GRADIENT:
        store_gradient(
            key_gradient + gradient_offset, student_key, teacher_key, real, 0, length,
            gradient_stride, student_stride, teacher_stride, query_ss * by_student, query_ts * by_teacher,
            STUDENT_HEAD, TEACHER_HEAD, STUDENT_BLOCK, TEACHER_BLOCK, BLOCK, True,
        )  # fmt: skip
