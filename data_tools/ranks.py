"""This process's place among those that a launcher has started, read from the environment; nothing is communicated."""

from __future__ import annotations

import os
from typing import NamedTuple

_LAUNCHERS = (  # rank, number of ranks, rank on this host
    ("RANK", "WORLD_SIZE", "LOCAL_RANK"),  # deepspeed, torchrun
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"),  # mpich and its relatives
)
# After those of mpirun, which may start its daemons by srun. Only inside a step: the script of a batch job is one
# process with the numbers of the whole job. So is Slurm's shell on a compute node, hence the size of the step first.
_SLURM = (
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),
    ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"),
)


class Ranks(NamedTuple):
    """This process's place."""

    rank: int
    size: int
    local_rank: int


def find_ranks() -> Ranks:
    """Return the place that `deepspeed`, `torchrun`, `mpirun` or `srun` gave this process; (0, 1, 0) without one."""
    launchers = _LAUNCHERS + _SLURM if "SLURM_STEP_ID" in os.environ else _LAUNCHERS
    for rank, size, local_rank in launchers:
        if rank in os.environ and size in os.environ:
            own = int(os.environ[rank])
            return Ranks(own, int(os.environ[size]), int(os.environ.get(local_rank, own)))
    return Ranks(0, 1, 0)
