from __future__ import annotations

import itertools

import numpy as np
import pytest

from tinybert_ds.data.mixture import Mixture
from tinybert_ds.errors import ConfigError


def owners(mixture: Mixture, corpora: int, end: int) -> np.ndarray:
    """Which corpus each position of the epoch belongs to, found sample by sample."""
    found = np.full(end, -1)
    for corpus in range(corpora):
        first, last = mixture.corpus_range(corpus, 0, end)
        assert first == 0
        places = mixture.positions(corpus, 0, last)
        assert (found[places] == -1).all()
        found[places] = corpus
    return found


@pytest.mark.parametrize("weights", [[0.7, 0.3], [1, 1, 1], [5, 1, 2], [0.001, 0.999], [1.0]])
def test_every_position_belongs_to_one_corpus_and_the_shares_hold_everywhere(weights):
    period = 1000
    found = owners(Mixture(weights, period), len(weights), 2500)
    assert (found >= 0).all()
    shares = np.array(weights) / sum(weights)
    for begin in (0, 137, 1500):
        counts = np.bincount(found[begin : begin + period], minlength=len(weights))
        assert np.abs(counts - shares * period).max() <= 1
    # Evenly spaced: no stretch of a corpus with a share of at least a half is longer than the spacing allows.
    tenth = np.bincount(found[:100], minlength=len(weights))
    assert np.abs(tenth - shares * 100).max() <= len(weights)


def test_ranges_continue_each_other():
    mixture = Mixture([0.6, 0.4], 64)
    edges = [0, 1, 2, 63, 64, 65, 200, 1000]
    for corpus in (0, 1):
        ranges = [mixture.corpus_range(corpus, a, b) for a, b in itertools.pairwise(edges)]
        assert [first for first, _ in ranges[1:]] == [last for _, last in ranges[:-1]]
        for (a, b), (first, last) in zip(itertools.pairwise(edges), ranges, strict=True):
            places = mixture.positions(corpus, first, last)
            assert ((places >= a) & (places < b)).all()


@pytest.mark.parametrize("available", [[700, 10_000], [10_000, 300], [0, 5], [1, 1], [699, 301]])
def test_an_epoch_ends_with_the_first_corpus_that_ends(available):
    mixture = Mixture([0.7, 0.3], 1000)
    length = mixture.epoch_samples(available)
    taken = [mixture.corpus_range(corpus, 0, length)[1] for corpus in (0, 1)]
    assert all(mine <= there for mine, there in zip(taken, available, strict=True))
    longer = [mixture.corpus_range(corpus, 0, length + 1)[1] for corpus in (0, 1)]
    assert any(mine > there for mine, there in zip(longer, available, strict=True))


@pytest.mark.parametrize("weights", [[1, 0], [1, -1], [1, float("nan")], [1, float("inf")], [1, 1e-4]])
def test_weights_that_are_nothing_are_refused(weights):
    with pytest.raises(ConfigError, match="each must be positive"):
        Mixture(weights, 1000)
