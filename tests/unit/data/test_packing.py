from __future__ import annotations

import numpy as np
import pytest

from tinybert_ds.data.packing import pack_sentences


def pack_slowly(documents: list[list[int]], longest: int, separator: int, overhead: int) -> list[list[tuple[int, int]]]:
    """Samples as lists of (document, tokens of it)."""
    pieces = []
    for number, document in enumerate(documents):
        for sentence in document:
            while sentence > longest:
                pieces.append((number, longest))
                sentence -= longest  # noqa: PLW2901
            pieces.append((number, sentence))
    samples = []
    while pieces:

        def tokens(count: int) -> int:
            changes = sum(pieces[i][0] != pieces[i - 1][0] for i in range(1, count))  # noqa: B023
            return sum(length for _, length in pieces[:count]) + separator * changes  # noqa: B023

        fitting = [n for n in range(1, len(pieces) + 1) if n == 1 or tokens(n) <= longest]
        ends = fitting[-3:] if fitting[-1] < len(pieces) else fitting[-1:]
        costs = {}
        for back, n in enumerate(reversed(ends)):
            costs[n] = -(-(tokens(n) + overhead) // 8) * 8 / tokens(n) * (1 + 0.005 * back)
        end = min(costs, key=lambda n: costs[n])
        sample: list[tuple[int, int]] = []
        for number, length in pieces[:end]:
            if sample and sample[-1][0] == number:
                sample[-1] = (number, sample[-1][1] + length)
            else:
                sample.append((number, length))
        samples.append(sample)
        pieces = pieces[end:]
    return samples


def pack(documents: list[list[int]], longest: int, separator: int, overhead: int):
    lengths = np.array([length for document in documents for length in document], dtype=np.int32)
    ends = np.cumsum([len(document) for document in documents])
    addresses = 1000 * np.arange(len(documents))
    return pack_sentences(lengths, ends, addresses, longest, separator, overhead)


def test_samples_are_filled_over_the_ends_of_documents():
    spans = pack([[4, 3], [5, 6], [2]], longest=13, separator=1, overhead=3)
    # 4 + 3 + separator + 5 are 13 tokens; 6 + separator + 2 are 9.
    assert spans.counts.tolist() == [2, 2]
    assert spans.starts.tolist() == [0, 1000, 1005, 2000]
    assert spans.lengths.tolist() == [7, 5, 6, 2]


def test_a_sentence_longer_than_a_sample_is_cut():
    spans = pack([[25], [3]], longest=10, separator=1, overhead=6)
    assert spans.lengths.tolist() == [10, 10, 5, 3]
    assert spans.starts.tolist() == [0, 10, 20, 1000]
    assert spans.counts.tolist() == [1, 1, 2]


@pytest.mark.parametrize("seed", range(4))
def test_samples_are_those_of_the_slow_implementation(seed):
    rng = np.random.default_rng(seed)
    documents = [rng.integers(1, 70, size=rng.integers(1, 9)).tolist() for _ in range(60)]
    spans = pack(documents, longest=60, separator=1, overhead=3)
    found, span = [], 0
    for count in spans.counts.tolist():
        found.append([(spans.starts[i] // 1000, spans.lengths[i]) for i in range(span, span + count)])
        span += count
    assert found == pack_slowly(documents, 60, 1, 3)
    assert spans.lengths.sum() == sum(map(sum, documents))


def test_documents_without_sentences_and_empty_blocks_are_no_trouble():
    spans = pack([[], [3], [], [2]], longest=10, separator=1, overhead=3)
    assert spans.counts.tolist() == [2]
    assert spans.starts.tolist() == [1000, 3000]
    none = np.zeros(0, dtype=np.int64)
    assert len(pack_sentences(none, none, none, longest=9, separator=1, overhead=3).counts) == 0
