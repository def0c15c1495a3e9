"""The shards of all corpora of a run side by side: one numbering of tokens, documents and blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tinybert_ds.data.blocks import num_blocks
from tinybert_ds.data.indexed import Shard
from tinybert_ds.data.manifest import Corpus
from tinybert_ds.data.order import Ints


class PlacedShard(NamedTuple):
    """A shard and where its numbers begin."""

    shard: Shard
    corpus: int  # which of the corpora it belongs to
    first_document: int  # number of its first document in its own corpus
    document_base: int  # number of its corpus's first document among all corpora
    token_base: int  # address of its first token among all shards
    block_base: int  # number of its first block among all shards


class Placement:
    """All shards; finds tokens by address and blocks by number."""

    def __init__(self, corpora: Sequence[Corpus]) -> None:
        self._placed: list[PlacedShard] = []
        document_base, token_base, block_base = 0, 0, 0
        for number, corpus in enumerate(corpora):
            first_document = 0
            for shard in corpus.shards:
                bases = (first_document, document_base, token_base, block_base)
                self._placed.append(PlacedShard(shard, number, *bases))
                first_document += shard.num_documents
                token_base += len(shard.tokens)
                block_base += num_blocks(shard)
            document_base += first_document
        self._token_bases = np.array([placed.token_base for placed in self._placed])
        self._block_bases = np.array([placed.block_base for placed in self._placed])

    def find_block(self, number: int) -> tuple[PlacedShard, int]:
        """The shard of a block, and the block's number inside it."""
        placed = self._placed[int(np.searchsorted(self._block_bases, number, side="right")) - 1]
        return placed, number - placed.block_base

    def gather(self, starts: Ints, lengths: Ints) -> Ints:
        """Tokens of spans, one span after the other; starts (n,) are addresses, no span leaves its shard."""
        if len(self._placed) == 1:
            return self._placed[0].shard.tokens[span_indices(starts, lengths)].astype(np.int64)
        tokens = np.empty(lengths.sum(), dtype=np.int64)
        places = np.cumsum(lengths) - lengths
        owners = np.searchsorted(self._token_bases, starts, side="right") - 1
        for owner in np.unique(owners):
            mine = owners == owner
            placed = self._placed[owner]
            source = span_indices(starts[mine] - placed.token_base, lengths[mine])
            tokens[span_indices(places[mine], lengths[mine])] = placed.shard.tokens[source]
        return tokens


def span_indices(starts: Ints, lengths: Ints) -> Ints:
    """Indices start, start + 1, ... of every span (n,), one span after the other."""
    ends = np.cumsum(lengths)
    return np.repeat(starts - (ends - lengths), lengths) + np.arange(lengths.sum())
