"""Counting a step without a GPU: what an operator counts as, and that a replay is few launches."""

from __future__ import annotations

import pytest
import torch

from tests.benchmarks.count_step import Case, configs, count_models, hidden_loss_in_chunks, modules
from tests.benchmarks.launch_counter import HALF_FLOPS, LEAST_SECONDS, LaunchCounter, counting
from tinybert_ds.losses import gradients_only, hidden_state_loss


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


def test_what_is_only_made_like_a_tensor_or_of_some_of_its_rows_does_not_read_it_whole():
    table, places = torch.empty(1000, 64, device="meta"), torch.zeros(8, dtype=torch.int64, device="meta")
    with LaunchCounter() as counter:
        torch.zeros_like(table)
        table.new_ones(1, 64)
        torch.nn.functional.embedding(places, table)
    assert counter.tally.launches == 3
    assert counter.tally.bytes == 4 * 64 * (1000 + 1 + 8)


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


def hidden_loss_tally(rows, length, student_width, teacher_width):
    """Return what the hidden loss of a padded bfloat16 student takes, forward and backward."""
    how = {"device": "meta", "dtype": torch.bfloat16}
    shapes = (rows, length, student_width), (teacher_width, student_width), (teacher_width,)
    counter = LaunchCounter()
    with counting(counter), gradients_only():
        student, weight, bias = (torch.empty(shape, **how, requires_grad=True) for shape in shapes)
        teacher = torch.empty(rows, length, teacher_width, device="meta", dtype=torch.float16)
        mask = torch.empty(rows, length, device="meta", dtype=torch.bool)
        hidden_state_loss(student, teacher, weight, bias, mask, denominator=3.0).backward()
    return counter.tally


def test_the_kernel_of_the_hidden_loss_moves_a_third_of_what_chunks_move():
    tokens, student, teacher = 256 * 128, 312, 768
    kernel = hidden_loss_tally(256, 128, student, teacher)
    with hidden_loss_in_chunks():
        chunks = hidden_loss_tally(256, 128, student, teacher)
    # States are read twice, their gradient written, read and written; residuals written once and read twice.
    assert kernel.bytes == pytest.approx(2 * tokens * (5 * student + 4 * teacher), rel=0.05)
    assert kernel.bytes < chunks.bytes / 3
    assert kernel.launches < chunks.launches * 0.6
    assert kernel.flops == chunks.flops == 3 * 2 * tokens * student * teacher
