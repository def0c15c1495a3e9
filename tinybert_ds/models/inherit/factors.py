"""Which parts of a teacher's layer a smaller one keeps: the best low-rank factors of its heads, its strongest neurons.

A heads, D the teacher's head size, R the student's, H hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

_SMALLEST = 1e-10
"""Of a second moment's eigenvalues, in relation to the largest; below it is rounding."""


class Factors(NamedTuple):
    """Two maps (D, R), from the teacher's head to the student's."""

    left: Tensor
    right: Tensor


def leading_basis(moments: Tensor, width: int) -> Tensor:
    """Return the eigenvectors of the largest eigenvalues of second moments (H, H), (H, width).

    Their signs, which are arbitrary, are fixed so that each sums to no less than 0: every machine starts from the same.
    """
    _, vectors = torch.linalg.eigh(moments)  # ascending
    basis = vectors.flip(1)[:, :width]
    return basis * torch.where(basis.sum(dim=0) < 0, -1.0, 1.0)


def away_from_the_mean(basis: Tensor) -> Tensor:
    """Turn a basis (H, h), without leaving its span, so that its last direction becomes the mean of the coordinates.

    A LayerNorm takes the mean of the coordinates out of every state: it shall be the direction that matters least.
    """
    width = basis.shape[1]
    mirror = torch.full((width,), -(width**-0.5), dtype=basis.dtype, device=basis.device)
    mirror[-1] += 1  # Householder's reflection of the last axis onto (1, ..., 1) / √h
    length = mirror.square().sum()
    return basis if length == 0 else basis - torch.outer(basis @ mirror, mirror) * (2 / length)


def score_factors(query_moments: Tensor, key_moments: Tensor, size: int) -> Factors:
    """Return P, K (D, R) so that (q · P) · (k · K) / √R is the best guess of rank R at q · k / √D.

    The error is weighed as the queries and keys are distributed: their second moments are (D, D). A student's head as
    large as the teacher's, or larger, keeps the queries and keys as they are.
    """
    own = len(query_moments)
    scale = (size / own) ** 0.25  # of each side, for the two square roots
    if size >= own:
        both = scale * torch.eye(own, size, dtype=torch.float64, device=query_moments.device)
        return Factors(both, both)
    left, right = square_root(query_moments), square_root(key_moments)
    u, singular, vt = torch.linalg.svd(left.root @ right.root)
    each = scale * singular[:size].sqrt()
    return Factors(left.inverse @ u[:, :size] * each, right.inverse @ vt[:size].T * each)


def value_factors(moments: Tensor, outgoing: Tensor, size: int, skipped: int = 0) -> Tensor:
    """Return the map (D, R) of a head's values to the R directions that carry most of what the head puts out.

    Args:
        moments: (D, D) second moments of the values, or of their means that attention makes.
        outgoing: (D, H) the head's part of the output matrix, in the student's coordinates.
        size: R. With R ≥ D the values stay as they are.
        skipped: Leading directions to leave out, which another head of the student has.
    """
    own = len(moments)
    if size >= own and not skipped:
        return torch.eye(own, size, dtype=torch.float64, device=moments.device)
    halves = square_root(moments)
    u, singular, _ = torch.linalg.svd(halves.root @ outgoing, full_matrices=False)
    kept = slice(skipped, skipped + size)
    factors = halves.inverse @ u[:, kept] * singular[kept].clamp_min(_SMALLEST * singular[0]).sqrt()
    return torch.nn.functional.pad(factors, (0, size - factors.shape[1]))


def turn_towards(factors: Sequence[Tensor], products: Sequence[Tensor]) -> list[Tensor]:
    """Turn factors (D, R) together so that what they make is nearest to what a student has (Procrustes).

    Args:
        factors: A head's, between whose sides a rotation of the R directions makes no difference.
        products: (D, R) of the teacher's head with the student's, for each.
    """
    u, _, vt = torch.linalg.svd(torch.stack([f.T @ p for f, p in zip(factors, products, strict=True)]).sum(0))
    return [factor @ (u @ vt) for factor in factors]


def choose_heads(contributions: Tensor, count: int) -> list[tuple[int, int]]:
    """Return the teacher's head of each of the student's, and how often an earlier one of them has taken it already.

    Args:
        contributions: (A,) of the teacher's heads.
        count: The student's heads. As many or fewer take those of the largest contribution, in the teacher's order;
            more of them take every head, and the largest ones again.
    """
    order = contributions.argsort(descending=True, stable=True).tolist()
    rounds, rest = divmod(count, len(order))
    chosen = [(head, turn) for turn in range(rounds) for head in sorted(order)]
    return chosen + [(head, rounds) for head in sorted(order[:rest])]


def choose_neurons(importance: Tensor, count: int) -> Tensor:
    """Return the numbers of the `count` most important neurons (I,) in ascending order; all where they are fewer."""
    return importance.topk(min(count, len(importance))).indices.sort().values


class _Halves(NamedTuple):
    root: Tensor
    inverse: Tensor  # pseudo-inverse of the root


def square_root(moments: Tensor) -> _Halves:
    """Return the symmetric square root of a positive semidefinite matrix and its pseudo-inverse."""
    values, vectors = torch.linalg.eigh(moments)
    kept = values > _SMALLEST * values[-1].clamp_min(1e-300)
    roots = values.clamp_min(0).sqrt()
    inverses = torch.where(kept, 1 / roots.clamp_min(1e-150), torch.zeros_like(roots))
    return _Halves(vectors * roots @ vectors.T, vectors * inverses @ vectors.T)
