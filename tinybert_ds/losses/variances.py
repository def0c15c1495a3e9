"""The variance of what a student imitates: what a loss term is large or small against.

B batch rows, S sequence length, A heads, D head size, H hidden size. Sums are float64, of real tokens alone.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Moments(NamedTuple):
    """Sums over what has been seen, which add up."""

    values: Tensor  # 0-dim: how many values each of the sums has
    sums: Tensor  # of the values: (H,) for each dimension, (A,) for each head
    squares: Tensor  # of their squares

    def __add__(self, other: object) -> Moments:
        assert isinstance(other, Moments)
        return Moments(*(one + two for one, two in zip(self[:], other[:], strict=True)))

    @property
    def variance(self) -> float:
        """The mean of the variances of all dimensions or heads."""
        means = self.sums / self.values
        return float((self.squares / self.values - means.square()).mean())


def state_moments(states: Tensor, attention_mask: Tensor) -> Moments:
    """Return the moments of hidden states (B, S, H), each dimension by itself; mask (B, S)."""
    real = states[attention_mask.bool()].double()
    return Moments(real.new_tensor(len(real)), real.sum(0), real.square().sum(0))


def score_moments(query: Tensor, key: Tensor, attention_mask: Tensor, scaling: float) -> Moments:
    """Return the moments of the scores query · keyᵀ · scaling of (B, A, S, D), each head by itself.

    From Σ_ij q_i·k_j = (Σ q_i)·(Σ k_j) and Σ_ij (q_i·k_j)² = Σ (QᵀQ)∘(KᵀK), so that no scores are kept.
    """
    nothing = ~attention_mask.bool()[:, None, :, None]
    q, k = (states.double().masked_fill(nothing, 0.0) for states in (query, key))
    sums = (q.sum(2) * k.sum(2)).sum((0, 2)) * scaling
    squares = ((q.transpose(2, 3) @ q) * (k.transpose(2, 3) @ k)).sum((0, 2, 3)) * scaling**2
    return Moments(attention_mask.sum(1).double().square().sum(), sums, squares)
