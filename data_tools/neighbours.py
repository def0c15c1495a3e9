"""The nearest words by the cosine of their vectors.

V words, D dimensions, q queries.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from data_tools.glove import WordVectors

_SCORES_AT_ONCE = 1 << 24
_NORM_ROWS = 1 << 16
_MARGIN = 1e-4  # above what float32 can be wrong by in a cosine of some hundred dimensions
_NO_WORD = "<unk>"


class Neighbours:
    """Finds the nearest words, each of them once.

    The preselection is a float32 matrix product, whose last digits depend on how many words are asked for together; the
    order is then decided in float64, one word at a time. So the answer for a word depends on nothing else.

    Args:
        glove: the words and their vectors. Of a word that comes twice the last one counts; `<unk>` and words without a
            direction are nobody's neighbours.
        count: neighbours of a word, itself not among them.
    """

    def __init__(self, glove: WordVectors, count: int) -> None:
        self._words, self._vectors, self._count = glove.words, glove.vectors, count
        self._index = {word: place for place, word in enumerate(self._words)}
        norms = _norms(self._vectors)
        last = np.zeros(len(self._words), dtype=bool)
        last[list(self._index.values())] = True
        if _NO_WORD in self._index:
            last[self._index[_NO_WORD]] = False
        self._usable = last & (norms > 0)
        self._norms = np.where(norms > 0, norms, 1.0)
        self._inverse_norms = (1.0 / self._norms).astype(np.float32)
        self._found: dict[str, list[str]] = {}

    def find(self, words: Iterable[str]) -> dict[str, list[str]]:
        """Return the neighbours of words, the nearest first; none for a word that has no vector.

        Case counts; the neighbours of a title-case word are put into title case, as published.
        """
        words = list(dict.fromkeys(words))
        missing = [word for word in words if word not in self._found and self._has_vector(word)]
        step = max(1, _SCORES_AT_ONCE // max(1, len(self._words)))
        for begin in range(0, len(missing), step):
            self._search(missing[begin : begin + step])
        return {word: self._found.get(word, []) for word in words}

    def _has_vector(self, word: str) -> bool:
        place = self._index.get(word)
        return place is not None and bool(self._usable[place])

    def _search(self, words: list[str]) -> None:
        """Find the neighbours of (q,) words that have a vector."""
        places = [self._index[word] for word in words]
        queries = self._vectors[places] * self._inverse_norms[places, None]  # (q, D)
        scores = queries @ self._vectors.T  # (q, V)
        scores *= self._inverse_norms
        scores[:, ~self._usable] = -np.inf
        for word, place, row in zip(words, places, scores, strict=True):
            row[place] = -np.inf
            found = [self._words[number] for number in self._ordered(place, row)]
            self._found[word] = [neighbour.title() for neighbour in found] if word.istitle() else found

    def _ordered(self, place: int, scores: NDArray[np.float32]) -> NDArray[np.int64]:
        """The best of (V,) approximate scores, in the order of the exact ones."""
        wanted = min(self._count, int(np.isfinite(scores).sum()))
        if wanted == 0:
            return np.zeros(0, dtype=np.int64)
        threshold = np.partition(scores, len(scores) - wanted)[len(scores) - wanted]
        chosen = np.flatnonzero(scores >= threshold - _MARGIN)
        products = self._vectors[chosen].astype(np.float64) * self._vectors[place].astype(np.float64)
        exact = products.sum(axis=1) / self._norms[chosen]
        return chosen[np.lexsort((chosen, -exact))[:wanted]]


def _norms(vectors: NDArray[np.float32]) -> NDArray[np.float64]:
    """Lengths (V,) of vectors (V, D), without a float64 copy of all of them."""
    parts = (vectors[begin : begin + _NORM_ROWS] for begin in range(0, len(vectors), _NORM_ROWS))
    return np.concatenate([np.linalg.norm(part.astype(np.float64), axis=1) for part in parts])
