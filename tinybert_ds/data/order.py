"""Stateless randomness: every draw is a hash of a key and a counter, so order is a pure function of what names it.

Nothing here has a state to save. A key is made of integers (seed, epoch, what the draw is for); a counter numbers the
draw under that key. The mixing function is the finaliser of SplitMix64 (Steele, Lea and Flood, "Fast Splittable
Pseudorandom Number Generators", OOPSLA 2014), vectorised over numpy arrays.
"""

from __future__ import annotations

import numpy as np
import xxhash
from numpy.typing import ArrayLike, NDArray

UInts = NDArray[np.uint64]
Ints = NDArray[np.int64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)
_THIRTY, _TWENTY_SEVEN, _THIRTY_ONE = (np.uint64(shift) for shift in (30, 27, 31))


def make_key(*parts: int | str) -> int:
    """A 64-bit key of any integers and names; different parts give unrelated keys."""
    plain = tuple(part if isinstance(part, str) else int(part) for part in parts)
    return xxhash.xxh3_64_intdigest(repr(plain).encode())


def random_bits(key: int | UInts, counters: ArrayLike) -> UInts:
    """64 random bits for each counter; `key` is one key, or an array of them that broadcasts against the counters."""
    state = np.asarray(counters).astype(np.uint64) * _GOLDEN + _GOLDEN
    keys = np.atleast_1d(np.asarray(key, dtype=np.uint64))  # numpy warns of overflow in scalars, not in arrays
    # Two rounds: in one, counters of neighbouring keys would run through the same sequence, shifted.
    return _mix(_mix(state) ^ _mix(keys))


def uniforms(key: int | UInts, counters: ArrayLike) -> NDArray[np.float64]:
    """A float64 in [0, 1) for each counter."""
    return (random_bits(key, counters) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def integers(key: int | UInts, counters: ArrayLike, upper: ArrayLike) -> Ints:
    """An int64 in [0, upper) for each counter; `upper` broadcasts, must be at least 1 and far below 2**53."""
    return np.floor(uniforms(key, counters) * np.asarray(upper)).astype(np.int64)


def binomial_half(key: int, counters: ArrayLike, trials: NDArray[np.int64]) -> Ints:
    """How many of `trials` (n,) fair coins show heads, for each counter (n,)."""
    counters = np.asarray(counters).astype(np.uint64)
    heads = np.zeros(len(trials), dtype=np.int64)
    for word, done in enumerate(range(0, int(trials.max(initial=0)), 64)):
        left = np.clip(trials - done, 0, 64).astype(np.uint64)
        # `bits >> 64` is undefined, so a row with no coin left is masked out instead.
        coins = random_bits(make_key(key, word), counters) >> (np.uint64(64) - np.maximum(left, np.uint64(1)))
        heads += np.where(left > 0, np.bitwise_count(coins), 0).astype(np.int64)
    return heads


def permutation(key: int, n: int) -> Ints:
    """A random order of 0..n-1."""
    return np.argsort(random_bits(key, np.arange(n)), kind="stable").astype(np.int64)


def span_indices(starts: Ints, lengths: Ints) -> Ints:
    """Indices start, start + 1, ... of every span (n,), one span after the other."""
    ends = np.cumsum(lengths)
    return np.repeat(starts - (ends - lengths), lengths) + np.arange(lengths.sum())


def _mix(x: UInts) -> UInts:
    x = x ^ (x >> _THIRTY)
    x *= _FIRST
    x ^= x >> _TWENTY_SEVEN
    x *= _SECOND
    x ^= x >> _THIRTY_ONE
    return x
