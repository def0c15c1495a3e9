"""The shards of all corpora of a run side by side: one numbering of tokens, documents and blocks."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tinybert_ds.data.blocks import num_blocks
from tinybert_ds.data.indexed import Shard
from tinybert_ds.data.manifest import Corpus
from tinybert_ds.data.order import Ints, span_indices
from tinybert_ds.errors import DataError


@dataclass(frozen=True)
class PlacedShard:
    """A shard and where its numbers begin."""

    owner: Corpus
    number: int  # among the shards of its corpus
    corpus: int  # which of the corpora it belongs to
    first_document: int  # number of its first document in its own corpus
    document_base: int  # number of its corpus's first document among all corpora
    token_base: int  # address of its first token among all shards
    block_base: int  # number of its first block among all shards

    @property
    def shard(self) -> Shard:
        """The shard, memory-mapped."""
        return self.owner.shards[self.number]

    def require_whole(self) -> None:
        """Look whether the files are as long as they were: to touch the lost part of a mapped file ends the process.

        Raises:
            DataError: A file was removed or cut short since it was mapped.
        """
        for path, size in self._sizes:
            try:
                found = os.stat(path).st_size
            except FileNotFoundError:
                found = None
            if found != size:
                state = "gone" if found is None else f"{found} bytes long instead of {size}"
                raise DataError(
                    f"the shard file {path!r} was changed while it was read: it is {state}. Restore it and start "
                    "the same command again"
                )

    @cached_property
    def _sizes(self) -> list[tuple[str, int]]:
        """Paths and bytes of the files; every batch looks at them."""
        files = self.owner.manifest.shards[self.number].files
        return [(str(self.owner.directory / name), record.bytes) for name, record in files.items()]


class Placement:
    """All shards; finds tokens by address and blocks by number."""

    def __init__(self, corpora: Sequence[Corpus]) -> None:
        self._placed: list[PlacedShard] = []
        self.block_ranges: list[tuple[int, int]] = []  # of each corpus
        document_base, token_base, block_base = 0, 0, 0
        for number, corpus in enumerate(corpora):
            first_document, first_block = 0, block_base
            for place, record in enumerate(corpus.manifest.shards):
                bases = (first_document, document_base, token_base, block_base)
                self._placed.append(PlacedShard(corpus, place, number, *bases))
                first_document += record.documents
                token_base += record.tokens
                block_base += num_blocks(record.tokens)
            document_base += first_document
            self.block_ranges.append((first_block, block_base))
        self._token_bases = np.array([placed.token_base for placed in self._placed])
        self._block_bases = np.array([placed.block_base for placed in self._placed])
        self._vocab_size = corpora[0].manifest.special_ids.vocab_size  # of all of them: there is one tokeniser

    def find_block(self, number: int) -> tuple[PlacedShard, int]:
        """The shard of a block, and the block's number inside it."""
        placed = self._placed[int(np.searchsorted(self._block_bases, number, side="right")) - 1]
        placed.require_whole()
        return placed, number - placed.block_base

    def gather(self, starts: Ints, lengths: Ints) -> Ints:
        """Tokens of spans, one span after the other; starts (n,) are addresses, no span leaves its shard.

        Raises:
            DataError: A shard's file was removed or cut short in the meantime, or holds ids that the vocabulary has
                not.
        """
        if len(self._placed) == 1:
            self._placed[0].require_whole()
            tokens = self._placed[0].shard.tokens[span_indices(starts, lengths)].astype(np.int64)
            self._require_ids(tokens, self._placed[0])
            return tokens
        # Spans of a window lie in any order over many mapped files. Sorted by file, each file is read in one slice, and
        # the places where the spans belong are computed for all of them at once: no Python runs per span.
        owners = np.searchsorted(self._token_bases, starts, side="right") - 1
        by_owner = np.argsort(owners, kind="stable")
        sorted_lengths = lengths[by_owner]
        sources = span_indices(starts[by_owner], sorted_lengths)
        present, firsts = np.unique(owners[by_owner], return_index=True)
        ends = np.append((np.cumsum(sorted_lengths) - sorted_lengths)[firsts[1:]], len(sources))
        found = np.empty(len(sources), dtype=np.int64)
        begin = 0
        for owner, end in zip(present.tolist(), ends.tolist(), strict=True):
            placed = self._placed[owner]
            placed.require_whole()
            found[begin:end] = placed.shard.tokens[sources[begin:end] - placed.token_base]
            self._require_ids(found[begin:end], placed)
            begin = end
        tokens = np.empty(len(found), dtype=np.int64)
        tokens[span_indices((np.cumsum(lengths) - lengths)[by_owner], sorted_lengths)] = found
        return tokens

    def _require_ids(self, tokens: Ints, placed: PlacedShard) -> None:
        if tokens.view(np.uint64).max(initial=0) < self._vocab_size:  # a negative number is a large one there
            return
        path = placed.owner.directory / f"{placed.owner.manifest.shards[placed.number].name}.bin"
        raise DataError(
            f"{str(path)!r} is damaged: it holds ids from {tokens.min()} to {tokens.max()}, and the vocabulary has ids "
            f"from 0 to {self._vocab_size - 1}. Restore it from a copy, or remove the corpus's directory and write it "
            "again with pregenerate_training_data.py"
        )
