"""Whole epochs of several corpora with weights, and of packed sentences."""

from __future__ import annotations

import numpy as np
import pytest

from tests.support.corpora import numbered_documents, random_documents, write_corpus
from tests.support.reading import all_tokens, epoch_of, source, text_rows, tokens_of
from tinybert_ds.data.manifest import Sampling

pytestmark = pytest.mark.usefixtures("small_blocks_and_windows")


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Return two corpora."""
    folder = tmp_path_factory.mktemp("corpora")
    first = write_corpus(folder / "first", random_documents(200), documents_per_shard=70)
    return [first, write_corpus(folder / "second", random_documents(100, seed=5))]


@pytest.mark.parametrize("sizes", [(200, 30), (30, 200)])
def test_weights_are_shares_of_the_samples_and_the_first_corpus_that_ends_ends_the_epoch(tmp_path, sizes):
    for name, token, count in (("a", 10, sizes[0]), ("b", 20, sizes[1])):
        write_corpus(tmp_path / name, [[[token] * 9] * 4 for _ in range(count)])
    reader = source([tmp_path / "a", tmp_path / "b"], weights=[3, 1], short_seq_prob=0.0, max_seq_length=21)
    rows = text_rows(epoch_of(reader))
    first = [row[1] for row in rows]
    assert len(first) == reader.samples_in_epoch(0)
    assert np.mean(np.array(first) == 10) == pytest.approx(0.75, abs=1 / len(first))
    assert all(len({token for token in row if token > 4}) == 1 for row in rows), "pairs are made inside a corpus"
    # A document is two chunks: the smaller corpus ends the epoch.
    left = [2 * sizes[0] - first.count(10), 2 * sizes[1] - first.count(20)]
    assert min(left) == 0
    assert max(left) > 0
    assert sorted(n for batch in epoch_of(reader) for n in batch.sample_ids.tolist()) == list(range(len(first)))


def test_a_mixture_is_the_same_at_any_world_size_and_from_any_position(both):
    through = epoch_of(source(both, weights=[0.4, 0.6], masked_lm_prob=0.15))
    place = len(through) - 2
    found = []
    for rank in range(3):
        reader = source(both, weights=[0.4, 0.6], masked_lm_prob=0.15)
        found += text_rows(reader.micro_batches(0, place, rank=rank, world_size=3, accumulation=1))
    assert sorted(found) == sorted(text_rows(through[place : place + 1]))


def test_weights_change_the_fingerprint(both):
    assert len({source(both, weights=weights).fingerprint for weights in (None, [1, 1], [1, 2])}) == 3


@pytest.mark.parametrize("eval_fraction", [0.0, 0.2])
def test_packed_samples_hold_every_token_once_in_the_order_of_the_text(tmp_path, eval_fraction):
    documents = [[[5 + number] * length for length in (3, 7, 2)] for number in range(300)]
    write_corpus(tmp_path, documents, documents_per_shard=90)
    rows = text_rows(epoch_of(source(tmp_path, full_sentences=True, eval_fraction=eval_fraction)))
    if eval_fraction:
        held_out = source(tmp_path, full_sentences=True, eval_fraction=eval_fraction, split="eval")
        rows += text_rows(epoch_of(held_out))
    assert tokens_of(rows) == all_tokens(documents)
    assert max(map(len, rows)) <= 48
    assert np.mean([len(row) for row in rows]) > 35
    for row in rows:
        assert (row[0], row[-1]) == (2, 3)
        # Documents follow each other, with one separator in between.
        parts = " ".join(map(str, row[1:-1])).split(" 3 ")
        numbers = [{int(token) for token in part.split()} for part in parts]
        assert all(len(number) == 1 for number in numbers)
        order = [number.pop() for number in numbers]
        assert order == sorted(set(order))


def test_packed_samples_have_one_token_type_and_need_one_document_only(tmp_path):
    write_corpus(tmp_path, numbered_documents(1, 20, 5))
    batches = epoch_of(source(tmp_path, full_sentences=True))
    assert all((batch.token_type_ids == 0).all() for batch in batches)


def test_one_segment_of_a_run_goes_before_packing_of_the_manifest(tmp_path):
    write_corpus(tmp_path, random_documents(200), sampling=Sampling(full_sentences=True))
    assert source(tmp_path).sampling.full_sentences
    assert not source(tmp_path, one_seq=True).sampling.full_sentences
