"""The kernels of layer normalisation; `triton_layer_norm` launches them.

T tokens (B·S), H hidden size. A program has whole rows in registers, so that a row is read once: what is added to it,
its mean and variance, and the result are one pass over memory. Sums are float32, whatever the states are.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def layer_norm_kernel(
    states, residual, weight, bias, output, summed, statistics, tokens, eps,
    WIDTH: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr, ADDS: tl.constexpr, KEEPS: tl.constexpr,
):  # fmt: skip
    """Write (x − mean(x)) / √(var(x) + eps) · weight + bias for each row x of states, or of states + residual if ADDS.

    States, residual, output and summed (T, H) without gaps, weight and bias (H,). For gradients, if KEEPS: summed, the
    rows x, and statistics (2, T) float32, their means and 1/√(var(x) + eps). A sum is rounded to the dtype of states
    before it is normalised, as the addition alone would have rounded it: gradients are those of what is kept.
    """
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, COLUMNS)
    inside, wide = rows < tokens, columns < WIDTH
    mask = inside[:, None] & wide[None, :]
    places = rows.to(tl.int64)[:, None] * WIDTH + columns[None, :]
    x = tl.load(states + places, mask=mask, other=0.0)
    if ADDS:
        added = tl.load(residual + places, mask=mask, other=0.0).to(tl.float32)
        x = (x.to(tl.float32) + added).to(states.dtype.element_ty)
        if KEEPS:
            tl.store(summed + places, x, mask=mask)
    x = x.to(tl.float32)
    mean = tl.sum(x, axis=1) / WIDTH
    centred = tl.where(mask, x - mean[:, None], 0.0)
    scale = tl.rsqrt(tl.sum(centred * centred, axis=1) / WIDTH + eps)
    factors = tl.load(weight + columns, mask=wide, other=0.0).to(tl.float32)
    shifts = tl.load(bias + columns, mask=wide, other=0.0).to(tl.float32)
    values = centred * scale[:, None] * factors[None, :] + shifts[None, :]
    tl.store(output + places, values.to(output.dtype.element_ty), mask=mask)
    if KEEPS:
        tl.store(statistics + rows, mean, mask=inside)
        tl.store(statistics + tokens + rows, scale, mask=inside)


@triton.jit
def layer_norm_gradients_kernel(
    gradient, summed, statistics, weight, by_states, sums, tokens,
    WIDTH: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Write the gradient by the rows that were normalised, and each program's share of those by weight and bias.

    Gradient, summed and by_states (T, H) without gaps, statistics (2, T) float32, weight (H,); sums (programs, 2, H)
    float32. A program goes on to further rows, as many as there are programs away, so that it adds up in registers.
    """
    columns = tl.arange(0, COLUMNS)
    wide = columns < WIDTH
    factors = tl.load(weight + columns, mask=wide, other=0.0).to(tl.float32)
    by_weight = tl.zeros((ROWS, COLUMNS), tl.float32)
    by_bias = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(tl.program_id(0) * ROWS, tokens, tl.num_programs(0) * ROWS):
        rows = start + tl.arange(0, ROWS)
        inside = rows < tokens
        mask = inside[:, None] & wide[None, :]
        places = rows.to(tl.int64)[:, None] * WIDTH + columns[None, :]
        mean = tl.load(statistics + rows, mask=inside, other=0.0)
        scale = tl.load(statistics + tokens + rows, mask=inside, other=0.0)
        x = tl.load(summed + places, mask=mask, other=0.0).to(tl.float32)
        upstream = tl.load(gradient + places, mask=mask, other=0.0).to(tl.float32)
        normal = (x - mean[:, None]) * scale[:, None]
        by_weight += upstream * normal
        by_bias += upstream
        upstream *= factors[None, :]
        along_ones = tl.sum(upstream, axis=1) / WIDTH
        along_rows = tl.sum(upstream * normal, axis=1) / WIDTH
        values = (upstream - along_ones[:, None] - normal * along_rows[:, None]) * scale[:, None]
        tl.store(by_states + places, values.to(by_states.dtype.element_ty), mask=mask)
    own = sums + tl.program_id(0) * 2 * WIDTH + columns
    tl.store(own, tl.sum(by_weight, axis=0), mask=wide)
    tl.store(own + WIDTH, tl.sum(by_bias, axis=0), mask=wide)
