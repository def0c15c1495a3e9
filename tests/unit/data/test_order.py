from __future__ import annotations

import numpy as np
import pytest

from tinybert_ds.data.order import binomial_half, integers, make_key, permutation, random_bits, uniforms


def splitmix64(x: int) -> int:
    """The finaliser in plain integers."""
    mask = 2**64 - 1
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
    return x ^ (x >> 31)


def test_bits_are_those_of_a_plain_integer_implementation():
    golden, mask = 0x9E3779B97F4A7C15, 2**64 - 1
    counters = [0, 1, 2, 12345, 2**40]
    expected = [splitmix64(splitmix64((c * golden + golden) & mask) ^ splitmix64(77)) for c in counters]
    assert random_bits(77, np.array(counters)).tolist() == expected


def test_the_order_of_this_version_is_kept():
    # Resumed runs and cached counts rely on these values: a change of them is a change of format.
    assert permutation(make_key("train", 42, 0), 8).tolist() == [3, 1, 6, 4, 5, 0, 7, 2]
    assert make_key("train", 42, 0) == 11502398451971209624


def test_keys_of_different_parts_differ():
    parts = [(1, 2), (2, 1), (12,), ("1", 2), (1, "2"), ("1\0int:2",), (1,), ()]
    assert len({make_key(*part) for part in parts}) == len(parts)


def test_a_key_array_draws_what_its_single_keys_draw():
    keys = np.array([3, 4], dtype=np.uint64)
    together = uniforms(keys[:, None], np.arange(5))
    assert together.tolist() == [uniforms(3, np.arange(5)).tolist(), uniforms(4, np.arange(5)).tolist()]


def test_a_draw_depends_on_its_own_counter_only():
    assert uniforms(5, np.arange(100))[40] == uniforms(5, np.array([40]))[0]


def test_uniforms_are_uniform_and_uncorrelated():
    values = uniforms(make_key("u"), np.arange(200_000))
    assert values.min() >= 0
    assert values.max() < 1
    assert np.abs(np.histogram(values, bins=20, range=(0, 1))[0] - 10_000).max() < 500  # 5 sigma
    for lag in (1, 2, 7):
        assert abs(np.corrcoef(values[:-lag], values[lag:])[0, 1]) < 0.012  # 5 sigma
    neighbour = uniforms(make_key("u") + 1, np.arange(200_000))
    assert abs(np.corrcoef(values, neighbour)[0, 1]) < 0.012


def test_integers_reach_every_value_below_the_bound_and_none_above():
    drawn = integers(9, np.arange(3000), np.array([1, 3, 10]).repeat(1000))
    assert set(drawn[:1000]) == {0}
    assert set(drawn[1000:2000]) == {0, 1, 2}
    assert set(drawn[2000:]) == set(range(10))


@pytest.mark.parametrize("n", [0, 1, 2, 1000])
def test_a_permutation_holds_every_number_once(n):
    assert sorted(permutation(4, n).tolist()) == list(range(n))


def test_a_permutation_leaves_no_trace_of_the_old_order():
    n = 50_000
    places = permutation(make_key("p"), n)
    assert abs(np.corrcoef(np.arange(n), places)[0, 1]) < 0.023  # 5 sigma
    assert abs(np.corrcoef(places[:-1], places[1:])[0, 1]) < 0.023
    assert (np.diff(places) == 1).sum() < 12  # one expected


def test_coins_fall_evenly_and_never_outnumber_the_trials():
    trials = np.array([0, 1, 63, 64, 65, 200]).repeat(20_000)
    heads = binomial_half(8, np.arange(len(trials)), trials).reshape(6, -1)
    assert (heads[0] == 0).all()
    for row, count in zip(heads[1:], [1, 63, 64, 65, 200], strict=True):
        assert row.min() >= 0
        assert row.max() <= count
        assert abs(row.mean() - count / 2) < 5 * np.sqrt(count / 4 / 20_000)
        assert abs(row.var() / (count / 4) - 1) < 0.06
