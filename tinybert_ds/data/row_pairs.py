"""Steps whose rows come in pairs of one group, for losses that compare two rows of it.

n rows.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tinybert_ds.data.batching import plan_window
from tinybert_ds.data.order import Ints, make_key, permutation

PAIR = 2


def plan_pairs(groups: NDArray[np.int64], lengths: Ints, global_batch_size: int, key: int) -> list[Ints]:
    """Rows of each optimizer step of an epoch, every row exactly once, rows 2k and 2k + 1 of one group where it can be.

    The rows of a group are drawn in pairs; of an odd number one is left over, and has one of another group beside it.
    With an odd number of rows the very last one stands alone.

    Args:
        groups: (n,) which rows belong together.
        lengths: (n,) tokens of each row.
        global_batch_size: Even.
        key: Names the draw and the order.

    Returns:
        ceil(n / global_batch_size) arrays of row numbers.
    """
    assert global_batch_size % PAIR == 0, global_batch_size
    shuffled = permutation(make_key(key, "pairs"), len(groups))
    rows = shuffled[np.argsort(groups[shuffled], kind="stable")]
    _, begins, sizes = np.unique(groups[rows], return_index=True, return_counts=True)
    place = np.arange(len(rows)) - np.repeat(begins, sizes)
    whole = place < np.repeat(sizes - sizes % PAIR, sizes)
    rest = rows[~whole]
    ordered = np.concatenate([rows[whole], rest])
    pairs = ordered[: len(ordered) - len(ordered) % PAIR].reshape(-1, PAIR)
    alone = ordered[len(pairs) * PAIR :]
    steps: list[Ints] = []
    if len(pairs):
        planned = plan_window(lengths[pairs].max(axis=1), global_batch_size // PAIR, key)
        steps = [pairs[step].reshape(-1) for step in planned]
    if len(alone):
        if steps and len(steps[-1]) < global_batch_size:
            steps[-1] = np.concatenate([steps[-1], alone])
        else:
            steps.append(alone)
    return steps


def count_pairs(groups: NDArray[np.int64]) -> int:
    """Return how many pairs of one group there are among the rows (r,) of a step."""
    whole = len(groups) - len(groups) % PAIR
    return int((groups[:whole:PAIR] == groups[1:whole:PAIR]).sum())
