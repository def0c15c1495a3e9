from __future__ import annotations

import itertools
import threading
import time

import numpy as np
import pytest
import torch

from tinybert_ds.data.batching import (
    RowLayout,
    Rows,
    collate,
    padded_length,
    plan_window,
    prefetch,
    split_rows,
    step_batches,
    step_counts,
    token_counts,
)
from tinybert_ds.types import Counts

ONE = Counts(1.0, 1.0, 1.0)


def rows_of(lengths: np.ndarray, numbers: np.ndarray, labels: np.ndarray | None = None) -> Rows:
    """Row r holds the token 100 + r, as often as it is long; the first token is of type 0."""
    mine = lengths[numbers]
    chosen = None if labels is None else labels[numbers]
    return Rows(np.repeat(100 + numbers, mine), mine, np.ones_like(mine), numbers, chosen)


@pytest.fixture
def lengths() -> np.ndarray:
    return np.random.default_rng(0).integers(3, 129, size=5000)


@pytest.mark.parametrize("key", [7, None])
@pytest.mark.parametrize("batch", [1, 32, 64, 4999, 5000, 9000])
def test_every_row_is_in_one_step_and_only_the_last_step_is_short(lengths, batch, key):
    steps = plan_window(lengths, batch, key)
    assert len(steps) == -(-5000 // batch)
    assert all(len(step) == batch for step in steps[:-1])
    assert sorted(np.concatenate(steps).tolist()) == list(range(5000))


def test_steps_are_of_one_length_bin_but_for_the_left_overs(lengths):
    steps = plan_window(lengths, 32, key=1)
    mixed = [step for step in steps if len(set(((lengths[step] - 1) // 8).tolist())) > 1]
    assert len(mixed) <= 16  # each of the 16 bins leaves fewer than 32 rows over


def test_bins_leave_little_padding(lengths):
    layout = RowLayout("valid", 128, 0)
    computed = sum(len(step) * padded_length(lengths[step], layout) for step in plan_window(lengths, 32, key=1))
    assert 1 - lengths.sum() / computed < 0.08  # a random order has 0.48


def test_the_key_names_the_order_of_rows_and_steps(lengths):
    first, again, other = (np.concatenate(plan_window(lengths, 32, key)) for key in (1, 1, 2))
    assert first.tolist() == again.tolist()
    assert (first == other).mean() < 0.01
    longest = [int(lengths[step].max()) for step in plan_window(lengths, 32, 1)]
    assert abs(np.corrcoef(longest, range(len(longest)))[0, 1]) < 0.4  # not from short to long


def test_without_a_key_rows_come_in_order_of_length(lengths):
    ordered = lengths[np.concatenate(plan_window(lengths, 32, None))]
    assert (np.diff(ordered) >= 0).all()


def test_rows_are_split_evenly_and_in_order():
    assert [(part.start, part.stop) for part in split_rows(10, 4)] == [(0, 2), (2, 5), (5, 7), (7, 10)]
    assert [(part.start, part.stop) for part in split_rows(2, 4)] == [(0, 0), (0, 1), (1, 1), (1, 2)]


@pytest.mark.parametrize(
    ("longest", "max_seq_length", "padding", "expected"),
    [(9, 128, "valid", 16), (16, 128, "valid", 16), (98, 100, "valid", 100), (9, 128, "reference", 128)],
)
def test_a_step_is_padded_to_its_longest_row_rounded_up_or_to_the_maximum(longest, max_seq_length, padding, expected):
    assert padded_length(np.array([3, longest]), RowLayout(padding, max_seq_length, 0)) == expected


def test_counts_are_shares_of_the_global_batch():
    assert step_counts(np.array([2, 3, 5]), 8, "valid", parts=4) == Counts(3 / 4, 10 / 4, 38 / 4)
    assert step_counts(np.array([2, 3, 5]), 8, "reference", parts=4) == Counts(3 / 4, 24 / 4, 192 / 4)


def test_collate_pads_on_the_right():
    rows = Rows(np.array([2, 7, 3, 2, 8, 3, 9, 3]), np.array([3, 5]), np.array([3, 3]), np.array([11, 12]))
    batch = collate(rows, 6, RowLayout("valid", 8, pad_id=1), ONE)
    assert batch.input_ids.tolist() == [[2, 7, 3, 1, 1, 1], [2, 8, 3, 9, 3, 1]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 0]]
    assert batch.token_type_ids.tolist() == [[0, 0, 0, 0, 0, 0], [0, 0, 0, 1, 1, 0]]
    assert batch.sample_ids.tolist() == [11, 12]
    assert batch.labels is None
    assert batch.counts == ONE
    assert {tensor.dtype for tensor in batch[:3]} == {torch.int64}


def test_labels_are_int64_classes_or_float32_scores():
    lengths, numbers = np.array([2, 2]), np.array([0, 1])
    layout = RowLayout("valid", 8, 0)
    classes = collate(rows_of(lengths, numbers, np.array([1, 0], dtype=np.int32)), 2, layout, ONE).labels
    scores = collate(rows_of(lengths, numbers, np.array([1.5, 0.25])), 2, layout, ONE).labels
    assert (classes.dtype, classes.tolist()) == (torch.int64, [1, 0])
    assert (scores.dtype, scores.tolist()) == (torch.float32, [1.5, 0.25])


@pytest.mark.parametrize(("world_size", "accumulation"), [(1, 1), (2, 1), (1, 3), (4, 2), (8, 2)])
def test_any_number_of_ranks_and_micro_steps_takes_the_same_rows_once(world_size, accumulation):
    lengths = np.array([4, 5, 6, 7, 8, 9, 10, 11, 12, 30])
    step = np.array([9, 0, 3, 5, 7, 2, 1])
    taken = []
    for micro_step, rank in itertools.product(range(accumulation), range(world_size)):
        batches = step_batches(
            step,
            lengths,
            lambda numbers: rows_of(lengths, numbers),
            RowLayout("valid", 64, 0),
            rank=rank,
            world_size=world_size,
            accumulation=accumulation,
        )
        assert len(batches) == accumulation
        batch = batches[micro_step]
        assert batch.input_ids.shape[1] == 32  # the longest row of the whole step has 30
        own = batch.sample_ids[batch.sample_ids >= 0].tolist()
        assert [row[0] - 100 for row in batch.input_ids[batch.sample_ids >= 0].tolist()] == own
        taken += own
        if own:
            assert batch.counts.tokens == 72 / (world_size * accumulation)
    assert taken == step.tolist()  # parts in the order micro step, rank


def test_a_rank_without_rows_gets_a_filler_row_that_counts_for_nothing():
    lengths = np.array([4, 6])
    (batch,) = step_batches(
        np.array([1, 0]),
        lengths,
        lambda numbers: rows_of(lengths, numbers),
        RowLayout("valid", 64, 0),
        rank=0,
        world_size=4,
        accumulation=1,
    )
    assert batch.sample_ids.tolist() == [-1]
    assert batch.input_ids.tolist() == [[101] * 6 + [0] * 2]
    assert batch.counts == Counts(*[float("inf")] * len(Counts._fields))
    assert token_counts(batch) == (0, 8)


def test_token_counts_tell_real_tokens_from_computed_ones():
    lengths = np.array([3, 7])
    batch = collate(rows_of(lengths, np.array([0, 1])), 8, RowLayout("valid", 8, 0), ONE)
    assert token_counts(batch) == (10, 16)


def test_prefetch_hands_on_every_item_in_order():
    assert list(prefetch(iter(range(50)))) == list(range(50))


def test_prefetch_raises_the_error_of_the_iterator_at_its_place():
    def items():
        yield 1
        yield 2
        raise KeyError("third")

    drawn = prefetch(items())
    assert [next(drawn), next(drawn)] == [1, 2]
    with pytest.raises(KeyError, match="third"):
        next(drawn)


def test_prefetch_runs_at_most_depth_items_ahead():
    made = []

    def items():
        for number in itertools.count():
            made.append(number)
            yield number

    drawn = prefetch(items(), depth=2)
    assert next(drawn) == 0
    time.sleep(0.3)
    assert len(made) <= 4  # one taken, two waiting, one in hand
    drawn.close()


def test_closing_prefetch_ends_its_thread():
    before = threading.active_count()
    drawn = prefetch(itertools.count())
    next(drawn)
    assert threading.active_count() == before + 1
    drawn.close()
    assert threading.active_count() == before
