import os
import random
from types import SimpleNamespace

import pytest
import torch

from tinybert_ds.engine.ranks import process_group as distributed
from tinybert_ds.errors import ConfigError, RankError
from tinybert_ds.rank_environment import RankEnvironment

PLACE = RankEnvironment(1, 2, 1, None, None, "MPICH")


@pytest.fixture
def discovery(monkeypatch):
    """Let MPI answer as it would on the second of two ranks."""
    found = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "10.0.0.9", "MASTER_PORT": "29500"}
    for name in found:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(distributed, "mpi_discovery", lambda verbose: os.environ.update(found))
    yield found
    for name in found:
        os.environ.pop(name, None)


def test_mpi_says_all_that_nobody_else_has_said(discovery):
    distributed._discover_mpi(PLACE)
    assert {name: os.environ[name] for name in discovery} == discovery


def test_the_launchers_address_and_port_win_over_mpis(discovery, monkeypatch):
    monkeypatch.setenv("MASTER_PORT", "41000")
    monkeypatch.setenv("MASTER_ADDR", "10.0.0.1")
    distributed._discover_mpi(PLACE)
    assert (os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]) == ("10.0.0.1", "41000")
    assert os.environ["RANK"] == "1"


def test_mpi4py_of_another_mpi_does_not_let_every_rank_train_alone(discovery):
    discovery.update(RANK="0", WORLD_SIZE="1")
    with pytest.raises(RankError, match=r"MPICH has started rank 1 of 2, but mpi4py finds rank 0 of 1"):
        distributed._discover_mpi(PLACE)


def test_mpi4py_that_does_not_load_names_its_installation(monkeypatch):
    def fails(verbose):
        raise ImportError("libmpi.so")

    monkeypatch.setattr(distributed, "mpi_discovery", fails)
    with pytest.raises(ConfigError, match=r"tinybert-ds\[mpi\].*or export MASTER_ADDR"):
        distributed._discover_mpi(PLACE)


@pytest.mark.parametrize(("said", "raised"), [("Duplicate GPU detected : rank 1", RankError), ("unhandled", None)])
def test_ranks_that_share_a_gpu_are_told_so(said, raised, monkeypatch):
    def refuse(tensor):
        raise distributed.dist.DistBackendError(f"NCCL error, invalid usage\n{said}")

    accelerator = SimpleNamespace(
        device_name=lambda: "cuda",
        device_count=lambda: 1,
        set_device=lambda rank: None,
        current_device_name=lambda: "cpu",
    )
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(distributed, "get_accelerator", lambda: accelerator)
    monkeypatch.setattr(distributed.deepspeed, "init_distributed", lambda **options: None)
    monkeypatch.setattr(distributed.dist, "all_reduce", refuse)
    with pytest.raises(raised or distributed.dist.DistBackendError, match="--num_gpus N" if raised else said):
        distributed._join()


@pytest.mark.parametrize(("backend", "told"), [("nccl", [3]), ("gloo", None)])
def test_nccl_is_told_the_device_of_a_barrier(backend, told, monkeypatch):
    asked = []

    def wait(*, device_ids):
        asked.append(device_ids)

    monkeypatch.setattr(distributed.dist, "get_backend", lambda: backend)
    monkeypatch.setattr(distributed.torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(distributed.dist, "barrier", wait)
    distributed.barrier()
    assert asked == [told]


def test_a_forward_draws_what_its_place_says_and_no_other_place_does():
    draws = []
    for place in ((1, 2, 0, 0), (1, 2, 0, 0), (1, 3, 0, 0), (1, 2, 1, 0), (1, 2, 0, 1)):
        distributed.seed_forward(*place)
        draws.append((torch.initial_seed(), torch.rand(()).item(), random.random()))
    assert draws[0] == draws[1]
    assert len(set(draws)) == 4
    torch.manual_seed(draws[0][0])
    assert torch.rand(()).item() == draws[0][1]


def test_the_generator_of_a_device_gets_the_seed_of_the_hosts(monkeypatch):
    seeds = []
    device = SimpleNamespace(device_name=lambda: "cuda", manual_seed=seeds.append)
    monkeypatch.setattr(distributed, "get_accelerator", lambda: device)
    distributed.seed_forward(1, 2, 0, 0)
    assert seeds == [torch.initial_seed()]
