"""This process's place among those that a launcher has started; nothing is communicated."""

from __future__ import annotations

import os
import sys
from typing import NamedTuple

from tinybert_ds.rank_environment import read_rank_environment


class Ranks(NamedTuple):
    """This process's place."""

    rank: int
    size: int
    local_rank: int


def find_ranks() -> Ranks:
    """Return the place that `deepspeed`, `torchrun`, `mpirun` or `srun` gave this process; (0, 1, 0) without one.

    Raises:
        RankError: The variables of the launcher do not fit together.
    """
    place = read_rank_environment(os.environ, communicates=False)
    if place.warning:
        print(f"warning: {place.warning}", file=sys.stderr, flush=True)
    return Ranks(place.rank, place.world_size, place.rank if place.local_rank is None else place.local_rank)
