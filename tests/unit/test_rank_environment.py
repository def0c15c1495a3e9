"""One function decides, for training and for the tools, whether a process is one of several, and which."""

from __future__ import annotations

import pytest

from tinybert_ds.errors import ConfigError, RankError
from tinybert_ds.rank_environment import device_of, first_host, ranks_on_this_host, read_rank_environment

THERE = {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "4000"}
PLAIN = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", **THERE}
TORCHRUN = {**PLAIN, "TORCHELASTIC_RUN_ID": "none", "LOCAL_WORLD_SIZE": "2"}
SRUN = {
    "SLURM_JOB_ID": "1234567",
    "SLURM_STEP_ID": "2",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_NTASKS": "8",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
    "SLURM_LAUNCH_NODE_IPADDR": "10.9.9.9",  # where srun was called, which may be a login node
}
SRUN_PORT = 15_000 + (1234567 * 17 + 2) % 15_000
OPEN_MPI = {"OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_RANK": "0"}
MPICH = {"PMI_RANK": "2", "PMI_SIZE": "4", "MPI_LOCALRANKID": "0"}
BATCH = {"SLURM_JOB_ID": "17", "SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}


def without(environment, *names):
    return {name: value for name, value in environment.items() if name not in names}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        (TORCHRUN, (3, 8, 1, "10.0.0.1", 4000)),
        (PLAIN, (3, 8, 1, "10.0.0.1", 4000)),
        (without(PLAIN, "LOCAL_RANK"), (3, 8, None, "10.0.0.1", 4000)),  # counted when the ranks meet
        (SRUN, (5, 8, 1, "gpu07", SRUN_PORT)),
        (without(SRUN, "SLURM_STEP_NUM_TASKS"), (5, 8, 1, "gpu07", SRUN_PORT)),
        ({**SRUN, "SLURM_STEP_NUM_NODES": "1"}, (5, 8, 1, "127.0.0.1", SRUN_PORT)),
        ({**without(SRUN, "SLURM_STEP_NUM_NODES"), "SLURM_STEP_NODELIST": "gpu07"}, (5, 8, 1, "127.0.0.1", SRUN_PORT)),
        (without(SRUN, "SLURM_STEP_NODELIST"), (5, 8, 1, "10.9.9.9", SRUN_PORT)),
        ({**without(SRUN, "SLURM_STEP_NODELIST"), "SLURM_NODELIST": "a1,b2"}, (5, 8, 1, "a1", SRUN_PORT)),
        ({**SRUN, **THERE}, (5, 8, 1, "10.0.0.1", 4000)),
        ({**SRUN, "MASTER_PORT": "4000", "WORLD_SIZE": "8"}, (5, 8, 1, "gpu07", 4000)),
        ({**SRUN, "RANK": "5", "WORLD_SIZE": "8"}, (5, 8, 1, "gpu07", SRUN_PORT)),
        ({**SRUN, "PMI_RANK": "5", "PMI_SIZE": "8"}, (5, 8, 1, "gpu07", SRUN_PORT)),  # srun --mpi=pmi2
        ({**SRUN, "PMIX_RANK": "5"}, (5, 8, 1, "gpu07", SRUN_PORT)),  # srun --mpi=pmix
        (OPEN_MPI, (2, 4, 0, None, None)),  # mpi4py is asked where rank 0 is
        (MPICH, (2, 4, 0, None, None)),
        (without(MPICH, "MPI_LOCALRANKID"), (2, 4, None, None, None)),
        ({**OPEN_MPI, "MASTER_PORT": "4000"}, (2, 4, 0, None, 4000)),
        ({**OPEN_MPI, **THERE}, (2, 4, 0, "10.0.0.1", 4000)),
        ({**MPICH, **THERE, "WORLD_SIZE": "4", "LOCAL_SIZE": "2"}, (2, 4, 0, "10.0.0.1", 4000)),
        ({"MV2_COMM_WORLD_RANK": "1", "MV2_COMM_WORLD_SIZE": "2", **THERE}, (1, 2, None, "10.0.0.1", 4000)),
        ({"PMIX_RANK": "1", "WORLD_SIZE": "2", **THERE}, (1, 2, None, "10.0.0.1", 4000)),
        ({**PLAIN, "OMPI_COMM_WORLD_RANK": "", "SLURM_STEP_ID": ""}, (3, 8, 1, "10.0.0.1", 4000)),  # empty: not set
    ],
)
def test_a_rank_joins_with_what_is_stated_or_can_be_derived(environment, expected):
    found = read_rank_environment(environment)
    assert (found.rank, found.world_size, found.local_rank, found.address, found.port) == expected
    assert found.warning == ""


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({**TORCHRUN, **SRUN, "SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2"}, (3, 8)),  # srun starts torchruns
        ({**TORCHRUN, **MPICH}, (3, 8)),
        ({**without(TORCHRUN, "TORCHELASTIC_RUN_ID"), "CROSS_SIZE": "2", **SRUN, "SLURM_PROCID": "1"}, (3, 8)),
        (
            {**OPEN_MPI, **SRUN, "SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2"},
            (2, 4),
        ),  # srun starts mpirun's daemons
        ({**MPICH, **SRUN, "SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "4"}, (2, 4)),  # which count in another order
        ({**PLAIN, **SRUN, "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "2"}, (3, 8)),  # a script starts four in each
    ],
)
def test_of_nested_launchers_the_innermost_counts(environment, expected):
    found = read_rank_environment(environment)
    assert (found.rank, found.world_size) == expected


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"RANK": "0", "WORLD_SIZE": "1"},
        {"WORLD_SIZE": "1"},
        {"RANK": "", "WORLD_SIZE": "", "MASTER_PORT": ""},
        {**MPICH, "PMI_RANK": "0", "PMI_SIZE": "1"},
        {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "1"},
        {"PMIX_RANK": "0", "PMIX_SIZE": "1"},
        {"PMI_SIZE": "1"},
        {**SRUN, "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_STEP_NUM_TASKS": "1", "PMIX_RANK": "0"},  # --pty
        {"SLURM_JOB_ID": "17", "SLURM_NTASKS": "1", "SLURM_PROCID": "0"},
    ],
)
def test_one_process_runs_alone(environment):
    found = read_rank_environment(environment)
    assert found[:5] == (0, 1, 0, None, None)
    assert found.warning == ""


