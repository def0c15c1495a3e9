"""Sums over blocks: the same bytes for any number of ranks, each block measured once, states kept."""

from __future__ import annotations

import errno
from functools import reduce
from operator import add
from pathlib import Path

import pytest
import torch

from tests.support.inheriting import inherit
from tests.support.models import random_batch, tiny_model
from tinybert_ds.errors import FileError, ModelError
from tinybert_ds.models.inherit.blocks import LANES, Alone, Blocks

VALUES = [10.0 ** (number % 7) / (number + 3) for number in range(40)]  # whose sum depends on its order


class Rank:
    """One of several ranks that run one after the other: what the others sent is played back."""

    def __init__(self, rank, size, sent):
        self.rank, self.size, self.sent = rank, size, sent
        self.place = 0

    def broadcast(self, tensors, source):
        key, self.place = (source, self.place), self.place + 1
        if tensors is not None:
            self.sent[key] = tensors
        return self.sent.get(key, {})


def sum_on(size, directory, count=40):
    """Return the sum that each of `size` ranks gets and the numbers of the blocks that each measured."""
    batches = [random_batch([3])] * count
    sent, results, measured = {}, [], []
    for _ in range(2):  # the second time everything that is sent is known
        results, measured = [], []
        for rank in range(size):
            own = []

            def measure(number, own=own):
                own.append(number)
                return {"value": torch.tensor(VALUES[number], dtype=torch.float64)}

            blocks = Blocks(batches, directory, exchange=Rank(rank, size, sent))
            results.append(blocks.sum(measure).get("value"))
            measured.append(own)
    return results, measured


@pytest.mark.parametrize("size", [1, 2, 3, 7, LANES, LANES + 5])
def test_any_number_of_ranks_gives_the_same_bytes_and_measures_each_block_once(size, tmp_path):
    (expected,), _ = sum_on(1, tmp_path)
    results, measured = sum_on(size, tmp_path)
    assert [result.item() for result in results] == [expected.item()] * size
    assert sorted(number for own in measured for number in own) == list(range(40))


def test_a_plain_sum_would_depend_on_the_order():
    assert reduce(add, VALUES) != reduce(add, reversed(VALUES))


def test_fewer_blocks_are_the_first_ones(tmp_path):
    batches, measured = [random_batch([5, 5])] * 10, []
    blocks = Blocks(batches, tmp_path)
    blocks.sum(lambda number: measured.append(number) or {}, up_to_tokens=30)
    assert measured == [0, 1, 2]
    blocks.sum(lambda number: measured.append(number) or {}, up_to_tokens=1)
    assert measured[3:] == [0]


def test_states_are_kept_by_block_and_name_in_their_precision(tmp_path):
    blocks = Blocks([random_batch([2]), random_batch([3])], tmp_path)
    first, second = torch.randn(2, 4).to(torch.bfloat16), torch.randn(3, 4)
    blocks.keep(0, "student", torch.zeros(2, 4))
    blocks.keep(0, "student", first)
    blocks.keep(1, "student", second)
    assert blocks.kept(0, "student").dtype is torch.bfloat16
    assert torch.equal(blocks.kept(0, "student"), first)
    assert torch.equal(blocks.kept(1, "student"), second)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_sum_that_is_not_finite_is_told(value, tmp_path):
    blocks = Blocks([random_batch([2])] * 3, tmp_path)
    with pytest.raises(ModelError, match=r"not finite.*--teacher_dtype fp32"):
        blocks.sum(lambda number: {"fine": torch.ones(2), "value": torch.tensor([1.0, value if number else 1.0])})


def test_a_full_disk_is_told_with_what_would_help(tmp_path, monkeypatch):
    def full(path, content):
        raise OSError(errno.ENOSPC, "No space left on device")

    blocks = Blocks([random_batch([2])] * 512, tmp_path)
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(FileError, match=r"No space left on device .*one state of the whole text takes 4 MB.*TMPDIR"):
        blocks.keep(0, "student", torch.zeros(2, 1024))


def test_progress_counts_each_block_of_each_sum(tmp_path):
    seen = []
    blocks = Blocks([random_batch([2])] * 5, tmp_path, advance=seen.append)
    blocks.sum(lambda number: {})
    assert sum(seen) == 5


def test_what_one_rank_solved_is_everybodys(tmp_path):
    sent = {}
    own = [torch.tensor([1.0]), torch.tensor([2.0])]
    Blocks([random_batch([2])], tmp_path, exchange=Rank(0, 2, sent)).agree(own)
    other = [torch.tensor([1.5]), torch.tensor([2.5])]
    Blocks([random_batch([2])], tmp_path, exchange=Rank(1, 2, sent)).agree(other)
    assert [value.item() for value in other] == [1.0, 2.0]


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2])
def test_a_student_has_the_same_bytes_twice(threads, tmp_path):
    def weights():
        student = tiny_model(hidden_size=24, intermediate_size=32, num_hidden_layers=2, seed=3)
        text = [random_batch([24, 9, 17], seed=number) for number in range(5)]
        inherit(tiny_model(), student, (0, 2, 4), Blocks(text, tmp_path, exchange=Alone()))
        return student.state_dict()

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        first, second = weights(), weights()
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(value, second[name]) for name, value in first.items())
