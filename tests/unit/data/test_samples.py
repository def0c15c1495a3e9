"""Spans against a slow implementation of the rule, pairs and cuts against hand-made cases."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tinybert_ds.data.samples import (
    Samples,
    chunk_documents,
    draw_targets,
    exchange_second_segments,
    make_samples,
    pair_rows,
    truncate_pairs,
)


def chunk_slowly(document: list[int], target: int, longest: int, overhead: int) -> list[list[int]]:
    """One document's chunks, each the lengths of its pieces."""
    pieces = []
    for sentence in document:
        pieces += [longest] * ((sentence - 1) // longest)
        pieces.append(sentence - (sentence - 1) // longest * longest)
    chunks: list[list[int]] = []
    while pieces:
        fitting = [n for n in range(1, len(pieces) + 1) if n == 1 or sum(pieces[:n]) <= target]
        ends = fitting[-3:] if fitting[-1] < len(pieces) else fitting[-1:]
        computed = {n: math.ceil((sum(pieces[:n]) + overhead) / 8) * 8 / sum(pieces[:n]) for n in ends}
        end = min(sorted(ends, reverse=True), key=lambda n: computed[n] * (1 + 0.005 * (ends[-1] - n)))
        chunks.append(pieces[:end])
        pieces = pieces[end:]
    return chunks


def samples(*rows: tuple[int, int, int, int, int]) -> Samples:
    """Rows of (document, first start, first length, second start, second length)."""
    return Samples(np.arange(len(rows)), *(np.array(column) for column in zip(*rows, strict=True)))


def many_pairs(n: int, documents: int, seed: int = 0) -> Samples:
    rng = np.random.default_rng(seed)
    first, second = rng.integers(1, 60, size=n), rng.integers(1, 60, size=n)
    start = np.arange(n) * 1000
    return Samples(np.arange(n), rng.integers(0, documents, size=n), start, first, start + first, second)


def test_a_chunk_ends_before_the_sentence_that_would_not_fit():
    chunks = chunk_documents(np.array([4, 3, 3, 10, 2, 5]), np.array([4, 6]), np.array([10, 6]), 10, overhead=6)
    # Document 0: 4+3+3, then 10; document 1 has target 6: 2, then 5.
    assert chunks.document.tolist() == [0, 0, 1, 1]
    assert chunks.first.tolist() == [0, 3, 4, 5]
    assert chunks.last.tolist() == [3, 4, 5, 6]
    assert chunks.bounds.tolist() == [0, 4, 7, 10, 20, 22, 27]
    assert chunks.document_begins.tolist() == [0, 20]


def test_a_sentence_longer_than_the_target_is_cut_and_its_rest_is_joined_with_what_follows():
    chunks = chunk_documents(np.array([2, 23, 5, 4]), np.array([4]), np.array([10]), 10, overhead=6)
    pieces = np.diff(chunks.bounds)
    cut = [pieces[a:b].tolist() for a, b in zip(chunks.first, chunks.last, strict=True)]
    assert cut == [[2], [10], [10], [3, 5], [4]]


def test_a_sentence_above_a_short_target_is_a_chunk_of_its_own():
    chunks = chunk_documents(np.array([1, 1, 7, 1, 12, 1]), np.array([6]), np.array([2]), 10, overhead=6)
    cut = [np.diff(chunks.bounds)[a:b].tolist() for a, b in zip(chunks.first, chunks.last, strict=True)]
    assert cut == [[1, 1], [7], [1], [10], [2], [1]]


@pytest.mark.parametrize("seed", range(5))
def test_chunks_are_those_of_the_slow_implementation(seed):
    rng = np.random.default_rng(seed)
    documents = [rng.integers(1, 80, size=rng.integers(1, 40)).tolist() for _ in range(50)]
    targets = rng.integers(2, 61, size=50)
    lengths = np.array([length for document in documents for length in document], dtype=np.int32)
    chunks = chunk_documents(lengths, np.cumsum([len(document) for document in documents]), targets, 60, overhead=3)
    pieces = np.diff(chunks.bounds)
    found = [
        (document, pieces[a:b].tolist())
        for document, a, b in zip(chunks.document.tolist(), chunks.first, chunks.last, strict=True)
    ]
    slow = [(i, chunk) for i in range(50) for chunk in chunk_slowly(documents[i], int(targets[i]), 60, 3)]
    assert found == slow


def test_a_chunk_ends_where_it_leaves_the_least_padding():
    # Text -> row -> computed: 125 -> 128 -> 128; 113 -> 116 -> 120; 109 -> 112 -> 112; 101 -> 104 -> 104.
    cases = [([100, 25, 30], 125), ([109, 4, 10, 30], 109), ([100, 13, 10, 30], 123), ([101, 12, 1, 30], 101)]
    for lengths, taken in cases:
        chunks = chunk_documents(np.array(lengths), np.array([len(lengths)]), np.array([125]), 125, overhead=3)
        assert chunks.bounds[chunks.last[0]] == taken
    # The end of a document is not put off: what would be left over is a row of its own.
    chunks = chunk_documents(np.array([101, 7, 4]), np.array([3]), np.array([125]), 125, overhead=3)
    assert chunks.last.tolist() == [3]


def test_rows_that_end_at_multiples_of_eight_are_more_than_chance():
    lengths = np.random.default_rng(0).integers(5, 45, size=20_000)
    chunks = chunk_documents(lengths, np.array([20_000]), np.array([125]), 125, overhead=3)
    rows = chunks.bounds[chunks.last] - chunks.bounds[chunks.first] + 3
    assert (-rows % 8).mean() < 2.2  # 3.5 by chance


def test_no_documents_give_no_chunks():
    none = np.array([], dtype=np.int64)
    chunks = chunk_documents(none, none, none, 10, overhead=3)
    assert len(chunks.first) == len(chunks.last) == len(chunks.document) == 0


def test_documents_without_sentences_are_passed_over():
    chunks = chunk_documents(np.array([3, 0, 2]), np.array([0, 1, 1, 3]), np.array([10, 10, 10, 10]), 10, overhead=3)
    assert chunks.document.tolist() == [1, 3]
    assert [chunks.bounds[chunks.first].tolist(), chunks.bounds[chunks.last].tolist()] == [[0, 3], [3, 5]]


def test_a_share_of_documents_gets_a_shorter_target():
    targets = draw_targets(5, np.arange(20_000), 125, 0.1)
    short = targets[targets < 125]
    assert abs(len(short) / 20_000 - 0.1 * 123 / 124) < 0.011  # 5 sigma
    assert (short.min(), short.max()) == (2, 124)
    assert abs(short.mean() - 63) < 4
    assert (draw_targets(5, np.arange(100), 125, 0.0) == 125).all()


def test_a_draw_of_a_document_does_not_depend_on_the_others():
    assert draw_targets(5, np.arange(100), 125, 0.5)[60] == draw_targets(5, np.array([60]), 125, 0.5)[0]


def test_chunks_of_two_or_more_sentences_are_split_at_a_sentence_boundary():
    chunks = chunk_documents(np.array([4, 3, 3, 10, 2, 2]), np.array([4, 6]), np.array([10, 10]), 10, overhead=6)
    splits = set()
    for key in range(50):
        made = make_samples(key, np.array([7, 8, 9]), chunks, np.array([100, 500]), np.array([0, 1]))
        assert made.document.tolist() == [0, 0, 1]
        assert made.first_start.tolist() == [100, 110, 500]
        assert (made.first_start + made.first_length).tolist() == made.second_start.tolist()
        assert (made.first_length + made.second_length).tolist() == [10, 10, 4]
        assert (made.first_length[1], made.second_length[1]) == (10, 0)  # one sentence: A only
        assert made.first_length[2] == 2
        splits.add(int(made.first_length[0]))
    assert splits == {4, 7}


def test_every_boundary_is_equally_likely():
    chunks = chunk_documents(np.ones(4 * 8000, dtype=np.int64), np.array([32_000]), np.array([4]), 4, overhead=4)
    made = make_samples(3, np.arange(8000), chunks, np.array([0]), np.array([0]))
    shares = np.bincount(made.first_length, minlength=4)[1:] / 8000
    assert np.abs(shares - 1 / 3).max() < 0.027  # 5 sigma


def test_half_of_the_pairs_get_the_second_segment_of_another_document():
    before = many_pairs(4000, documents=50)
    after = exchange_second_segments(1, before, limit=200)
    changed = np.flatnonzero(after.second_start != before.second_start)
    assert abs(len(changed) / 4000 - 0.5) < 0.04  # 5 sigma
    origin = after.second_start // 1000
    assert (before.document[origin[changed]] != before.document[changed]).all()


def test_every_second_segment_is_still_used_once_and_partners_are_alike():
    before = many_pairs(4000, documents=50)
    after = exchange_second_segments(1, before, limit=200)
    assert sorted(after.second_start.tolist()) == sorted(before.second_start.tolist())
    assert sorted(after.second_length.tolist()) == sorted(before.second_length.tolist())
    assert np.abs(after.second_length - before.second_length).mean() < 0.1
    assert (after.first_length == before.first_length).all()


def test_samples_of_one_segment_are_never_given_a_second():
    before = many_pairs(100, documents=10)
    before = before._replace(second_length=np.where(np.arange(100) % 2, before.second_length, 0))
    after = exchange_second_segments(1, before, limit=200)
    assert (after.second_length[::2] == 0).all()
    assert (after.second_start[::2] == before.second_start[::2]).all()


def test_a_window_of_one_document_keeps_its_pairs():
    before = many_pairs(100, documents=1)
    after = exchange_second_segments(1, before, limit=200)
    assert all((a == b).all() for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("documents", [[0] * 10 + [1] * 10, [0, 1] * 10, [0] * 7 + [1, 2, 3] * 3, list(range(9))])
def test_rows_are_paired_across_documents_with_at_most_one_left_over(documents):
    rows = np.arange(len(documents)) * 10
    one, other = pair_rows(rows, np.array(documents))
    both = [*one.tolist(), *other.tolist()]
    assert len(set(both)) == len(both) == len(documents) // 2 * 2
    assert all(documents[a // 10] != documents[b // 10] for a, b in zip(one, other, strict=True))


def test_hardly_a_row_is_left_over_in_a_window_of_many_documents():
    documents = np.random.default_rng(0).integers(0, 30, size=5001)
    one, other = pair_rows(np.arange(5001), documents)
    assert len(one) == 2500
    assert (np.abs(one - other) <= 100).mean() > 0.99  # partners are near


def test_a_document_with_most_of_the_rows_leaves_only_its_surplus_alone():
    one, _ = pair_rows(np.arange(10), np.array([0] * 8 + [1, 2]))
    assert len(one) == 2


def test_pairs_within_the_limit_are_left_alone():
    before = samples((0, 0, 30, 30, 20), (0, 100, 50, 150, 0))
    assert all((a == b).all() for a, b in zip(before, truncate_pairs(1, before, 50), strict=True))


@pytest.mark.parametrize(
    ("first", "second", "limit", "kept"),
    [
        (100, 10, 50, (40, 10)),
        (10, 100, 50, (10, 40)),
        (30, 30, 51, (26, 25)),
        (40, 29, 51, (26, 25)),
        (30, 26, 51, (26, 25)),
    ],
)
def test_the_longer_side_is_cut(first, second, limit, kept):
    a, b = first, second
    while a + b > limit:  # the published rule: the longer side loses a token, the second on a tie
        a, b = (a - 1, b) if a > b else (a, b - 1)
    assert (a, b) == kept
    cut = truncate_pairs(1, samples((0, 1000, first, 5000, second)), limit)
    assert (cut.first_length[0], cut.second_length[0]) == kept


def test_tokens_are_cut_from_the_front_or_the_back_at_random():
    n = 4000
    rows = Samples(*(np.full(n, value) for value in (0, 0, 1000, 100, 5000, 10)))._replace(sample_ids=np.arange(n))
    cut = truncate_pairs(1, rows, 50)
    front = cut.first_start - 1000
    assert front.min() >= 0
    assert (front + cut.first_length).max() <= 100
    assert abs(front.mean() - 30) < 0.31  # 60 coins, 5 sigma
    assert abs(front.std() - np.sqrt(15)) < 0.25
    assert (cut.second_start == 5000).all()