def test_one_process_takes_the_device_that_it_is_told():
    assert read_rank_environment({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "2"}).local_rank == 2


@pytest.mark.parametrize("step", [{}, {"SLURM_STEP_ID": "4294967291"}, {"SLURM_STEP_ID": "batch"}])
@pytest.mark.parametrize("more", [{}, {"MASTER_ADDR": "gpu07", "MASTER_PORT": "29500"}])
def test_the_script_of_a_batch_job_runs_alone_and_says_how_to_get_ranks(step, more):
    found = read_rank_environment({**BATCH, **step, **more})
    assert found[:3] == (0, 1, 0)
    assert "Slurm has given job 17 8 tasks (SLURM_NTASKS), but srun has not started" in found.warning
    assert "write srun before the command" in found.warning


def test_a_task_of_slurm_that_has_lost_its_step_does_not_train_alone():
    lost = {"SLURM_PROCID": "1", "SLURM_NTASKS": "2"}  # a container that hands on some variables
    with pytest.raises(ConfigError, match=r"SLURM_PROCID is '1'.*SLURM_STEP_ID does not name a step"):
        read_rank_environment(lost)
    assert "2 tasks (SLURM_NTASKS)" in read_rank_environment({**lost, "SLURM_PROCID": "0"}).warning


def test_a_process_of_pmix_that_knows_of_no_others_says_that_it_runs_alone():
    found = read_rank_environment({"PMIX_RANK": "0"})
    assert found[:3] == (0, 1, 0)
    assert "PMIX_RANK is 0" in found.warning
    assert "export WORLD_SIZE" in found.warning


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        ({**PLAIN, "RANK": "8"}, ["RANK is 8", "WORLD_SIZE is 8", "below 8"]),
        ({**PLAIN, "WORLD_SIZE": "x"}, ["WORLD_SIZE is 'x'", "whole number"]),
        ({**PLAIN, "WORLD_SIZE": "0"}, ["WORLD_SIZE is '0'", "at least 1"]),
        ({**PLAIN, "RANK": "-1"}, ["RANK is '-1'"]),
        ({**PLAIN, "RANK": "1.0"}, ["RANK is '1.0'"]),
        ({**PLAIN, "RANK": "٣"}, ["RANK is '٣'"]),
        ({**PLAIN, "RANK": "9" * 5000}, ["RANK is '999", "9'..."]),
        ({**PLAIN, "LOCAL_RANK": "-1"}, ["LOCAL_RANK is '-1'"]),
        ({**PLAIN, "MASTER_PORT": "70000"}, ["MASTER_PORT is '70000'", "from 1 to 65535"]),
        ({**PLAIN, "MASTER_PORT": "0"}, ["MASTER_PORT is '0'"]),
        (without(PLAIN, "MASTER_ADDR"), ["MASTER_ADDR is not set"]),
        (without(PLAIN, "MASTER_ADDR", "MASTER_PORT"), ["MASTER_ADDR and MASTER_PORT are not set"]),
        (without(PLAIN, "RANK"), ["RANK is not set", "WORLD_SIZE is '8'"]),
        (without(PLAIN, "WORLD_SIZE"), ["WORLD_SIZE is not set", "unset RANK"]),
        ({"RANK": "0"}, ["RANK is '0'", "WORLD_SIZE is not set"]),
        ({"LOCAL_RANK": "1"}, ["LOCAL_RANK is '1'", "RANK and WORLD_SIZE are not set"]),
        (THERE, ["MASTER_ADDR is '10.0.0.1'", "RANK and WORLD_SIZE are not set"]),
        ({**BATCH, "WORLD_SIZE": "8"}, ["WORLD_SIZE is '8'", "RANK is not set"]),
        (without(MPICH, "PMI_SIZE"), ["PMI_SIZE is not set"]),
        (without(OPEN_MPI, "OMPI_COMM_WORLD_RANK"), ["OMPI_COMM_WORLD_RANK is not set"]),
        ({"PMIX_RANK": "1"}, ["PMIX_RANK is '1'", "PMIX_SIZE is not set"]),
        ({"PMIX_RANK": "x"}, ["PMIX_RANK is 'x'"]),
        (without(SRUN, "SLURM_NTASKS", "SLURM_STEP_NUM_TASKS"), ["SLURM_PROCID is '5'", "SLURM_STEP_NUM_TASKS"]),
        (without(SRUN, "SLURM_JOB_ID"), ["SLURM_JOB_ID is not set", "MASTER_PORT"]),
        (without(SRUN, "SLURM_STEP_NODELIST", "SLURM_LAUNCH_NODE_IPADDR"), ["SLURM_STEP_NODELIST", "MASTER_ADDR"]),
    ],
)
def test_what_is_missing_or_no_number_is_named_with_its_value(environment, named):
    with pytest.raises(RankError) as caught:
        read_rank_environment(environment)
    assert [part for part in named if part not in str(caught.value)] == []
    assert len(str(caught.value)) < 500
    assert isinstance(caught.value, ConfigError)


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        ({**SRUN, "RANK": "0", "WORLD_SIZE": "1"}, ["RANK", "SLURM_PROCID"]),  # all eight would train alone
        ({**SRUN, "RANK": "0", "WORLD_SIZE": "8", **THERE}, ["rank 0 of 8", "rank 5 of 8"]),  # eight times rank 0
        ({**SRUN, "WORLD_SIZE": "4"}, ["WORLD_SIZE is 4", "rank 5 of 8", "Unset WORLD_SIZE"]),
        ({**SRUN, "RANK": "4"}, ["RANK is 4", "rank 5 of 8"]),
        ({**MPICH, "RANK": "0", "WORLD_SIZE": "2", **THERE}, ["rank 0 of 2", "PMI_RANK"]),
        ({**SRUN, "PMI_RANK": "0", "PMI_SIZE": "1"}, ["PMI_RANK", "SLURM_PROCID"]),
    ],
)
def test_launchers_that_contradict_each_other_are_both_named(environment, named):
    with pytest.raises(RankError) as caught:
        read_rank_environment(environment)
    assert [part for part in named if part not in str(caught.value)] == []
    assert "contradict" in str(caught.value)


