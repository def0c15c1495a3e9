"""The kernels of the KL of relations; `triton_relations` launches them.

B batch rows, S sequence length, R relation heads. A program takes BLOCK query rows of one head of one batch row and
passes over all keys, KEYS at a time. The first kernel leaves the log-sum-exp of each row's scores, student's and
teacher's; with these the second one knows every probability from its score alone. Scores are symmetric, so that a
program has both parts of the gradient of its rows, as queries and as keys, and no two programs write to one place.

Everything is multiplied on tensor cores, in their TF32 format, into float32: bfloat16 and float16 inputs are exact in
it, and what is multiplied by them for the gradient is split into a high and a low part.
"""

from __future__ import annotations

import triton
import triton.language as tl

from tinybert_ds.losses.triton_kernel import kept_positions, load_rows, to_tf32

NOT_COUNTED = tl.constexpr(1e30)
"""The log-sum-exp of a row that does not count: exp() of any score less it is 0."""


@triton.jit
def tile_of_scores(
    queries, states, positions, real, length, stride, scaling,
    HEAD: tl.constexpr, COLUMNS: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Return the scores of loaded queries with the keys at some positions, and these keys."""
    keys = load_rows(states, positions, kept_positions(positions, length, real, MASKED), stride, HEAD, COLUMNS)
    zeros = tl.zeros((queries.shape[0], keys.shape[0]), tl.float32)
    return tl.dot(queries, tl.trans(keys), zeros, input_precision="tf32") * scaling, keys


@triton.jit
def add_exps(scores, kept, largest, total):
    """Take keys into the running maximum (BLOCK,) and sum of exps of each row."""
    scores = tl.where(kept[None, :], scores, -1e30)
    larger = tl.maximum(largest, tl.max(scores, axis=1))
    return larger, total * tl.exp(largest - larger) + tl.sum(tl.exp(scores - larger[:, None]), axis=1)


@triton.jit
def log_sums_kernel(
    student, teacher, real, log_sums,
    rows, heads, length,
    student_batch_stride, student_head_stride, student_stride,
    teacher_batch_stride, teacher_head_stride, teacher_stride,
    student_scaling, teacher_scaling,
    STUDENT_HEAD: tl.constexpr, TEACHER_HEAD: tl.constexpr, STUDENT_BLOCK: tl.constexpr, TEACHER_BLOCK: tl.constexpr,
    BLOCK: tl.constexpr, KEYS: tl.constexpr, VALID: tl.constexpr,
):  # fmt: skip
    """Write the student's and the teacher's log-sum-exp of each row, (2, B·R, S) float32, or NOT_COUNTED.

    Vectors (B, R, S, d), elements of a head side by side; real (B, S) bool; rows = B·R·S.
    """
    head_of_row = tl.program_id(0).to(tl.int64)
    row, head = head_of_row // heads, head_of_row % heads
    student += row * student_batch_stride + head * student_head_stride
    teacher += row * teacher_batch_stride + head * teacher_head_stride
    real += row * length
    positions = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    kept = kept_positions(positions, length, real, VALID)
    s = load_rows(student, positions, kept, student_stride, STUDENT_HEAD, STUDENT_BLOCK)
    t = load_rows(teacher, positions, kept, teacher_stride, TEACHER_HEAD, TEACHER_BLOCK)
    largest_s = tl.full((BLOCK,), -1e30, tl.float32)
    largest_t = tl.full((BLOCK,), -1e30, tl.float32)
    total_s = tl.zeros((BLOCK,), tl.float32)
    total_t = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, length, KEYS):
        columns = start + tl.arange(0, KEYS)
        is_key = kept_positions(columns, length, real, True)
        scores, _ = tile_of_scores(
            s, student, columns, real, length, student_stride, student_scaling, STUDENT_HEAD, STUDENT_BLOCK, VALID
        )
        largest_s, total_s = add_exps(scores, is_key, largest_s, total_s)
        scores, _ = tile_of_scores(
            t, teacher, columns, real, length, teacher_stride, teacher_scaling, TEACHER_HEAD, TEACHER_BLOCK, VALID
        )
        largest_t, total_t = add_exps(scores, is_key, largest_t, total_t)
    counted = kept & (largest_s > -1e29)  # a maximum that never rose is that of a text without a real token
    log_sums += head_of_row * length + positions
    inside = positions < length
    tl.store(log_sums, tl.where(counted, largest_s + tl.log(total_s), NOT_COUNTED), mask=inside)
    tl.store(log_sums + rows, tl.where(counted, largest_t + tl.log(total_t), NOT_COUNTED), mask=inside)


@triton.jit
def relation_loss_kernel(
    student, teacher, real, log_sums, coefficient, gradient, values,
    rows, heads, length,
    student_batch_stride, student_head_stride, student_stride,
    teacher_batch_stride, teacher_head_stride, teacher_stride,
    gradient_batch_stride, gradient_head_stride, gradient_stride,
    student_scaling, teacher_scaling,
    STUDENT_HEAD: tl.constexpr, TEACHER_HEAD: tl.constexpr, STUDENT_BLOCK: tl.constexpr, TEACHER_BLOCK: tl.constexpr,
    BLOCK: tl.constexpr, KEYS: tl.constexpr, VALID: tl.constexpr,
    NEED_VALUE: tl.constexpr, NEED_GRADIENT: tl.constexpr,
):  # fmt: skip
    """Write the sum of the KL of a program's rows, (programs,) float64, and its part of the gradient.

    A row's KL is Σ_j P·D − P + Q with D = log P − log Q: no term is negative, and rounded log-sums do not show in it.
    """
    head_of_row = tl.program_id(0).to(tl.int64)
    row, head = head_of_row // heads, head_of_row % heads
    student += row * student_batch_stride + head * student_head_stride
    teacher += row * teacher_batch_stride + head * teacher_head_stride
    real += row * length
    log_sums += head_of_row * length
    positions = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    kept = kept_positions(positions, length, real, VALID)
    is_key_too = kept_positions(positions, length, real, True)
    s = load_rows(student, positions, kept, student_stride, STUDENT_HEAD, STUDENT_BLOCK)
    t = load_rows(teacher, positions, kept, teacher_stride, TEACHER_HEAD, TEACHER_BLOCK)
    sum_s = tl.load(log_sums + positions, mask=positions < length, other=NOT_COUNTED)
    sum_t = tl.load(log_sums + rows + positions, mask=positions < length, other=NOT_COUNTED)
    value = tl.zeros((BLOCK,), tl.float32)
    product = tl.zeros((BLOCK, STUDENT_BLOCK), tl.float32)
    for start in range(0, length, KEYS):
        columns = start + tl.arange(0, KEYS)
        is_key = kept_positions(columns, length, real, True)
        scores_t, _ = tile_of_scores(
            t, teacher, columns, real, length, teacher_stride, teacher_scaling, TEACHER_HEAD, TEACHER_BLOCK, VALID
        )
        scores_s, keys = tile_of_scores(
            s, student, columns, real, length, student_stride, student_scaling, STUDENT_HEAD, STUDENT_BLOCK, VALID
        )
        log_q = tl.where(is_key[None, :], scores_s - sum_s[:, None], -1e30)
        log_p = tl.where(is_key[None, :], scores_t - sum_t[:, None], -1e30)
        p = tl.exp(log_p)
        difference = tl.exp(log_q) - p  # Q − P of these rows
        if NEED_VALUE:
            value += tl.sum(difference + p * (log_p - log_q), axis=1)
        if NEED_GRADIENT:
            column_s = tl.load(log_sums + columns, mask=columns < length, other=NOT_COUNTED)
            column_t = tl.load(log_sums + rows + columns, mask=columns < length, other=NOT_COUNTED)
            difference += tl.exp(tl.where(is_key_too[:, None], scores_s - column_s[None, :], -1e30))
            difference -= tl.exp(
                tl.where(is_key_too[:, None], scores_t - column_t[None, :], -1e30)
            )  # and as their keys
            high = to_tf32(difference)
            product = tl.dot(high, keys, product, input_precision="tf32")
            product = tl.dot(to_tf32(difference - high), keys, product, input_precision="tf32")
    if NEED_VALUE:
        place = head_of_row * tl.num_programs(1) + tl.program_id(1)
        tl.store(values + place, tl.sum(value.to(tl.float64)))
    if NEED_GRADIENT:
        columns = tl.arange(0, STUDENT_BLOCK)
        gradient += row * gradient_batch_stride + head * gradient_head_stride
        inside = (positions < length)[:, None] & (columns < STUDENT_HEAD)[None, :]
        product *= tl.load(coefficient) * student_scaling
        tl.store(gradient + positions[:, None] * gradient_stride + columns[None, :], product, mask=inside)
