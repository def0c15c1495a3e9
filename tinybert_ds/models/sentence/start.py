"""The projection of a student's pooled states to its teacher's vectors, by least squares.

n rows of a block, P pooled width of the student, V width of the teacher's vectors.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tinybert_ds.models.capture import CapturingEncoder
from tinybert_ds.models.inherit.blocks import Blocks
from tinybert_ds.models.inherit.sums import Regression, Sums, explained, regression_sums, solve
from tinybert_ds.models.sentence.head import pool
from tinybert_ds.models.sentence.modules import Dense
from tinybert_ds.types import Batch

RIDGE = 1e-4
"""In relation to the features' mean variance."""


@torch.no_grad()
def fit_projection(
    encoder: CapturingEncoder,
    pooling: tuple[str, ...],
    vectors_of: Callable[[Batch], Tensor],
    blocks: Blocks,
    *,
    ridge: float = RIDGE,
) -> tuple[Dense, float]:
    """Return the linear layer that takes a student nearest to its teacher's vectors, before any training.

    Args:
        encoder: The student's, in eval mode, on the device of the blocks; it returns its last state alone.
        pooling: Of `modules.POOLINGS`, the student's.
        vectors_of: From a batch to the teacher's vectors (n, V).
        blocks: The calibration text; call this on all of its ranks.
        ridge: What the fit holds against large weights.

    Returns:
        The layer (V, P), and the share of the variance of the vectors that it explains.
    """

    def measure(number: int) -> Sums:
        batch = blocks.batch(number)
        (state,) = encoder(batch).hidden_states
        return regression_sums(pool(state, batch.attention_mask, pooling), vectors_of(batch))

    sums = Regression(**blocks.sum(measure))
    fitted = solve(sums, ridge=ridge)
    blocks.agree(list(fitted))
    weight, bias = fitted.weight.T.float().cpu().contiguous(), fitted.bias.float().cpu()
    return Dense(weight, bias), explained(sums, fitted)
