"""This process's place among those that a launcher has started, read from the environment; nothing is communicated."""

from __future__ import annotations

import os
from typing import NamedTuple

_LAUNCHERS = (  # rank, number of ranks, rank on this host
    ("RANK", "WORLD_SIZE", "LOCAL_RANK"),  # deepspeed, torchrun
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"),  # mpich and its relatives
)


class Ranks(NamedTuple):
    """This process's place."""

    rank: int
    size: int
    local_rank: int


def find_ranks() -> Ranks:
    """Return the place that `deepspeed`, `torchrun` or `mpirun` gave this process; (0, 1, 0) without a launcher."""
    for rank, size, local_rank in _LAUNCHERS:
        if rank in os.environ and size in os.environ:
            own = int(os.environ[rank])
            return Ranks(own, int(os.environ[size]), int(os.environ.get(local_rank, own)))
    return Ranks(0, 1, 0)
