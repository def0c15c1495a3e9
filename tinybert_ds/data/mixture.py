"""Several corpora with weights: which of them each sample of an epoch comes from.

Samples are numbered through the epoch. Within every `period` of them, each corpus has its share, evenly spaced; so the
place of any sample in its corpus is found without counting.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tinybert_ds.data.order import Ints
from tinybert_ds.errors import ConfigError

SMALLEST_SHARE = 1e-3


class Mixture:
    """Shares of samples.

    Args:
        weights: of the corpora; only their proportions count.
        period: samples in which each corpus has its share, as near as whole numbers come.

    Raises:
        ConfigError: a weight that is not positive, or so small that it would be nothing.
    """

    def __init__(self, weights: Sequence[float], period: int) -> None:
        shares = np.array(weights, dtype=np.float64)
        if not (np.isfinite(shares).all() and (shares > 0).all() and (shares >= SMALLEST_SHARE * shares.sum()).all()):
            raise ConfigError(
                f"the weights of the corpora are {', '.join(f'{weight:g}' for weight in weights)}; each must be "
                f"positive and at least {SMALLEST_SHARE:g} of their sum. Leave a corpus out instead of giving it none."
            )
        # Whole counts by largest remainder: they sum to the period, and none is off by a sample or more. Spacing each
        # corpus's samples evenly and merging them keeps the shares nearly true all along the period.
        exact = shares / shares.sum() * period
        counts = np.floor(exact).astype(np.int64)
        most_lost = np.argsort(counts - exact, kind="stable")
        counts[most_lost[: period - counts.sum()]] += 1
        owners = np.repeat(np.arange(len(counts)), counts)
        spaced = np.concatenate([(np.arange(count) + 0.5) / count for count in counts])
        self._period = period
        self._owner: Ints = owners[np.argsort(spaced, kind="stable")]  # (period,) corpus of each sample of a period
        self._places: list[Ints] = [np.flatnonzero(self._owner == corpus) for corpus in range(len(counts))]

    def epoch_samples(self, available: Sequence[int]) -> int:
        """Samples of an epoch that ends with the first corpus that ends."""
        return min(self._position(corpus, count) for corpus, count in enumerate(available))

    def corpus_range(self, corpus: int, begin: int, end: int) -> tuple[int, int]:
        """Which samples of a corpus lie in positions [begin, end) of the epoch."""
        return self._taken(corpus, begin), self._taken(corpus, end)

    def positions(self, corpus: int, begin: int, end: int) -> Ints:
        """Positions in the epoch of the samples [begin, end) of a corpus."""
        places = self._places[corpus]
        numbers = np.arange(begin, end)
        return numbers // len(places) * self._period + places[numbers % len(places)]

    def _taken(self, corpus: int, position: int) -> int:
        """Samples of a corpus before a position of the epoch."""
        periods, rest = divmod(position, self._period)
        return periods * len(self._places[corpus]) + int(np.searchsorted(self._places[corpus], rest))

    def _position(self, corpus: int, number: int) -> int:
        """Position in the epoch of a sample of a corpus."""
        places: NDArray[np.int64] = self._places[corpus]
        periods, rest = divmod(number, len(places))
        return periods * self._period + int(places[rest])
