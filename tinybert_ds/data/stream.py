"""Corpora joined, as samples in the order of an epoch: blocks in random order, the samples of a block as they stand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tinybert_ds.data.blocks import Block, Selection, count_samples, read_block
from tinybert_ds.data.manifest import Corpus
from tinybert_ds.data.order import Ints, make_key, permutation
from tinybert_ds.data.placement import PlacedShard, Placement
from tinybert_ds.data.rows import Spans, join_spans
from tinybert_ds.data.samples import Samples, make_samples


class Order(NamedTuple):
    """The order of an epoch."""

    blocks: Ints  # numbers among all blocks of the run
    ends: Ints  # samples up to the end of each block, in that order
    key: int  # names the draws of the epoch

    @property
    def samples(self) -> int:
        return int(self.ends[-1])


class Stream:
    """Samples by their position in an epoch.

    Args:
        members: which of them this stream joins; consecutive numbers.
    """

    def __init__(
        self, corpora: Sequence[Corpus], members: range, selections: Sequence[Selection], placement: Placement
    ) -> None:
        self._corpora = corpora
        self._members = members
        self._selections = selections
        self._placement = placement

    def order(self, key: int, shuffled: bool) -> Order:
        """The order of the epoch that `key` names."""
        counts = np.concatenate([count_samples(self._corpora[i], self._selections[i], key) for i in self._members])
        blocks = permutation(make_key(key, "blocks"), len(counts)) if shuffled else np.arange(len(counts))
        first_block = self._placement.block_ranges[self._members[0]][0]
        return Order(blocks + first_block, np.cumsum(counts[blocks]), key)

    def pairs(self, order: Order, begin: int, end: int, sample_ids: Ints) -> Samples:
        """The samples at positions [begin, end), each of one segment or two.

        Args:
            sample_ids: (end - begin,) their numbers, which name their draws.
        """
        parts = []
        for placed, block, inside, of_range in self._blocks(order, begin, end):
            chunks = block.chunks(self._selections[placed.corpus], order.key)
            ids = np.full(len(chunks.first), -1)
            ids[inside] = sample_ids[of_range]
            addresses, documents = block.addresses + placed.token_base, block.documents + placed.document_base
            samples = make_samples(order.key, ids, chunks, addresses, documents)
            parts.append(Samples(*(column[inside] for column in samples)))
        return Samples(*(np.concatenate(column) for column in zip(*parts, strict=True)))

    def packed(self, order: Order, begin: int, end: int) -> Spans:
        """The packed samples at positions [begin, end)."""
        parts = []
        for placed, block, inside, _ in self._blocks(order, begin, end):
            spans = block.packed(self._selections[placed.corpus], placed.token_base)
            parts.append(spans.of(np.arange(len(spans.counts))[inside]))
        return join_spans(parts)

    def _blocks(self, order: Order, begin: int, end: int) -> list[tuple[PlacedShard, Block, slice, slice]]:
        """The blocks that hold the positions, read ahead all together; and which of a block's samples are at which of
        the positions."""
        first, last = np.searchsorted(order.ends, [begin, end - 1], side="right").tolist()
        found = []
        for place in range(first, last + 1):
            placed, number = self._placement.find_block(int(order.blocks[place]))
            block = read_block(placed.shard, placed.first_document, number, self._selections[placed.corpus])
            if len(block.addresses):
                placed.shard.will_need(*block.tokens)
            block_begin = int(order.ends[place - 1]) if place else 0
            inside = slice(max(begin - block_begin, 0), min(end, int(order.ends[place])) - block_begin)
            of_range = slice(block_begin + inside.start - begin, block_begin + inside.stop - begin)
            found.append((placed, block, inside, of_range))
        return found
