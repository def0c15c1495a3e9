"""Dynamic masking, keyed by (seed, epoch, sample id): 80 % [MASK], 10 % a random token, 10 % left as it is.

n rows, S longest row, G most words in a row; flat arrays hold the rows one after the other.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tinybert_ds.data.order import Ints, random_bits
from tinybert_ds.data.word_list import WordTable

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
    words: WordTable | None = None  # of a language without spaces, whose characters belong together


def mask_tokens(key: int, sample_ids: Ints, tokens: Ints, lengths: Ints, masking: Masking) -> Ints:
    """Tokens of some rows with a random part replaced.

    `round(length * probability)` tokens of a row are chosen, at most `max_predictions`, special tokens counted in the
    length but never chosen. For whole words, words are taken in random order, leaving out those that no longer fit.

    Args:
        key: names the draws, together with the sample ids.
        tokens: (Σ lengths,) of all rows, special tokens included.
        masking: probability 0 returns the tokens untouched.
    """
    if masking.probability <= 0 or len(lengths) == 0:
        return tokens
    maskable = ~masking.special[tokens]
    budget = np.minimum(np.rint(lengths * masking.probability).astype(np.int64), masking.max_predictions)
    row_keys = random_bits(key, sample_ids)
    if masking.continuation is None:
        chosen = _choose(row_keys, maskable, lengths, budget)
    else:
        continuation = masking.continuation[tokens]
        if masking.words is not None:
            continuation = continuation | masking.words.continues(tokens, lengths)
        chosen = _choose_words(row_keys, maskable, lengths, budget, continuation)
    places, begins = np.flatnonzero(chosen), np.cumsum(lengths) - lengths
    rows = np.repeat(np.arange(len(lengths)), np.add.reduceat(chosen, begins, dtype=np.int64))
    bits = random_bits(row_keys[rows], places - begins[rows] + _REPLACEMENT_COUNTER)
    masked = tokens.copy()
    masked[places] = _replacements(bits, tokens[places], masking)
    return masked


def _scores(row_keys: NDArray[np.uint64], candidates: NDArray[np.bool_]) -> NDArray[np.uint64]:
    """A random number for each place (n, S), its lowest bits the place itself; those of candidates are smaller."""
    places = np.arange(candidates.shape[1], dtype=np.uint64)
    scores = random_bits(row_keys[:, None], places)
    scores &= _SCORE_BITS
    scores |= places
    np.bitwise_or(scores, _NO_CANDIDATE, out=scores, where=~candidates)
    return scores


def _choose(
    row_keys: NDArray[np.uint64], maskable: NDArray[np.bool_], lengths: Ints, budget: Ints
) -> NDArray[np.bool_]:
    """(Σ lengths,) which tokens are taken, `budget` (n,) of each row or all that are maskable."""
    valid = _places(lengths)
    candidates = np.zeros(valid.shape, dtype=bool)
    candidates[valid] = maskable
    scores = _scores(row_keys, candidates)
    in_order = np.sort(scores, axis=1)
    threshold = in_order[np.arange(len(budget)), np.maximum(budget - 1, 0)]
    threshold[budget == 0] = 0
    return maskable & (scores <= threshold[:, None])[valid]


def _choose_words(
    row_keys: NDArray[np.uint64],
    maskable: NDArray[np.bool_],
    lengths: Ints,
    budget: Ints,
    continuation: NDArray[np.bool_],
) -> NDArray[np.bool_]:
    """(Σ lengths,) which tokens are taken: whole words in random order, each that still fits into `budget` (n,)."""
    row_begins = np.cumsum(lengths) - lengths
    after_word = np.zeros_like(maskable)
    after_word[1:] = maskable[:-1]
    after_word[row_begins] = False
    begins = maskable & ~(continuation & after_word)  # a piece cut off from its word is a word of its own
    word = np.cumsum(begins, dtype=np.int32)  # of each token, over all rows, from 1; 0 before the first
    words = np.add.reduceat(begins, row_begins, dtype=np.int64)  # of each row
    valid = _places(words)
    sizes = np.zeros(valid.shape, dtype=np.int32)
    sizes[valid] = np.bincount(word[maskable], minlength=int(words.sum()) + 1)[1:]
    order = (np.sort(_scores(row_keys, valid), axis=1) & _PLACE_BITS).astype(np.int64)
    order += np.arange(order.size, step=order.shape[1])[:, None]  # places in the flat array: quicker than along an axis
    taken = take_words(sizes.ravel()[order], budget)
    chosen_words = np.zeros_like(valid)
    chosen_words.ravel()[order[taken]] = True
    return maskable & np.concatenate([[False], chosen_words[valid]])[word]


def _places(counts: Ints) -> NDArray[np.bool_]:
    """(n, most of them) whether a row has so many."""
    return np.arange(max(1, counts.max())) < counts[:, None]


def take_words(sizes: NDArray[np.integer], budget: Ints) -> NDArray[np.bool_]:
    """Which words are taken when each that still fits is, from left to right; sizes (n, G), 0 behind the last."""
    rows, words = np.arange(len(sizes)), sizes.shape[1]
    first = sizes[:, : int(budget.max()) + 1]  # words have a token at least: no more than these fit in a row, in order
    ends = np.cumsum(first, axis=1)
    taken = np.zeros(sizes.shape, dtype=bool)
    taken[:, : first.shape[1]] = (ends <= budget[:, None]) & (first > 0)
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
