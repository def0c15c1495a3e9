"""Blocks: the runs of documents in which a corpus is shuffled, counted and read.

Block k of a shard is the documents that begin in its tokens [k · BLOCK_TOKENS, (k + 1) · BLOCK_TOKENS). It is found by
bisection, so that no table of blocks has to be made or kept; a block inside a long document is simply empty.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Literal, NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from tinybert_ds.data.indexed import Shard
from tinybert_ds.data.manifest import Corpus
from tinybert_ds.data.order import Ints, make_key, uniforms
from tinybert_ds.data.packing import pack_sentences
from tinybert_ds.data.rows import Spans
from tinybert_ds.data.samples import Chunks, chunk_documents, draw_targets
from tinybert_ds.files import write_atomically
from tinybert_ds.progress import progress_bar

BLOCK_TOKENS = 1 << 17
COUNTS_DIRECTORY = "counts"
_COUNTS_VERSION = 4
_HASH_BYTES = 8
_HELD_OUT_KEY = make_key("held out documents")
_HASHED_AT_ONCE = 1 << 20

Split = Literal["train", "eval"]


@dataclass(frozen=True)
class Selection:
    """Which documents are read and how they are cut into chunks."""

    split: Split
    held_out_below: float  # documents whose hash is below it are the eval split
    longest: int  # tokens of a chunk, or of a packed sample with its separators
    overhead: int  # special tokens of a sample
    short_seq_prob: float
    separator: int | None  # tokens between documents of a packed sample; None: chunks lie inside documents


class Block(NamedTuple):
    """The selected documents of a block."""

    lengths: NDArray[np.int32]  # (s,) tokens of each sentence
    document_ends: Ints  # (d,) number of sentences up to the end of each document
    addresses: Ints  # (d,) token of the shard at which each document begins
    documents: Ints  # (d,) number of each document in its corpus

    @property
    def tokens(self) -> tuple[int, int]:
        """The range of the shard's tokens in which the documents lie; there is at least one."""
        last = self.document_ends[-2] if len(self.document_ends) > 1 else 0
        return int(self.addresses[0]), int(self.addresses[-1]) + int(self.lengths[last:].sum())

    def chunks(self, selection: Selection, key: int) -> Chunks:
        """The documents cut into chunks."""
        targets = draw_targets(key, self.documents, selection.longest, selection.short_seq_prob)
        return chunk_documents(self.lengths, self.document_ends, targets, selection.longest, selection.overhead)

    def packed(self, selection: Selection, address: int) -> Spans:
        """The documents joined and cut into samples; `address` is that of the shard's first token."""
        assert selection.separator is not None
        limits = (selection.longest, selection.separator, selection.overhead)
        return pack_sentences(self.lengths, self.document_ends, self.addresses + address, *limits)

    def num_samples(self, selection: Selection, key: int) -> int:
        """Samples that the documents give."""
        if selection.separator is not None:
            return len(self.packed(selection, 0).counts)
        return len(self.chunks(selection, key).first)


def num_blocks(tokens: int) -> int:
    """Blocks of a shard of so many tokens, empty ones included."""
    return -(-tokens // BLOCK_TOKENS)


def held_out_threshold(num_documents: int, fraction: float) -> float:
    """The hash value below which documents are held out: at least one of them, and never all.

    It depends on the number of documents and the fraction only, not on seed or epoch.
    """
    if fraction <= 0:
        return 0.0
    lowest, highest = 1.0, 0.0
    for begin in range(0, num_documents, _HASHED_AT_ONCE):
        hashes = uniforms(_HELD_OUT_KEY, np.arange(begin, min(begin + _HASHED_AT_ONCE, num_documents)))
        lowest, highest = min(lowest, float(hashes.min())), max(highest, float(hashes.max()))
        if lowest < fraction <= highest:
            return fraction
    return float(np.nextafter(lowest, 1.0)) if lowest >= fraction else highest


def is_held_out(documents: Ints, threshold: float) -> np.ndarray:
    """(d,) bool: which documents belong to the eval split."""
    return uniforms(_HELD_OUT_KEY, documents) < threshold


def read_block(shard: Shard, first_document: int, number: int, selection: Selection) -> Block:
    """The selected documents of block `number` of a shard.

    Args:
        first_document: the number that its first document has in its corpus.
        number: of the block inside the shard.
        selection: documents of the other split are passed over.
    """
    begin = shard.first_document_from(number * BLOCK_TOKENS)
    end = shard.first_document_from((number + 1) * BLOCK_TOKENS)
    documents = np.arange(begin, end, dtype=np.int64) + first_document
    selected = is_held_out(documents, selection.held_out_below) == (selection.split == "eval")
    documents = documents[selected]
    edges = np.asarray(shard.documents[begin : end + 1])
    begins, sentences = edges[:-1][selected], np.diff(edges)[selected]
    ends = np.cumsum(sentences)
    places = np.repeat(begins - (ends - sentences), sentences) + np.arange(sentences.sum())
    # A document without sentences, which other writers make, may begin where the index ends.
    offsets = np.asarray(shard.offsets[np.minimum(begins, len(shard.offsets) - 1)])
    return Block(shard.lengths[places], ends, offsets // shard.tokens.itemsize, documents)


def count_samples(corpus: Corpus, selection: Selection, key: int) -> Ints:
    """Samples of each block of a corpus, shard after shard, int64.

    Counting reads the whole index, so the result is kept in the directory `counts` of the corpus, under a name made of
    all that it depends on. A directory that cannot be written to is no error: it is counted again next time.
    """
    named = {
        "version": _COUNTS_VERSION,
        "block_tokens": BLOCK_TOKENS,
        "corpus": corpus.manifest.fingerprint,
        "selection": asdict(selection),
        "key": key if selection.short_seq_prob > 0 else None,
    }
    path = corpus.directory / COUNTS_DIRECTORY / f"{xxhash.xxh3_64_hexdigest(json.dumps(named).encode())}.counts"
    expected = sum(num_blocks(shard.tokens) for shard in corpus.manifest.shards)
    try:
        kept = path.read_bytes()
        if kept[-_HASH_BYTES:] == _hash(kept[:-_HASH_BYTES]) and len(kept) == _HASH_BYTES + 8 * expected:
            return np.frombuffer(kept[:-_HASH_BYTES], dtype="<i8")
    except OSError:
        pass  # absent: counted, as where it is damaged
    counts = _count(corpus, selection, key, expected)
    content = counts.astype("<i8").tobytes()
    try:
        path.parent.mkdir(exist_ok=True)
        write_atomically(path, content + _hash(content))
    except OSError:
        pass  # a read-only corpus
    return counts


def _hash(content: bytes) -> bytes:
    return xxhash.xxh3_64_digest(content)


def _count(corpus: Corpus, selection: Selection, key: int, blocks: int) -> Ints:
    counts, first_document = [], 0
    with progress_bar(total=blocks, desc="counting samples", unit="block") as bar:
        for shard in corpus.shards:
            for number in range(num_blocks(len(shard.tokens))):
                counts.append(read_block(shard, first_document, number, selection).num_samples(selection, key))
                bar.update()
            first_document += shard.num_documents
    return np.array(counts, dtype=np.int64)
