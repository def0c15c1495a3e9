"""The tools read a process's place as training does."""

from __future__ import annotations

import os

import pytest

from data_tools.ranks import Ranks, find_ranks
from tinybert_ds.errors import RankError


@pytest.fixture
def environment(monkeypatch):
    """Return a function that makes these the only variables of launchers."""
    for name in list(os.environ):
        if any(part in name for part in ("RANK", "PMI", "OMPI", "WORLD_SIZE", "SLURM", "MASTER_")):
            monkeypatch.delenv(name)

    def put(**values):
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return put


def test_ranks_need_no_address(environment):
    environment(RANK="3", WORLD_SIZE="4")
    assert find_ranks() == Ranks(3, 4, 3)


def test_half_a_place_is_refused(environment):
    environment(RANK="3")
    with pytest.raises(RankError, match="WORLD_SIZE is not set"):
        find_ranks()


def test_the_script_of_a_batch_job_is_told_that_it_runs_alone(environment, capsys):
    environment(SLURM_JOB_ID="17", SLURM_NTASKS="8", SLURM_PROCID="0")
    assert find_ranks() == Ranks(0, 1, 0)
    assert capsys.readouterr().err.startswith("warning: Slurm has given job 17 8 tasks")


@pytest.mark.parametrize(
    ("environment", "ranks"),
    [
        ({}, Ranks(0, 1, 0)),
        ({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}, Ranks(3, 4, 1)),
        ({"OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_SIZE": "3", "OMPI_COMM_WORLD_LOCAL_RANK": "0"}, (2, 3, 0)),
        ({"PMI_RANK": "1", "PMI_SIZE": "2"}, Ranks(1, 2, 1)),
        ({"PMI_RANK": "5", "PMI_SIZE": "8", "MPI_LOCALRANKID": "1"}, Ranks(5, 8, 1)),
        ({"RANK": "3", "WORLD_SIZE": "4"}, Ranks(3, 4, 3)),  # no address: they do not talk to each other
        ({"SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1", "SLURM_STEP_ID": "0"}, Ranks(5, 8, 1)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_LOCALID": "0"}, Ranks(0, 1, 0)),  # a batch script
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_ID": "9"}, (0, 1, 0)),
        ({"RANK": "1", "WORLD_SIZE": "2", "SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_STEP_ID": "0"}, (1, 2, 1)),
    ],
)
def test_ranks_are_read_from_the_launchers_environment(monkeypatch, environment, ranks):
    for name in list(os.environ):
        if any(part in name for part in ("RANK", "PMI", "OMPI", "WORLD_SIZE", "SLURM")):
            monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert find_ranks() == ranks
