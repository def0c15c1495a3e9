import pytest

from tinybert_ds.export.choice import choose_layers

COSTS = {"a": 0.001, "b": 0.03, "c": 0.005, "d": 0.02}


def lost(in_float, asked=None):
    if asked is not None:
        asked.append(in_float)
    return sum(cost for layer, cost in COSTS.items() if layer not in in_float)


def test_nothing_stays_in_float_and_nothing_more_is_measured_where_little_is_lost():
    asked = []
    found = choose_layers(list(COSTS), lambda in_float: lost(in_float, asked), allowed=0.06)
    assert found.in_float == ()
    assert asked == [frozenset()]


def test_the_layers_that_lose_most_stay_in_float_and_no_more_than_are_needed():
    found = choose_layers(list(COSTS), lost, allowed=0.01)
    assert found.in_float == ("b", "d")
    assert found.loss == pytest.approx(0.006)
    assert found.loss_of_all == pytest.approx(0.056)


def test_all_stay_in_float_where_even_the_least_loses_too_much():
    found = choose_layers(list(COSTS), lambda in_float: lost(in_float) + 1, allowed=0.01)
    assert found.in_float == ("b", "d", "c", "a")
    assert found.loss == 1
