"""The kernels of the closed attention loss for few heads of long rows; `triton_attention` launches them.

A head's positions are parted between programs. The first kernel leaves the Gram matrices of each part; in the second a
program adds up those of its head and writes the gradients of its positions. What is added up is added in one order:
the result does not depend on which program comes first. Terms and formulas are those of `triton_kernel`.

For each part and head, `grams` holds the matrices of queries and then those of keys: student by student columns,
teacher by student, teacher by teacher.
"""

from __future__ import annotations

import triton
import triton.language as tl

from tinybert_ds.losses.triton_kernel import head_offset, store_gradient, student_grams, teacher_gram


@triton.jit
def places_in(ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Return where the elements of a matrix (ROWS, COLUMNS) lie."""
    return tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]


@triton.jit
def summed(grams, parts, stride, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Return the sum over parts of a matrix (ROWS, COLUMNS) that lies `stride` from one part to the next."""
    places = places_in(ROWS, COLUMNS)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for _ in range(parts):
        total += tl.load(grams + places)
        grams += stride
    return total


@triton.jit
def split_grams_kernel(
    student_query, student_key, teacher_query, teacher_key, real, grams,
    heads, length, share,
    student_batch_stride, student_head_stride, student_stride,
    teacher_batch_stride, teacher_head_stride, teacher_stride,
    STUDENT_HEAD: tl.constexpr, TEACHER_HEAD: tl.constexpr, STUDENT_BLOCK: tl.constexpr, TEACHER_BLOCK: tl.constexpr,
    STUDENT_UNIT: tl.constexpr, TEACHER_UNIT: tl.constexpr, BLOCK: tl.constexpr, NEED_VALUE: tl.constexpr,
):  # fmt: skip
    """Write the Gram matrices of `share` positions of a head, program (head of row, part), under padding="valid".

    Those of teacher by teacher columns, which the value alone needs, are left out unless NEED_VALUE.
    """
    program, part = tl.program_id(0), tl.program_id(1)
    begin = part * share
    end = tl.minimum(length, begin + share)
    student_offset = head_offset(program, heads, student_batch_stride, student_head_stride, STUDENT_UNIT)
    teacher_offset = head_offset(program, heads, teacher_batch_stride, teacher_head_stride, TEACHER_UNIT)
    real += (program // heads).to(tl.int64) * length
    SS: tl.constexpr = STUDENT_BLOCK * STUDENT_BLOCK
    TS: tl.constexpr = TEACHER_BLOCK * STUDENT_BLOCK
    SIDE: tl.constexpr = SS + TS + TEACHER_BLOCK * TEACHER_BLOCK
    grams += (part.to(tl.int64) * tl.num_programs(0) + program) * 2 * SIDE
    if NEED_VALUE:
        query_tt = teacher_gram(
            teacher_query + teacher_offset, real, begin, end, teacher_stride * TEACHER_UNIT,
            TEACHER_HEAD, TEACHER_BLOCK, BLOCK, True,
        )  # fmt: skip
        tl.store(grams + SS + TS + places_in(TEACHER_BLOCK, TEACHER_BLOCK), query_tt)
        key_tt = teacher_gram(
            teacher_key + teacher_offset, real, begin, end, teacher_stride * TEACHER_UNIT,
            TEACHER_HEAD, TEACHER_BLOCK, BLOCK, True,
        )  # fmt: skip
        tl.store(grams + SIDE + SS + TS + places_in(TEACHER_BLOCK, TEACHER_BLOCK), key_tt)
    query_ss, query_ts, _, _ = student_grams(
        student_query + student_offset, teacher_query + teacher_offset, real, begin, end,
        student_stride * STUDENT_UNIT, teacher_stride * TEACHER_UNIT,
        STUDENT_HEAD, TEACHER_HEAD, STUDENT_BLOCK, TEACHER_BLOCK, BLOCK, True, False,
    )  # fmt: skip
    tl.store(grams + places_in(STUDENT_BLOCK, STUDENT_BLOCK), query_ss)
    tl.store(grams + SS + places_in(TEACHER_BLOCK, STUDENT_BLOCK), query_ts)
    key_ss, key_ts, _, _ = student_grams(
        student_key + student_offset, teacher_key + teacher_offset, real, begin, end,
        student_stride * STUDENT_UNIT, teacher_stride * TEACHER_UNIT,
        STUDENT_HEAD, TEACHER_HEAD, STUDENT_BLOCK, TEACHER_BLOCK, BLOCK, True, False,
    )  # fmt: skip
    tl.store(grams + SIDE + places_in(STUDENT_BLOCK, STUDENT_BLOCK), key_ss)
    tl.store(grams + SIDE + SS + places_in(TEACHER_BLOCK, STUDENT_BLOCK), key_ts)


@triton.jit
def split_gradients_kernel(
    student_query, student_key, teacher_query, teacher_key, real, coefficient, grams,
    query_gradient, key_gradient, statistics,
    heads, length, share,
    student_batch_stride, student_head_stride, student_stride,
    teacher_batch_stride, teacher_head_stride, teacher_stride,
    gradient_batch_stride, gradient_head_stride, gradient_stride,
    student_scaling, teacher_scaling,
    STUDENT_HEAD: tl.constexpr, TEACHER_HEAD: tl.constexpr, STUDENT_BLOCK: tl.constexpr, TEACHER_BLOCK: tl.constexpr,
    STUDENT_UNIT: tl.constexpr, TEACHER_UNIT: tl.constexpr, GRADIENT_UNIT: tl.constexpr,
    BLOCK: tl.constexpr, NEED_VALUE: tl.constexpr, NEED_GRADIENT: tl.constexpr,
):  # fmt: skip
    """Write a head's sums, by its first part, and the gradients of `share` positions; see `attention_loss_kernel`."""
    program, part = tl.program_id(0), tl.program_id(1)
    programs, parts = tl.num_programs(0), tl.num_programs(1)
    begin = part * share
    end = tl.minimum(length, begin + share)
    SS: tl.constexpr = STUDENT_BLOCK * STUDENT_BLOCK
    TS: tl.constexpr = TEACHER_BLOCK * STUDENT_BLOCK
    SIDE: tl.constexpr = SS + TS + TEACHER_BLOCK * TEACHER_BLOCK
    stride = programs * 2 * SIDE
    grams += program.to(tl.int64) * 2 * SIDE
    query_ss = summed(grams, parts, stride, STUDENT_BLOCK, STUDENT_BLOCK)
    query_ts = summed(grams + SS, parts, stride, TEACHER_BLOCK, STUDENT_BLOCK)
    key_ss = summed(grams + SIDE, parts, stride, STUDENT_BLOCK, STUDENT_BLOCK)
    key_ts = summed(grams + SIDE + SS, parts, stride, TEACHER_BLOCK, STUDENT_BLOCK)
    if NEED_VALUE:  # noqa: SIM102 - this is known when compiled, the other when run
        if part == 0:
            query_tt = summed(grams + SS + TS, parts, stride, TEACHER_BLOCK, TEACHER_BLOCK)
            key_tt = summed(grams + SIDE + SS + TS, parts, stride, TEACHER_BLOCK, TEACHER_BLOCK)
            teacher_sum = tl.sum((query_tt * key_tt).to(tl.float64))
            tl.store(statistics + 2 * programs + program, teacher_sum * teacher_scaling * teacher_scaling)
            student_sum = tl.sum((query_ss * key_ss).to(tl.float64))
            mixed_sum = tl.sum((query_ts * key_ts).to(tl.float64))
            tl.store(statistics + program, student_sum * student_scaling * student_scaling)
            tl.store(statistics + programs + program, mixed_sum * -2.0 * student_scaling * teacher_scaling)
    if NEED_GRADIENT:
        student_offset = head_offset(program, heads, student_batch_stride, student_head_stride, STUDENT_UNIT)
        teacher_offset = head_offset(program, heads, teacher_batch_stride, teacher_head_stride, TEACHER_UNIT)
        gradient_offset = head_offset(program, heads, gradient_batch_stride, gradient_head_stride, GRADIENT_UNIT)
        real += (program // heads).to(tl.int64) * length
        factor = tl.load(coefficient) * student_scaling
        by_student, by_teacher = factor * student_scaling, -factor * teacher_scaling
        store_gradient(
            query_gradient + gradient_offset, student_query + student_offset, teacher_query + teacher_offset,
            real, begin, end,
            gradient_stride * GRADIENT_UNIT, student_stride * STUDENT_UNIT, teacher_stride * TEACHER_UNIT,
            key_ss * by_student, key_ts * by_teacher,
            STUDENT_HEAD, TEACHER_HEAD, STUDENT_BLOCK, TEACHER_BLOCK, BLOCK, True,
        )  # fmt: skip
        store_gradient(
            key_gradient + gradient_offset, student_key + student_offset, teacher_key + teacher_offset,
            real, begin, end,
            gradient_stride * GRADIENT_UNIT, student_stride * STUDENT_UNIT, teacher_stride * TEACHER_UNIT,
            query_ss * by_student, query_ts * by_teacher,
            STUDENT_HEAD, TEACHER_HEAD, STUDENT_BLOCK, TEACHER_BLOCK, BLOCK, True,
        )  # fmt: skip
