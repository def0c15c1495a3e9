import os

import pytest

from tinybert_ds.engine.ranks import process_group as distributed
from tinybert_ds.errors import ConfigError


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
    distributed._discover_mpi()
    assert {name: os.environ[name] for name in discovery} == discovery


def test_the_launchers_address_and_port_win_over_mpis(discovery, monkeypatch):
    monkeypatch.setenv("MASTER_PORT", "41000")
    monkeypatch.setenv("MASTER_ADDR", "10.0.0.1")
    distributed._discover_mpi()
    assert (os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]) == ("10.0.0.1", "41000")
    assert os.environ["RANK"] == "1"


@pytest.mark.parametrize(
    ("environment", "ranks"),
    [
        ({}, 1),
        ({"LOCAL_SIZE": "4"}, 4),
        ({"OMPI_COMM_WORLD_SIZE": "8", "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}, 2),
        ({"PMI_SIZE": "8", "MPI_LOCALNRANKS": "3"}, 3),
        ({"LOCAL_SIZE": "", "MPI_LOCALNRANKS": "3"}, 3),
    ],
)
def test_every_launcher_says_in_its_own_way_how_many_ranks_share_the_cores_of_a_host(environment, ranks):
    assert distributed.ranks_on_this_host(environment) == ranks


def test_mpi4py_that_does_not_load_names_its_installation(monkeypatch):
    def fails(verbose):
        raise ImportError("libmpi.so")

    monkeypatch.setattr(distributed, "mpi_discovery", fails)
    with pytest.raises(ConfigError, match=r"tinybert-ds\[mpi\]"):
        distributed._discover_mpi()
