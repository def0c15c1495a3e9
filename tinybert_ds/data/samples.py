"""Samples as spans over the token stream: greedy chunks of sentences, sentence pairs, random second segments.

Source: the sample making of BERT (Devlin et al. 2019, appendix A.2) and its published code, with these deliberate
differences, which tests/unit/data/test_published_sampling.py sets beside the published rule:

- A chunk ends before the sentence that would not fit, where the published rule takes it and cuts the longer segment; a
  sentence longer than a sample is cut in pieces. So every token is used once in an epoch, samples are shorter by about
  half a sentence, and segments of equal length are no more frequent than others.
- Of the last sentence ends that fit, a chunk takes the one that leaves the least padding.
- A chunk of one sentence stays alone instead of being joined with a random one.
- Random second segments are exchanged inside a window between chunks whose second segments are of near-equal length,
  not drawn from the whole corpus: none is used twice, and only the few tokens by which a pair is too long are cut.

s sentences, d documents, p pieces, n samples.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tinybert_ds.data.order import Ints, binomial_half, integers, make_key, random_bits, uniforms

RANDOM_SECOND_PROBABILITY = 0.5
PADDING_MULTIPLE = 8  # rows are padded to a multiple of it
_ENDS_LOOKED_AT = 3
_SHORTER_COST = 0.005  # share of the computed tokens that a sentence less must save
_NEAR_LENGTH_ROUNDS = 4


class Chunks(NamedTuple):
    """Chunks of consecutive sentences; chunk i is pieces first[i]..last[i]-1 and lies inside one document."""

    document: Ints  # (n,)
    first: Ints  # (n,)
    last: Ints  # (n,)
    bounds: Ints  # (p + 1,) token at which each piece begins, all documents joined, and the end
    document_begins: Ints  # (d,) token at which each document begins, all documents joined


class Samples(NamedTuple):
    """Samples of a window: one or two spans of tokens each, without special tokens."""

    sample_ids: Ints  # (n,)
    document: Ints  # (n,)
    first_start: Ints  # (n,) token addresses
    first_length: Ints  # (n,)
    second_start: Ints  # (n,)
    second_length: Ints  # (n,) 0: the sample has one segment


def draw_targets(key: int, documents: Ints, longest: int, short_seq_prob: float) -> Ints:
    """Target length of each document (d,): `longest`, or with `short_seq_prob` uniform in 2..longest."""
    if short_seq_prob <= 0:
        return np.full(len(documents), longest, dtype=np.int64)
    short = uniforms(make_key(key, "short"), documents) < short_seq_prob
    drawn = 2 + integers(make_key(key, "target"), documents, longest - 1)
    return np.where(short, drawn, longest)


def chunk_documents(
    lengths: NDArray[np.integer], document_ends: Ints, targets: Ints, longest: int, overhead: int
) -> Chunks:
    """Cut documents into chunks of consecutive sentences of at most the target length.

    A chunk is as long as fits, or up to two sentences shorter where that leaves less padding for each token. A
    sentence above its document's target is a chunk of its own; only one above `longest` is cut, into pieces of that
    length and a rest, which counts as a sentence.

    Args:
        lengths: (s,) tokens of each sentence.
        document_ends: (d,) number of sentences up to the end of each document.
        targets: (d,) target length of each document, from 1 to `longest`.
        longest: tokens that fit in a sample.
    """
    lengths, pieces = cut_long(lengths.astype(np.int64), longest)
    piece_count = np.concatenate([[0], np.cumsum(pieces)])
    piece_ends = piece_count[document_ends]
    pieces_in_document = np.diff(piece_ends, prepend=0)
    bounds = np.concatenate([[0], np.cumsum(lengths)])
    # The chunk that begins at piece i ends at the last boundary within its target, and at its document's end at latest.
    fits = np.searchsorted(bounds, bounds[:-1] + np.repeat(targets, pieces_in_document), side="right") - 1
    ends = np.repeat(piece_ends, pieces_in_document)
    fits = np.minimum(np.maximum(fits, np.arange(1, len(bounds))), ends)
    successors = np.where(fits < ends, choose_ends(fits, bounds, bounds[:-1], overhead), fits)
    firsts = follow(successors)
    return Chunks(
        document=np.searchsorted(piece_ends, firsts, side="right"),
        first=firsts,
        last=successors[firsts],
        bounds=bounds,
        document_begins=bounds[piece_ends - pieces_in_document],
    )


def choose_ends(fits: Ints, bounds: Ints, origins: Ints, overhead: int) -> Ints:
    """Of the last boundaries that fit, the one with the least computed tokens for each token of the text.

    A row is computed up to the next multiple of 8. Without this, seven tokens of padding would be as likely as none.

    Args:
        fits: (p,) the last boundary of a chunk that begins at piece 0, 1, ...; boundary i is before piece i.
        bounds: (p + 1,) token at each boundary.
        origins: (p,) token from which the tokens of a chunk that begins at each piece are counted.
    """
    begins = np.arange(len(fits))
    best, best_cost = fits, np.full(len(fits), np.inf)
    for back in range(_ENDS_LOOKED_AT):
        ends = np.maximum(fits - back, begins + 1)
        tokens = bounds[ends] - origins
        computed = -(-(tokens + overhead) // PADDING_MULTIPLE) * PADDING_MULTIPLE
        cost = computed / np.maximum(tokens, 1) * (1 + back * _SHORTER_COST)
        best = np.where(cost < best_cost, ends, best)
        best_cost = np.minimum(cost, best_cost)
    return best


def follow(successors: Ints) -> Ints:
    """The numbers that are reached from 0 by going from each to its successor, which is larger, until there is none.

    After k rounds the first 2**k of them are known, and `jump` leads from each number so many steps ahead.
    """
    end = len(successors)
    jump = np.append(successors, end)
    reached = np.zeros(min(end, 1), dtype=np.int64)
    known = -1
    while known < len(reached):
        known = len(reached)
        further = jump[reached]
        reached = np.concatenate([reached, further[further < end]])
        jump = jump[jump]
    return reached


def cut_long(lengths: Ints, longest: int) -> tuple[Ints, Ints]:
    """Lengths of all pieces, and the number of pieces of each sentence; pieces are full but for the last."""
    pieces = -(-lengths // longest)
    if pieces.max(initial=1) == 1:
        return lengths[pieces == 1], pieces
    cut = np.full(pieces.sum(), longest, dtype=np.int64)
    has_pieces = pieces > 0
    cut[np.cumsum(pieces)[has_pieces] - 1] = (lengths - (pieces - 1) * longest)[has_pieces]
    return cut, pieces


def make_samples(key: int, sample_ids: Ints, chunks: Chunks, addresses: Ints, documents: Ints) -> Samples:
    """Split every chunk of two or more sentences at a random sentence boundary into two segments.

    Args:
        key: names the draws, together with the sample ids.
        sample_ids: (n,) of the chunks.
        addresses: (d,) token address at which each document begins.
        documents: (d,) number of each document.
    """
    pieces = chunks.last - chunks.first
    split = chunks.first + 1 + integers(make_key(key, "split"), sample_ids, np.maximum(pieces - 1, 1))
    split = np.where(pieces > 1, split, chunks.last)
    shift = (addresses - chunks.document_begins)[chunks.document]
    begin, middle, end = (chunks.bounds[edge] for edge in (chunks.first, split, chunks.last))
    return Samples(sample_ids, documents[chunks.document], begin + shift, middle - begin, middle + shift, end - middle)


def exchange_second_segments(key: int, samples: Samples, limit: int) -> Samples:
    """Give a random half of the pairs the second segment of a chunk of another document, and cut what got too long.

    Segments are exchanged pairwise, so that each is still used once, between rows whose second segments are of nearly
    equal length, so that hardly anything has to be cut. A row for which no other document has one left keeps its own.

    Args:
        key: names the draws, together with the sample ids.
        limit: largest number of tokens of both segments together.
    """
    drawn = uniforms(make_key(key, "random second"), samples.sample_ids) < RANDOM_SECOND_PROBABILITY
    rows = np.flatnonzero(drawn & (samples.second_length > 0))
    ties = random_bits(make_key(key, "partner"), samples.sample_ids[rows])
    rows = rows[np.lexsort((ties, samples.second_length[rows]))]
    one, other = pair_rows(rows, samples.document[rows])
    source = np.arange(len(samples.document))
    source[one], source[other] = other, one
    exchanged = samples._replace(second_start=samples.second_start[source], second_length=samples.second_length[source])
    return truncate_pairs(key, exchanged, limit)


def pair_rows(rows: Ints, documents: Ints) -> tuple[Ints, Ints]:
    """Pair rows with near neighbours of other documents.

    Args:
        rows: (r,) in an order in which neighbours are alike.

    Returns:
        Two arrays of equal length; each row occurs at most once. Rows of a document that has most of the rows, or all
        of a stretch of them, may be left over.
    """
    # Neighbours are alike in length, and segments that change places should be; but rows of one document must not meet.
    # Pairing (0,1)(2,3).. and then (1,2)(3,4).. of what is left separates most of those that stood side by side.
    ones, others = [], []
    for attempt in range(_NEAR_LENGTH_ROUNDS + 1):
        if attempt == _NEAR_LENGTH_ROUNDS:
            # Sorted by document, rows half the list apart differ unless one document has more than half of it.
            by_document = np.argsort(documents, kind="stable")
            half = len(rows) // 2
            a, b = by_document[:half], by_document[len(rows) - half :]
        else:
            a = np.arange(attempt % 2, len(rows) - 1, 2)
            b = a + 1
        apart = documents[a] != documents[b]
        largest, size = _most_frequent(documents)
        if size * 4 > len(rows) and attempt < _NEAR_LENGTH_ROUNDS:
            # Rows of other documents are what the large one needs: not to be spent on each other too early.
            apart &= (documents[a] == largest) | (documents[b] == largest)
        ones.append(rows[a[apart]])
        others.append(rows[b[apart]])
        left = np.ones(len(rows), dtype=bool)
        left[a[apart]] = left[b[apart]] = False
        rows, documents = rows[left], documents[left]
    return np.concatenate(ones), np.concatenate(others)


def _most_frequent(documents: Ints) -> tuple[int, int]:
    if len(documents) == 0:
        return -1, 0
    names, sizes = np.unique(documents, return_counts=True)
    return int(names[sizes.argmax()]), int(sizes.max())


def truncate_pairs(key: int, samples: Samples, limit: int) -> Samples:
    """Cut pairs longer than `limit`, token by token from the longer side, each from its front or its back at random."""
    first, second = samples.first_length, samples.second_length
    # Both over half: they meet there, the first keeping the odd token. Else only the longer side is cut.
    kept_second = np.minimum(second, np.maximum(limit // 2, limit - first))
    kept_first = np.minimum(first, limit - kept_second)
    front_first = binomial_half(make_key(key, "first front"), samples.sample_ids, first - kept_first)
    front_second = binomial_half(make_key(key, "second front"), samples.sample_ids, second - kept_second)
    return samples._replace(
        first_start=samples.first_start + front_first,
        first_length=kept_first,
        second_start=samples.second_start + front_second,
        second_length=kept_second,
    )