def test_ranks_that_do_not_talk_to_each_other_need_no_address():
    found = read_rank_environment(without(PLAIN, "MASTER_ADDR", "MASTER_PORT"), communicates=False)
    assert (found.rank, found.world_size, found.local_rank) == (3, 8, 1)
    assert read_rank_environment(without(SRUN, "SLURM_JOB_ID"), communicates=False).rank == 5


def test_what_is_known_becomes_the_variables_that_torch_reads():
    assert read_rank_environment(SRUN).variables() == {
        "RANK": "5",
        "WORLD_SIZE": "8",
        "LOCAL_RANK": "1",
        "MASTER_ADDR": "gpu07",
        "MASTER_PORT": str(SRUN_PORT),
    }
    assert read_rank_environment({}).variables() == {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}


@pytest.mark.parametrize("environment", [TORCHRUN, SRUN, {}, {"RANK": "0", "WORLD_SIZE": "1"}])
def test_the_variables_that_were_set_are_read_again_to_the_same(environment):
    found = read_rank_environment(environment)
    again = read_rank_environment({**environment, **found.variables()})
    assert again[:5] == found[:5]


def test_a_rank_takes_the_device_of_its_place_or_the_only_one_that_it_is_shown():
    assert [device_of(local_rank, 4) for local_rank in range(4)] == [0, 1, 2, 3]
    assert device_of(3, 1) == 0
    with pytest.raises(RankError, match=r"local rank 2 has no device of its own: this process sees 2"):
        device_of(2, 2)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node1", "node1"),
        ("node1,node2", "node1"),
        ("gpu[07-09,12],login", "gpu07"),
        ("gpu[12,07]-ib", "gpu12-ib"),
        ("rack[0-1]n[01-02]", "rack0n01"),
    ],
)
def test_the_first_host_of_slurms_list(nodes, first):
    assert first_host(nodes) == first


@pytest.mark.parametrize(
    ("environment", "ranks"),
    [
        ({}, 1),
        ({"LOCAL_SIZE": "4"}, 4),
        ({"LOCAL_WORLD_SIZE": "3"}, 3),
        ({"OMPI_COMM_WORLD_SIZE": "8", "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}, 2),
        ({"PMI_SIZE": "8", "MPI_LOCALNRANKS": "3"}, 3),
        ({"LOCAL_SIZE": "", "MPI_LOCALNRANKS": "3"}, 3),
    ],
)
def test_every_launcher_says_in_its_own_way_how_many_ranks_share_the_cores_of_a_host(environment, ranks):
    assert ranks_on_this_host(environment) == ranks
