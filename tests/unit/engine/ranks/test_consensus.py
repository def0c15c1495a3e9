import pytest
import torch

from tinybert_ds.engine.ranks import consensus
from tinybert_ds.engine.ranks.consensus import Consensus, read_together
from tinybert_ds.engine.ranks.process_group import World
from tinybert_ds.errors import DataError

ALONE = World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))


def test_a_rank_that_wishes_to_stop_draws_nothing_and_else_the_next_item():
    settled = Consensus(ALONE)
    items = iter("ab")
    assert settled.draw(items, stop=False) == "a"
    assert settled.draw(items, stop=True) is None


def test_a_wish_to_stop_is_heard_also_when_nothing_is_left_to_draw():
    assert Consensus(ALONE).any_wishes(stop=True)
    assert not Consensus(ALONE).any_wishes(stop=False)


@pytest.mark.usefixtures("one_rank_group")
def test_a_file_that_cannot_be_read_is_the_users_to_mend():
    def items():
        raise OSError(5, "Input/output error", "shard-00000.bin")
        yield

    with pytest.raises(DataError, match=r"rank 0 cannot read its data: .*Input/output error.*shard-00000"):
        Consensus(ALONE).draw(items(), stop=False)


def test_a_rank_that_could_read_its_rows_hears_of_one_that_could_not(monkeypatch):
    def gathered(own):
        assert own is None
        return [own, DataError("the shard file 'b.bin' was changed while it was read")]

    monkeypatch.setattr(consensus, "gather_objects", gathered)
    with pytest.raises(DataError, match=r"b\.bin"):
        read_together(lambda: "rows", ALONE)
