"""The kernel that fills heads up with zeros, or cuts them; `triton_heads` launches it."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def resize_heads_kernel(
    source, target, heads,
    FROM: tl.constexpr, TO: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Copy heads of FROM elements to heads of TO: source (heads, FROM), target (heads, TO), without gaps.

    What a target has more is 0. COLUMNS is a power of two that neither size exceeds.
    """
    rows = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None]
    columns = tl.arange(0, COLUMNS)[None, :]
    inside = rows < heads
    rows = rows.to(tl.int64)
    values = tl.load(source + rows * FROM + columns, mask=inside & (columns < FROM), other=0.0)
    tl.store(target + rows * TO + columns, values, mask=inside & (columns < TO))
