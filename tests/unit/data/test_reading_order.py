"""The order of an epoch: every sample once, anywhere with equal chance, without a trace of the text's own order."""

from __future__ import annotations

import numpy as np
import pytest

from tests.support.corpora import SPECIAL_IDS, write_corpus
from tinybert_ds.data import blocks, corpus
from tinybert_ds.data.corpus import CorpusSource

pytestmark = pytest.mark.slow

DOCUMENTS = 4000
EPOCHS = 12
BLOCK_TOKENS, WINDOW = 256, 512
IDS = SPECIAL_IDS._replace(vocab_size=5 + DOCUMENTS)


@pytest.fixture(autouse=True)
def small_blocks_and_windows(monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_TOKENS", BLOCK_TOKENS)
    monkeypatch.setattr(corpus, "WINDOW_SAMPLES", WINDOW)
    monkeypatch.setattr(corpus, "WINDOW_STEPS", 4)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """Each document is one sample of 20 tokens, all of which name the document."""
    texts = [[[5 + number] * 10] * 2 for number in range(DOCUMENTS)]
    return write_corpus(tmp_path_factory.mktemp("corpus"), texts, special_ids=IDS, documents_per_shard=1500)


def open_source(directory, **changes) -> CorpusSource:
    arguments = {"split": "train", "eval_fraction": 0.0, "global_batch_size": 16, "max_seq_length": 23, "seed": 1}
    return CorpusSource(directory, **{**arguments, "one_seq": True, "short_seq_prob": 0.0, **changes})


def rows(source: CorpusSource, epoch: int) -> np.ndarray:
    """(n, 2) documents of the first and the last token of each row, in the order of the epoch."""
    found = []
    for position in range(source.steps_in_epoch(epoch)):
        (batch,) = source.micro_batches(epoch, position, rank=0, world_size=1, accumulation=1)
        found.append(batch.input_ids[:, [1, 21]].numpy() - 5)
    return np.concatenate(found)


def order(source: CorpusSource, epoch: int) -> np.ndarray:
    return rows(source, epoch)[:, 0]


@pytest.fixture(scope="module")
def orders(directory) -> np.ndarray:
    """(EPOCHS, n) orders of as many epochs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "BLOCK_TOKENS", BLOCK_TOKENS)
        patch.setattr(corpus, "WINDOW_SAMPLES", WINDOW)
        patch.setattr(corpus, "WINDOW_STEPS", 4)
        source = open_source(directory, global_batch_size=64)
        return np.stack([order(source, epoch) for epoch in range(EPOCHS)])


def test_every_epoch_holds_every_sample_once(orders):
    assert (np.sort(orders, axis=1) == np.arange(DOCUMENTS)).all()


def test_a_sample_is_anywhere_in_an_epoch_with_equal_chance(orders):
    places = np.argsort(orders, axis=1)[:, :: BLOCK_TOKENS // 20 + 1]  # one of each block: neighbours go together
    counts = np.histogram(places, bins=10, range=(0, DOCUMENTS))[0]
    expected = places.size / 10
    assert ((counts - expected) ** 2 / expected).sum() < 33.7  # chi-square, 9 degrees of freedom, p = 1e-4
    # A sample of its own, too: its mean place over the epochs.
    means = places.mean(axis=0) / DOCUMENTS
    assert abs(means.std() / np.sqrt(1 / 12 / EPOCHS) - 1) < 5 / np.sqrt(2 * means.size)


def test_neighbours_of_the_text_come_in_either_order_and_are_no_neighbours_any_more(orders):
    places = np.argsort(orders, axis=1)
    first = (places[:, 0:-1:2] < places[:, 1::2]).mean()
    assert abs(first - 0.5) < 5 * 0.5 / np.sqrt(places.size / 2)
    # A neighbour is in the same window of 512 or so, and one of its places is beside it on either side.
    beside = (np.abs(np.diff(orders, axis=1)) == 1).mean()
    assert 0.5 * 2 / WINDOW < beside < 1.5 * 2 / WINDOW


def test_one_place_says_nothing_of_the_next(orders):
    centred = orders - orders.mean()
    for lag in (1, 2, 15, 16, 17):
        correlation = (centred[:, :-lag] * centred[:, lag:]).mean() / centred.var()
        # A window holds some 40 blocks of the 320: what they have in common is 1/40 of the variance.
        assert abs(correlation) < 1 / 40 + 5 / np.sqrt(orders.size)


def test_epochs_have_nothing_in_common(orders):
    for first, second in ((0, 1), (3, 4), (0, EPOCHS - 1)):
        places = [np.argsort(orders[epoch]) for epoch in (first, second)]
        assert abs(np.corrcoef(*places)[0, 1]) < 5 / np.sqrt(DOCUMENTS / 13)  # blocks move as one
        assert (orders[first] == orders[second]).sum() < 8


def test_a_window_is_read_in_a_few_long_runs(orders):
    per_block = BLOCK_TOKENS / 20
    for epoch in orders[:5]:
        for begin in range(0, DOCUMENTS - WINDOW, WINDOW):
            runs = (np.diff(np.sort(epoch[begin : begin + WINDOW])) > 1).sum() + 1
            assert runs <= WINDOW / per_block + 2


def test_random_second_segments_come_from_inside_the_window(directory):
    found = rows(open_source(directory, one_seq=False), epoch=0)
    mixed = found[:, 0] != found[:, 1]
    assert mixed.mean() == pytest.approx(0.5, abs=0.04)
    for begin in range(0, DOCUMENTS, WINDOW):
        window = found[begin : begin + WINDOW]
        assert set(window[:, 1]) == set(window[:, 0])


def test_the_order_is_the_same_for_any_number_of_ranks(directory):
    expected = order(open_source(directory), epoch=2)
    source = open_source(directory)
    for position in (0, 31, 32, source.steps_in_epoch(2) - 1):
        step = expected[position * 16 : (position + 1) * 16]
        parts = [
            source.micro_batches(2, position, rank=rank, world_size=4, accumulation=1)[0].input_ids[:, 1].numpy() - 5
            for rank in range(4)
        ]
        assert np.concatenate(parts).tolist() == step.tolist()
