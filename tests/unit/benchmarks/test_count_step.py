"""Counting a step without a GPU: what an operator counts as, and that a replay is few launches."""

from __future__ import annotations

import pytest
import torch

from tests.benchmarks.count_step import Case, configs, count_models, modules
from tests.benchmarks.launch_counter import HALF_FLOPS, LEAST_SECONDS, LaunchCounter


def test_products_copies_and_views_are_counted_for_what_they_move_and_multiply():
    left, right = (torch.empty(shape, dtype=torch.bfloat16, device="meta") for shape in ((512, 1024), (1024, 2048)))
    with LaunchCounter() as counter:
        product = left @ right
        product.t().reshape(-1).detach()  # transposed: a copy
        product.view(-1)
    tally = counter.tally
    moved = 2 * (512 * 1024 + 1024 * 2048 + 512 * 2048)
    assert tally.launches == 2
    assert tally.bytes == moved + 2 * 2 * 512 * 2048
    assert tally.flops == 2 * 512 * 1024 * 2048
    assert tally.seconds == pytest.approx(tally.flops / HALF_FLOPS + LEAST_SECONDS, rel=0.5)


def test_a_recorded_step_is_few_launches_of_the_same_work():
    tallies = []
    for recorded in (False, True):
        teacher, student = modules(*configs(24), device="meta")
        models = teacher.half(), student.bfloat16()
        tallies.append(count_models(Case(4, 16), *models, recorded=recorded))
    launched, replayed = tallies
    assert sum(part.launches for part in launched.values()) > 500
    assert sum(part.launches for part in replayed.values()) <= 30
    for name, part in launched.items():
        assert replayed[name].flops == part.flops, name
