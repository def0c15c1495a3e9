"""Regressions from sums: by hand, with a prior, and of LayerNorms."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tinybert_ds.models.inherit.sums import (
    LinearMap,
    Regression,
    explained,
    fit_norm,
    norm_sums,
    read_linear,
    regression_sums,
    solve,
    write_linear,
)


def regression(features, targets, weights=None):
    return Regression(**regression_sums(torch.tensor(features), torch.tensor(targets), weights))


LINE = regression([[0.0], [1.0], [2.0]], [[1.0], [3.0], [5.0]])  # y = 2x + 1


def test_a_line_is_found_exactly():
    fitted = solve(LINE, ridge=0)
    assert float(fitted.weight) == pytest.approx(2)
    assert float(fitted.bias) == pytest.approx(1)
    assert explained(LINE, fitted) == pytest.approx(1)


def test_a_ridge_pulls_the_weight_towards_0_and_leaves_the_mean_where_it_is():
    fitted = solve(LINE, ridge=1)  # Σ(x - 1)² = 2 = Σ(x - 1)(y - 3) / 2, and 2 more in the denominator
    assert float(fitted.weight) == pytest.approx(1)
    assert float(fitted.bias) == pytest.approx(3 - 1 * 1)
    assert explained(LINE, fitted) == pytest.approx(1 - 2 / 8)  # residuals -1, 0, 1 of deviations -2, 0, 2


def test_an_infinite_ridge_keeps_the_prior():
    prior = LinearMap(torch.tensor([[-7.0]], dtype=torch.float64), torch.tensor([4.0], dtype=torch.float64))
    fitted = solve(LINE, ridge=1e12, prior=prior)
    assert float(fitted.weight) == pytest.approx(-7)
    assert float(fitted.bias) == pytest.approx(4)


def test_no_ridge_forgets_the_prior():
    prior = LinearMap(torch.tensor([[-7.0]], dtype=torch.float64), torch.tensor([4.0], dtype=torch.float64))
    fitted = solve(LINE, ridge=0, prior=prior)
    assert (float(fitted.weight), float(fitted.bias)) == pytest.approx((2, 1))


def test_a_prior_without_error_is_kept_at_any_ridge():
    exact = LinearMap(torch.tensor([[2.0]], dtype=torch.float64), torch.tensor([1.0], dtype=torch.float64))
    for ridge in (0, 1e-5, 1.0, 1e6):
        fitted = solve(LINE, ridge=ridge, prior=exact)
        assert (float(fitted.weight), float(fitted.bias)) == pytest.approx((2, 1))


def test_a_token_of_weight_two_counts_as_two():
    weighted = regression([[0.0], [1.0], [3.0]], [[0.0], [2.0], [1.0]], torch.tensor([1.0, 2.0, 1.0]))
    twice = regression([[0.0], [1.0], [1.0], [3.0]], [[0.0], [2.0], [2.0], [1.0]])
    for own, expected in zip(solve(weighted, ridge=0.1), solve(twice, ridge=0.1), strict=True):
        torch.testing.assert_close(own, expected)


def test_features_that_say_nothing_leave_the_mean():
    constant = regression([[5.0], [5.0], [5.0]], [[1.0], [2.0], [6.0]])
    fitted = solve(constant, ridge=1e-5)
    assert float(5 * fitted.weight + fitted.bias) == pytest.approx(3)


@pytest.mark.parametrize("rows", [1, 3])
def test_many_features_that_say_nothing_leave_the_mean_too(rows):
    features = torch.randn(1, 40, generator=torch.Generator().manual_seed(0)).repeat(rows, 1)
    targets = torch.arange(rows, dtype=torch.float32)[:, None] + 2
    fitted = solve(Regression(**regression_sums(features, targets)), ridge=1e-5)
    assert float(features[0].double() @ fitted.weight + fitted.bias) == pytest.approx(float(targets.mean()))
    assert float(fitted.weight.abs().max()) < 1


def test_sums_of_two_blocks_are_those_of_both_together():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(20, 3, generator=generator), torch.randn(20, 2, generator=generator)
    halves = [regression_sums(x[part], y[part]) for part in (slice(0, 7), slice(7, 20))]
    for name, whole in regression_sums(x, y).items():
        torch.testing.assert_close(halves[0][name] + halves[1][name], whole)


def test_the_gain_and_bias_of_a_layernorm_are_found():
    generator = torch.Generator().manual_seed(0)
    norm = nn.LayerNorm(4, elementwise_affine=True)
    normalised = torch.nn.functional.layer_norm(torch.randn(50, 4, generator=generator), (4,))
    gain, bias = torch.tensor([2.0, -1.0, 0.5, 3.0]), torch.tensor([0.0, 1.0, -2.0, 5.0])
    share = fit_norm(norm, norm_sums(normalised, normalised * gain + bias))
    torch.testing.assert_close(norm.weight.detach(), gain)
    torch.testing.assert_close(norm.bias.detach(), bias)
    assert share == pytest.approx(1)


def test_a_linear_layer_is_read_as_it_was_written():
    linear = nn.Linear(2, 1)
    write_linear(linear, LinearMap(torch.tensor([[2.0], [3.0]]), torch.tensor([0.5])))
    assert float(linear(torch.tensor([10.0, 1.0])).detach()) == 23.5
    assert read_linear(linear).weight.tolist() == [[2.0], [3.0]]
