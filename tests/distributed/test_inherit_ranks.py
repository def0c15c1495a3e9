"""A student started by several ranks together has the bytes of one started alone."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
from torch import multiprocessing

from tests.support.inheriting import inherit
from tests.support.models import random_batch, tiny_model
from tinybert_ds.engine.ranks.exchange import RankExchange
from tinybert_ds.engine.ranks.process_group import World
from tinybert_ds.models.inherit.blocks import Blocks

SIZE = 3


def start(rank, size, directory):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{directory}/meeting-{size}", rank=rank, world_size=size)
    world = World(rank, size, rank, torch.device("cpu"))
    teacher, student = tiny_model(labels=["bad", "good"]), tiny_model(labels=["bad", "good"], hidden_size=24, seed=rank)
    text = [random_batch([24, 9, 17], seed=number) for number in range(20)]
    inheritance = inherit(teacher, student, (0, 1, 2, 3, 4), Blocks(text, directory, exchange=RankExchange(world)))
    torch.save(student.state_dict() | inheritance.projections, directory / f"student-{size}-{rank}.pt")
    dist.destroy_process_group()


def test_any_number_of_ranks_starts_the_same_student_on_each_of_them(tmp_path: Path):
    for size in (1, SIZE):
        multiprocessing.spawn(start, (size, tmp_path), nprocs=size)
    expected = torch.load(tmp_path / "student-1-0.pt")
    for rank in range(SIZE):
        found = torch.load(tmp_path / f"student-{SIZE}-{rank}.pt")
        assert [name for name, value in expected.items() if not torch.equal(found[name], value)] == []
