"""Regressions from sums over tokens, so that any number of tokens takes the memory of its products.

T tokens, P features, Q targets. All sums are float64.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

NORM_TOKENS = 1 << 15
"""Enough for the gain and the bias of a LayerNorm, two numbers for each dimension."""

_LEAST_SPREAD = 1e-6
"""Of features, in relation to their squares: what all tokens have alike is known no better than to its rounding."""

Sums = dict[str, Tensor]
"""Named sums over the tokens of a block; those of several blocks are added name by name."""


class LinearMap(NamedTuple):
    """y = x · weight + bias, in float64."""

    weight: Tensor  # (P, Q)
    bias: Tensor  # (Q,)


class Regression(NamedTuple):
    """The sums that a linear map is fitted from."""

    xx: Tensor  # (P + 1, P + 1) products of the features and a constant 1 with themselves
    xy: Tensor  # (P + 1, Q) with the targets
    yy: Tensor  # (Q,) squares of the targets


def with_one(features: Tensor) -> Tensor:
    """Return (T, P) features as float64 with a constant 1 behind them, (T, P + 1)."""
    wide = features.double()
    return torch.cat([wide, wide.new_ones(len(wide), 1)], dim=1)


def regression_sums(features: Tensor, targets: Tensor, weights: Tensor | None = None) -> Sums:
    """Return the sums of a `Regression` over one block, by their names.

    Args:
        features: (T, P).
        targets: (T, Q).
        weights: (T,) how much each token counts; None: all alike.
    """
    x, y = with_one(features), targets.double()
    left = x if weights is None else x * weights.double()[:, None]
    squares = y.square() if weights is None else y.square() * weights.double()[:, None]
    return {"xx": left.T @ x, "xy": left.T @ y, "yy": squares.sum(0)}


def solve(sums: Regression, *, ridge: float, prior: LinearMap | None = None) -> LinearMap:
    """Return the map of least squared error plus ridge · s · ||W - W0||², s the features' mean variance times T.

    Args:
        sums: From `regression_sums`.
        ridge: 0 is plain least squares; the larger, the nearer W is to W0.
        prior: W0 and its bias, which is then held in the same way; None: W0 is 0 and the bias free.
    """
    count = sums.xx[-1, -1]
    mean = sums.xx[-1, :-1] / count
    squares = sums.xx.diagonal()[:-1]
    spread = (squares - count * mean.square()).clamp_min(0).mean()
    spread = spread.maximum(_LEAST_SPREAD * squares.mean()).clamp_min(1e-30 * count)
    penalty = torch.full_like(sums.xx[0], float(ridge * spread))
    penalty[-1] = 0.0 if prior is None else ridge * count
    right = sums.xy
    if prior is not None:
        right = right + penalty[:, None] * torch.cat([prior.weight, prior.bias[None]])
    solution = torch.linalg.solve(sums.xx + torch.diag(penalty), right)
    return LinearMap(solution[:-1], solution[-1])


def explained(sums: Regression, fitted: LinearMap) -> float:
    """Return the share of the targets' variance that a map explains, all targets together."""
    count = sums.xx[-1, -1]
    solution = torch.cat([fitted.weight, fitted.bias[None]])
    squared = sums.yy.sum() - 2 * (solution * sums.xy).sum() + (solution * (sums.xx @ solution)).sum()
    total = sums.yy.sum() - (sums.xy[-1].square() / count).sum()
    return float(1 - squared / total) if total > 0 else 1.0


def norm_sums(normalised: Tensor, targets: Tensor) -> Sums:
    """Return what the gain and bias of a LayerNorm are fitted from: sums over one block.

    Args:
        normalised: (T, H) before any gain and bias.
        targets: (T, H).
    """
    x, y = normalised.double(), targets.double()
    sums = {"n": x.sum(0), "nn": x.square().sum(0), "ny": (x * y).sum(0), "y": y.sum(0), "yy": y.square().sum(0)}
    return {**sums, "count": x.new_tensor(len(x))}


class NormPrior(NamedTuple):
    """What the gain and bias of a LayerNorm are held to."""

    gain: Tensor  # (H,)
    bias: Tensor  # (H,)
    weight: float  # of one part of its squared distance for each token, whose normalised values have variance 1


def fit_norm(norm: nn.LayerNorm, sums: Sums, prior: NormPrior | None = None) -> float:
    """Write the gain and bias of least squared error into a LayerNorm; return the share of variance they explain."""
    count = sums["count"]
    mean, target_mean = sums["n"] / count, sums["y"] / count
    variance = sums["nn"] / count - mean.square()
    covariance = sums["ny"] / count - mean * target_mean
    target_variance = sums["yy"] / count - target_mean.square()
    if prior is None:
        gain = torch.where(variance > 1e-12, covariance / variance.clamp_min(1e-12), torch.ones_like(variance))
        bias = target_mean - gain * mean
    else:
        held = prior.weight
        square, one = variance + mean.square() + held, 1 + held
        right = covariance + mean * target_mean + held * prior.gain, target_mean + held * prior.bias
        gain = (right[0] * one - mean * right[1]) / (square * one - mean.square())
        bias = (right[1] - gain * mean) / one
    with torch.no_grad():
        norm.weight.copy_(gain)
        norm.bias.copy_(bias)
    off = gain * mean + bias - target_mean
    left = target_variance - 2 * gain * covariance + gain.square() * variance + off.square()
    return float(1 - left.sum() / target_variance.sum().clamp_min(1e-30))


def write_linear(linear: nn.Linear, fitted: LinearMap) -> None:
    """Write a map into a linear layer."""
    with torch.no_grad():
        linear.weight.copy_(fitted.weight.T)
        linear.bias.copy_(fitted.bias)


def read_linear(linear: nn.Linear) -> LinearMap:
    """Return the map that a linear layer is, in float64."""
    return LinearMap(linear.weight.detach().double().T, linear.bias.detach().double())
