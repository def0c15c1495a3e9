import os

import numpy as np
import pytest

from tests.support.corpora import numbered_documents, write_corpus
from tinybert_ds.data.manifest import open_corpus
from tinybert_ds.data.placement import Placement
from tinybert_ds.errors import DataError


@pytest.fixture
def directory(tmp_path):
    return write_corpus(tmp_path, numbered_documents(4, 2, 3), documents_per_shard=2)


def test_spans_are_gathered_across_shards_in_the_order_asked_for(directory):
    placement = Placement([open_corpus(directory)])
    tokens = placement.gather(np.array([15, 0]), np.array([2, 3]))
    assert tokens.tolist() == [20, 21, 5, 6, 7]  # the documents' tokens are 5, 6, 7, ... from the first on


def test_spans_of_many_shards_come_in_any_order_and_length(tmp_path):
    corpus = open_corpus(write_corpus(tmp_path, numbered_documents(14, 2, 3), documents_per_shard=1))
    rng = np.random.default_rng(0)
    shards = rng.integers(0, 14, 200)
    lengths = rng.integers(0, 4, 200)
    starts = shards * 6 + rng.integers(0, 3, 200)
    tokens = Placement([corpus]).gather(starts, lengths)
    assert tokens.tolist() == [5 + token for s, n in zip(starts, lengths, strict=True) for token in range(s, s + n)]


@pytest.mark.parametrize("suffix", [".bin", ".idx"])
def test_a_shard_that_is_gone_or_cut_is_named_before_the_lost_part_is_touched(directory, suffix):
    placement = Placement([open_corpus(directory)])
    file = directory / f"shard-00001{suffix}"
    os.truncate(file, file.stat().st_size - 1)
    with pytest.raises(DataError, match=rf"shard-00001{suffix}' was changed while it was read: it is \d+ bytes long"):
        placement.gather(np.array([15]), np.array([2]))
    with pytest.raises(DataError, match="shard-00001"):
        placement.find_block(1)
    file.unlink()
    with pytest.raises(DataError, match=r"it is gone\. Restore it and start the same command again"):
        placement.gather(np.array([15]), np.array([2]))
    assert placement.gather(np.array([0]), np.array([1])).tolist() == [5], "the other shard is whole"


@pytest.mark.parametrize(("id_found", "told"), [(1000, "ids from 5 to 1000"), (-3, "ids from -3 to ")])
@pytest.mark.parametrize("per_shard", [5, 2])
def test_ids_that_the_vocabulary_has_not_are_refused_where_they_are_read(tmp_path, per_shard, id_found, told):
    write_corpus(tmp_path, numbered_documents(5, 1, 4), documents_per_shard=per_shard)
    tokens = np.fromfile(tmp_path / "shard-00000.bin", dtype="<i2")
    tokens[3] = id_found
    tokens.tofile(tmp_path / "shard-00000.bin")
    placement = Placement([open_corpus(tmp_path)])
    assert placement.gather(np.array([0]), np.array([3])).tolist() == [5, 6, 7]
    with pytest.raises(DataError, match=rf"shard-00000\.bin' is damaged: it holds {told}.* from 0 to 999"):
        placement.gather(np.array([0, 16]), np.array([4, 1]))
