from contextlib import contextmanager

import deepspeed.comm.comm
import pytest
import torch

from tinybert_ds.engine.watch.communication import payload_bytes, watched_collectives


class Notes:
    """An observer that writes down what it is told."""

    def __init__(self):
        self.told = []

    @contextmanager
    def measure(self, name):
        self.told.append(f"{name} begins")
        yield
        self.told.append(f"{name} ends")

    def carry(self, operation, num_bytes):
        self.told.append((operation, num_bytes))


class Handle:
    def wait(self):
        return "done"

    def is_completed(self):
        return False


class Backend:
    name = "fake"

    def all_reduce(self, tensor, op=None, group=None, async_op=False):
        return Handle() if async_op else tensor

    def get_rank(self):
        return 3


@pytest.fixture
def backend(monkeypatch):
    monkeypatch.setattr(deepspeed.comm.comm, "cdb", Backend())
    return deepspeed.comm.comm.cdb


def test_a_collective_and_the_wait_for_it_are_told_and_its_result_is_passed_on(backend):
    notes, tensor = Notes(), torch.zeros(3, dtype=torch.bfloat16)
    with watched_collectives(notes, world_size=2):
        assert deepspeed.comm.all_reduce(tensor) is tensor
        handle = deepspeed.comm.all_reduce(tensor, async_op=True)
        assert not handle.is_completed()
        assert notes.told[3:] == [("all_reduce", 6), "communication begins", "communication ends"]
        assert handle.wait() == "done"
    assert notes.told[6:] == ["communication begins", "communication ends"]


def test_what_is_no_collective_is_not_told_and_the_backend_is_put_back_even_after_an_error(backend):
    notes = Notes()

    def fail() -> None:
        with watched_collectives(notes, world_size=2):
            assert deepspeed.comm.comm.cdb.get_rank() == 3
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert notes.told == []
    assert deepspeed.comm.comm.cdb is backend


def test_a_single_rank_communicates_nothing(backend):
    notes = Notes()
    with watched_collectives(notes, world_size=1):
        deepspeed.comm.all_reduce(torch.zeros(3))
    assert notes.told == []


def test_the_payload_is_the_whole_tensor_whichever_side_holds_it():
    whole, parts = torch.zeros(8), [torch.zeros(2) for _ in range(4)]
    assert payload_bytes(whole, parts[0], "sum", None) == 32
    assert payload_bytes(parts[0], parts) == 32
    assert payload_bytes(None, 5) == 0
