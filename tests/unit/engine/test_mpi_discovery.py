import os

import pytest

from tinybert_ds.engine import distributed
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


def test_mpi4py_that_does_not_load_names_its_installation(monkeypatch):
    def fails(verbose):
        raise ImportError("libmpi.so")

    monkeypatch.setattr(distributed, "mpi_discovery", fails)
    with pytest.raises(ConfigError, match=r"tinybert-ds\[mpi\]"):
        distributed._discover_mpi()
