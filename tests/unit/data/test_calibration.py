"""Calibration text: the first rows of a source, in blocks of at most 32."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tinybert_ds.data.calibration import calibration_blocks
from tinybert_ds.data.task_batches import EncodedExamples, TaskSource
from tinybert_ds.errors import DataError


class Nothing:
    def steps_in_epoch(self, epoch):
        return 0


def source(rows=100, *, batch_size=40):
    """Return rows of 5 tokens, all of them the row's number."""
    tokens = np.repeat(np.arange(rows, dtype=np.int32), 5)
    encoded = EncodedExamples(tokens, 5 * np.arange(rows + 1), np.full(rows, 5, dtype=np.int32), np.zeros(rows, int))
    return TaskSource(encoded, global_batch_size=batch_size, max_seq_length=8, seed=0, padding="valid", pad_id=0)


def rows_of(blocks):
    return [int(row[0]) for block in blocks for row in block.input_ids]


def test_blocks_are_the_rows_of_the_first_steps_cut_to_32_at_most():
    blocks = calibration_blocks(source(), 200)
    assert [len(block.input_ids) for block in blocks] == [20, 20]
    first_step = source().micro_batches(0, 0, rank=0, world_size=1, accumulation=1)[0]
    assert torch.equal(torch.cat([block.input_ids for block in blocks]), first_step.input_ids)


def test_the_block_that_reaches_the_number_of_tokens_is_the_last():
    assert len(calibration_blocks(source(), 100)) == 1
    assert len(calibration_blocks(source(), 101)) == 2


def test_a_source_with_less_text_gives_every_row_once():
    assert sorted(rows_of(calibration_blocks(source(), 10**9))) == list(range(100))


def test_a_source_without_rows_is_refused():
    with pytest.raises(DataError, match="no text"):
        calibration_blocks(Nothing(), 10)


def test_token_types_that_no_tokeniser_returns_are_those_of_one_text():
    tokens = np.arange(10, dtype=np.int32)
    encoded = EncodedExamples(tokens, np.array([0, 5, 10]), np.full(2, 3, dtype=np.int32), np.zeros(2, int))
    pairs = TaskSource(encoded, global_batch_size=2, max_seq_length=8, seed=0, padding="valid", pad_id=0)
    (with_types,), (without,) = (calibration_blocks(pairs, 1, token_types=types) for types in (True, False))
    assert with_types.token_type_ids.sum() == 4
    assert without.token_type_ids.sum() == 0
