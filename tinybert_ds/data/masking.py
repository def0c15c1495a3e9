"""Dynamic masking, keyed by (seed, epoch, sample id): 80 % [MASK], 10 % a random token, 10 % left as it is.

n rows, S longest row, G most words in a row.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tinybert_ds.data.order import Ints, random_bits

_NO_CANDIDATE = np.uint64(1 << 63)
_SCORE_BITS = np.uint64((1 << 63) - (1 << 20))  # between that bit and those of a position
_PLACE_BITS = np.uint64((1 << 20) - 1)
_REPLACEMENT_COUNTER = 1 << 32  # draws of replacements are numbered from here, those of scores from 0
_KIND_SHIFT = np.uint64(40)
_DRAWN_BITS = np.uint64((1 << 40) - 1)  # times a vocabulary, they fit in 64 bits


@dataclass(frozen=True)
class Masking:
    """What is masked and with what."""

    probability: float
    max_predictions: int
    mask_id: int
    special: NDArray[np.bool_]  # (vocabulary,) never masked
    replacements: Ints  # (r,) ids that a random token is drawn from
    continuation: NDArray[np.bool_] | None  # (vocabulary,) pieces inside a word; None: tokens are masked one by one


def mask_tokens(key: int, sample_ids: Ints, tokens: Ints, lengths: Ints, masking: Masking) -> Ints:
    """Tokens of some rows with a random part replaced.

    `round(length * probability)` tokens of a row are chosen, at most `max_predictions`, special tokens counted in the
    length but never chosen. For whole words, words are taken in random order, leaving out those that no longer fit.

    Args:
        key: names the draws, together with the sample ids.
        sample_ids: (n,)
        tokens: (Σ lengths,) of all rows, special tokens included.
        lengths: (n,)
        masking: probability 0 returns the tokens untouched.
    """
    if masking.probability <= 0 or len(lengths) == 0:
        return tokens
    valid = np.arange(lengths.max()) < lengths[:, None]
    ids = np.zeros(valid.shape, dtype=np.int64)
    ids[valid] = tokens
    maskable = valid & ~masking.special[ids]
    budget = np.minimum(np.rint(lengths * masking.probability).astype(np.int64), masking.max_predictions)
    row_keys = random_bits(key, sample_ids)[:, None]
    if masking.continuation is None:
        chosen = _choose_tokens(row_keys, maskable, budget)
    else:
        chosen = _choose_words(row_keys, maskable, budget, masking.continuation[ids])
    masked = tokens.copy()
    rows, places = np.nonzero(chosen)
    bits = random_bits(row_keys[rows, 0], places + _REPLACEMENT_COUNTER)
    masked[chosen[valid]] = _replacements(bits, ids[rows, places], masking)
    return masked


def _scores(row_keys: NDArray[np.uint64], candidates: NDArray[np.bool_]) -> NDArray[np.uint64]:
    """A random number for each place of a row, its lowest bits the place itself; those of candidates are smaller."""
    places = np.arange(candidates.shape[1], dtype=np.uint64)
    scores = random_bits(row_keys, places)
    scores &= _SCORE_BITS
    scores |= places
    np.bitwise_or(scores, _NO_CANDIDATE, out=scores, where=~candidates)
    return scores


def _choose_tokens(row_keys: NDArray[np.uint64], maskable: NDArray[np.bool_], budget: Ints) -> NDArray[np.bool_]:
    scores = _scores(row_keys, maskable)
    in_order = np.sort(scores, axis=1)
    threshold = in_order[np.arange(len(budget)), np.maximum(budget - 1, 0)]
    return maskable & (scores <= threshold[:, None]) & (budget > 0)[:, None]


def _choose_words(
    row_keys: NDArray[np.uint64], maskable: NDArray[np.bool_], budget: Ints, continuation: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    after_word = np.zeros_like(maskable)
    after_word[:, 1:] = maskable[:, :-1]
    begins = maskable & ~(continuation & after_word)  # a piece cut off from its word is a word of its own
    word = np.maximum(np.cumsum(begins, axis=1) - 1, 0)
    n, words = len(word), int(word.max()) + 1
    flat = (np.arange(n)[:, None] * words + word)[maskable]
    sizes = np.bincount(flat, minlength=n * words).reshape(n, words)
    order = (np.sort(_scores(row_keys, sizes > 0), axis=1) & _PLACE_BITS).astype(np.int64)
    sizes = np.take_along_axis(sizes, order, axis=1)
    taken = take_words(sizes, budget)
    chosen_words = np.zeros_like(taken)
    np.put_along_axis(chosen_words, order, taken, axis=1)
    return maskable & np.take_along_axis(chosen_words, word, axis=1)


def take_words(sizes: Ints, budget: Ints) -> NDArray[np.bool_]:
    """Which words are taken when each that still fits is, from left to right; sizes (n, G), 0 behind the last."""
    rows, words = np.arange(len(sizes)), sizes.shape[1]
    ends = np.cumsum(sizes, axis=1)
    taken = (ends <= budget[:, None]) & (sizes > 0)
    place = taken.sum(axis=1)  # of the first word that does not fit; most rows are full, or nearly, by then
    count = np.where(place > 0, ends[rows, place - 1], 0)
    while (open_rows := (count < budget) & (place < words)).any():
        size = sizes[rows, np.minimum(place, words - 1)]
        fits = open_rows & (size > 0) & (count + size <= budget)
        taken[rows[fits], place[fits]] = True
        count += size * fits
        place += 1
    return taken


def _replacements(bits: NDArray[np.uint64], tokens: Ints, masking: Masking) -> Ints:
    """What stands for each chosen token: the upper 24 of its random bits say what kind, the others which token."""
    kind = (bits >> _KIND_SHIFT).astype(np.float64) * 2.0**-24
    drawn = ((bits & _DRAWN_BITS) * np.uint64(len(masking.replacements)) >> _KIND_SHIFT).astype(np.int64)
    replaced = np.where(kind < 0.8, masking.mask_id, masking.replacements[drawn])
    return np.where(kind < 0.9, replaced, tokens)
