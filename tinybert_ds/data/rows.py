"""Rows as spans of tokens, and the tokens of rows.

A row is prefix + span + joiner + span + ... + suffix. n rows, m spans.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from tinybert_ds.data.order import Ints, span_indices
from tinybert_ds.data.samples import Samples


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

    def of(self, rows: Ints) -> Spans:
        """The rows of some numbers, in their order."""
        ends = np.cumsum(self.counts)
        places = span_indices((ends - self.counts)[rows], self.counts[rows])
        return Spans(self.starts[places], self.lengths[places], self.counts[rows])

    def row_lengths(self, template: Template) -> Ints:
        """Tokens of each row (n,), special tokens included."""
        ends = np.concatenate([[0], np.cumsum(self.lengths)])[np.cumsum(self.counts)]
        joiners = (self.counts - 1) * len(template.joiner)
        return np.diff(ends, prepend=0) + joiners + len(template.prefix) + len(template.suffix)

    def tokens(self, template: Template, gather: Callable[[Ints, Ints], Ints]) -> Ints:
        """The tokens of all rows, one after the other.

        Args:
            template: special tokens.
            gather: the tokens of spans (starts, lengths), one span after the other.
        """
        prefix, joiner, suffix = (np.array(part, dtype=np.int64) for part in template)
        row_lengths = self.row_lengths(template)
        row_ends = np.cumsum(row_lengths)
        row_begins = row_ends - row_lengths
        last = np.zeros(len(self.starts), dtype=bool)
        last[np.cumsum(self.counts) - 1] = True
        # Every span is followed by a joiner, or by the suffix and the prefix of the next row.
        after = np.where(last, len(suffix) + len(prefix), len(joiner))
        begins = len(prefix) + np.cumsum(self.lengths + after) - self.lengths - after
        tokens = np.empty(row_lengths.sum(), dtype=np.int64)
        tokens[row_begins[:, None] + np.arange(len(prefix))] = prefix
        tokens[span_indices(begins, self.lengths)] = gather(self.starts, self.lengths)
        tokens[(begins + self.lengths)[~last][:, None] + np.arange(len(joiner))] = joiner
        tokens[(row_ends - len(suffix))[:, None] + np.arange(len(suffix))] = suffix
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
