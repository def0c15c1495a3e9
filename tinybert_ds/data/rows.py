"""Rows as spans of tokens, and the tokens of rows.

A row is prefix + span + joiner + span + ... + suffix. n rows, m spans.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from tinybert_ds.data.order import Ints, span_indices
from tinybert_ds.data.samples import Samples

_ZERO = np.zeros(1, dtype=np.int64)


class Template(NamedTuple):
    """The special tokens of a row."""

    prefix: tuple[int, ...]
    joiner: tuple[int, ...]
    suffix: tuple[int, ...]


class Spans(NamedTuple):
    """Rows, each of one span of tokens or more."""

    starts: Ints  # (m,) token addresses
    lengths: Ints  # (m,)
    counts: Ints  # (n,) spans of each row, at least 1

    def first_spans(self) -> Ints:
        """(n,) the number of each row's first span."""
        return np.cumsum(self.counts) - self.counts

    def of(self, rows: Ints, first_spans: Ints | None = None) -> Spans:
        """The rows of some numbers, in their order.

        Args:
            first_spans: from `first_spans`, for who asks often.
        """
        first = self.first_spans() if first_spans is None else first_spans
        counts = self.counts[rows]
        places = span_indices(first[rows], counts)
        return Spans(self.starts[places], self.lengths[places], counts)

    def row_lengths(self, template: Template) -> Ints:
        """Tokens of each row (n,), special tokens included."""
        ends = np.concatenate([[0], np.cumsum(self.lengths)])[np.cumsum(self.counts)]
        joiners = (self.counts - 1) * len(template.joiner)
        return np.diff(ends, prepend=0) + joiners + len(template.prefix) + len(template.suffix)

    def tokens(self, template: Template, gather: Callable[[Ints, Ints], Ints]) -> Ints:
        """The tokens of all rows, one after the other.

        Args:
            gather: the tokens of spans (starts, lengths), one span after the other.
        """
        prefix, joiner, suffix = (np.array(part, dtype=np.int64) for part in template)
        last = np.zeros(len(self.starts), dtype=bool)
        last[np.cumsum(self.counts) - 1] = True
        # Every span is followed by a joiner, or by the suffix and the prefix of the next row.
        after = np.where(last, len(suffix) + len(prefix), len(joiner))
        ends = np.cumsum(self.lengths + after) - after + len(prefix)
        row_ends = ends[last] + len(suffix)
        row_begins = np.concatenate([_ZERO, row_ends[:-1]])
        tokens = np.empty(row_ends[-1], dtype=np.int64)
        is_text = np.ones(len(tokens), dtype=bool)
        for begins, special in ((row_begins, prefix), (ends[~last], joiner), (ends[last], suffix)):
            for offset, token in enumerate(special):
                tokens[begins + offset] = token
                is_text[begins + offset] = False
        tokens[is_text] = gather(self.starts, self.lengths)
        return tokens


def join_spans(parts: list[Spans]) -> Spans:
    """All rows of some parts."""
    return Spans(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def pair_spans(samples: Samples) -> Spans:
    """Samples of one segment or two as rows of one span or two."""
    two = samples.second_length > 0
    used = np.stack([np.ones_like(two), two], axis=1)
    starts = np.stack([samples.first_start, samples.second_start], axis=1)
    lengths = np.stack([samples.first_length, samples.second_length], axis=1)
    return Spans(starts[used], lengths[used], 1 + two.astype(np.int64))


def pair_first_lengths(samples: Samples, template: Template) -> Ints:
    """(n,) leading tokens of token type 0: the first segment and what stands around it."""
    behind = np.where(samples.second_length > 0, len(template.joiner), len(template.suffix))
    return len(template.prefix) + samples.first_length + behind
