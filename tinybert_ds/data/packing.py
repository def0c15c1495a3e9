"""Full-sentence packing: samples filled with sentences of one document after the other.

Source: Liu et al. 2019, "RoBERTa", section 4.2 (FULL-SENTENCES): a sample holds consecutive sentences of one or more
documents, with a separator between documents, and there is no next-sentence pair.

s sentences, d documents, p pieces of sentences, n samples.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tinybert_ds.data.order import Ints
from tinybert_ds.data.rows import Spans
from tinybert_ds.data.samples import choose_ends, cut_long, follow


def pack_sentences(
    lengths: NDArray[np.integer], document_ends: Ints, addresses: Ints, longest: int, separator: int, overhead: int
) -> Spans:
    """Cut sentences, documents joined, into samples of at most `longest` tokens.

    Args:
        lengths: (s,) tokens of each sentence; one longer than a sample is cut.
        document_ends: (d,) number of sentences up to the end of each document.
        addresses: (d,) token address at which each document begins.
        longest: tokens of text and separators that fit in a sample.
        separator: tokens between two documents in a sample.
        overhead: special tokens of a sample, separators not counted.

    Returns:
        n samples; a span is what a sample holds of one document.
    """
    lengths, pieces = cut_long(lengths.astype(np.int64), longest)
    piece_ends = np.concatenate([[0], np.cumsum(pieces)])[document_ends]
    in_document = np.diff(piece_ends, prepend=0)
    opens = np.zeros(len(lengths), dtype=bool)  # the first piece of a document
    opens[(piece_ends - in_document)[in_document > 0]] = True
    tokens = np.concatenate([[0], np.cumsum(lengths)])
    shift = addresses - tokens[piece_ends - in_document]
    starts = tokens[:-1] + np.repeat(shift, in_document)
    # With the separator counted before every document, a sample that opens a document has one too many.
    bounds = np.concatenate([[0], np.cumsum(lengths + separator * opens)])
    origins = bounds[:-1] + separator * opens
    fits = np.searchsorted(bounds, origins + longest, side="right") - 1
    fits = np.maximum(fits, np.arange(1, len(bounds)))
    successors = np.where(fits < len(lengths), choose_ends(fits, bounds, origins, overhead), fits)
    firsts = follow(successors)
    begins_span = opens.copy()
    begins_span[firsts] = True
    first_of_span = np.flatnonzero(begins_span)
    span_edges = np.append(first_of_span, len(lengths))
    counts = np.diff(np.append(np.searchsorted(first_of_span, firsts), len(first_of_span)))
    return Spans(starts[first_of_span], np.diff(tokens[span_edges]), counts)
