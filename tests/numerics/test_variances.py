"""The teacher's variances against their definition: whole scores, real tokens alone."""

from __future__ import annotations

import pytest
import torch

from tinybert_ds.losses.variances import score_moments, state_moments

LENGTHS = (7, 4, 1)


def draw(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))) + 0.5


@pytest.fixture
def mask():
    mask = torch.zeros(3, 7, dtype=torch.long)
    for row, length in enumerate(LENGTHS):
        mask[row, :length] = 1
    return mask


def test_the_variance_of_states_is_the_mean_over_dimensions_of_that_of_real_tokens(mask):
    states = draw(3, 7, 5)
    expected = states[mask.bool()].double().var(0, unbiased=False).mean()
    padded = states.masked_fill(~mask.bool()[:, :, None], 1e6)
    assert state_moments(padded, mask).variance == pytest.approx(float(expected), rel=1e-9)


def test_the_variance_of_scores_is_the_mean_over_heads_of_that_of_real_pairs(mask):
    query, key = draw(3, 2, 7, 4), draw(3, 2, 7, 4).flip(0)
    found = []
    for head in range(2):
        pairs = [
            (query[row, head, :length].double() @ key[row, head, :length].double().T * 0.3).flatten()
            for row, length in enumerate(LENGTHS)
        ]
        found.append(torch.cat(pairs).var(unbiased=False))
    padding = ~mask.bool()[:, None, :, None]
    padded = query.masked_fill(padding, 1e6), key.masked_fill(padding, -1e6)
    assert score_moments(*padded, mask, 0.3).variance == pytest.approx(float(sum(found) / 2), rel=1e-9)


def test_moments_of_parts_add_up_to_those_of_the_whole(mask):
    query, key = draw(3, 2, 7, 4), draw(3, 2, 7, 4)
    parts = [score_moments(query[rows], key[rows], mask[rows], 0.5) for rows in (slice(0, 1), slice(1, 3))]
    whole = score_moments(query, key, mask, 0.5)
    assert (parts[0] + parts[1]).variance == pytest.approx(whole.variance, rel=1e-12)
