"""Stopping on request, and going on with another number of ranks and another ZeRO stage."""

from __future__ import annotations

import os
import signal
from functools import partial

import pytest

from tests.support.configs import zero_config
from tests.support.runs import exit_codes, read_metrics, run_ranks, start_ranks, wait_for_step
from tests.support.sabotage import ask_to_stop_writing_checkpoint, ask_to_stop_writing_results
from tinybert_ds.errors import EXIT_PREEMPTED


def test_a_run_goes_from_two_ranks_to_one_and_back_stopped_by_signals_and_gives_the_losses_of_one(
    general, one_rank, tmp_path
):
    """The rows of the steps go on where they stopped: a row lost or taken twice would change the losses."""
    arguments = [*general, "--output_dir", tmp_path / "out", "--deepspeed_config"]
    launches = [(2, 2, 3, signal.SIGUSR1, 1), (1, 1, 17, signal.SIGTERM, 0)]
    for world_size, stage, step, number, rank in launches:
        log = tmp_path / f"ranks{world_size}.log"
        words = [*arguments, zero_config(tmp_path / f"ds{stage}.json", stage=stage)]
        processes = start_ranks("general_distill", words, world_size, log)
        wait_for_step(tmp_path / "out", step, processes, log)
        pid = processes[rank].pid
        assert pid is not None
        os.kill(pid, number)
        assert exit_codes(processes) == [EXIT_PREEMPTED] * world_size, log.with_suffix(".rank0").read_text()
        stopped_at = read_metrics(tmp_path / "out")[-1]["step"]
        assert step <= stopped_at < step + 14, "it should stop after the step in which the signal comes"
        told = log.with_suffix(".rank0").read_text()
        assert f"preempted at step {stopped_at} with everything saved; start the same command again" in told
        assert (tmp_path / "out" / "checkpoints" / "latest").read_text() == f"step-{stopped_at:08d}"
    words = [*arguments, zero_config(tmp_path / "ds2.json", stage=2)]
    output = run_ranks("general_distill", words, world_size=2, log=tmp_path / "last.log").check().output
    assert "written with 1 rank(s), ZeRO stage 1, float32; it was converted for 2 rank(s), ZeRO stage 2" in output
    assert "world_size was 1, now 2" in output
    metrics = read_metrics(tmp_path / "out")
    assert [line["step"] for line in metrics] == [line["step"] for line in one_rank]
    for line, expected in zip(metrics, one_rank, strict=True):
        for name in expected.keys() & {"loss", "grad_norm", "learning_rate", "eval_loss", "samples"}:
            assert line[name] == pytest.approx(expected[name], rel=5e-5), (name, line["step"])
    assert not list((tmp_path / "out" / "checkpoints").glob(".universal*"))


def test_a_run_that_is_asked_to_stop_while_it_saves_its_last_step_leaves_and_the_next_start_finishes_it(
    general, tmp_path
):
    words = [*general, "--output_dir", tmp_path / "out", "--max_steps", 2, "--preempt_grace_seconds", 10]
    words += ["--deepspeed_config", zero_config(tmp_path / "ds.json", stage=2)]  # with which both ranks write
    sabotage = {1: partial(ask_to_stop_writing_checkpoint, "step-00000002")}
    processes = start_ranks("general_distill", words, 2, tmp_path / "log", sabotage)
    told = (tmp_path / "log.rank0").read_text
    assert exit_codes(processes) == [EXIT_PREEMPTED] * 2, told()
    assert "preempted at step 2 with everything saved; start the same command again" in told()
    assert not (tmp_path / "out" / "model.safetensors").exists()
    assert "(step 2)" in run_ranks("general_distill", words, world_size=2, log=tmp_path / "again").check().output
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_a_run_that_is_asked_to_stop_while_it_writes_its_results_ends_well(general, tmp_path):
    words = [*general, "--output_dir", tmp_path / "out", "--max_steps", 2]
    processes = start_ranks("general_distill", words, 1, tmp_path / "log", {0: ask_to_stop_writing_results})
    assert exit_codes(processes) == [0], (tmp_path / "log.rank0").read_text()
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_zero_3_goes_on_with_another_number_of_ranks(general, tmp_path):
    """With weight decay, and long enough after the change for a wrong step count of Adam to show."""
    config = zero_config(tmp_path / "ds3.json", stage=3)
    same = [*general, "--deepspeed_config", config, "--lr_schedule", "constant", "--weight_decay", 1.0]
    whole, split = ([*same, "--output_dir", tmp_path / name, "--max_steps"] for name in ("whole", "split"))
    run_ranks("general_distill", [*whole, 8], log=tmp_path / "whole.log").check()
    run_ranks("general_distill", [*split, 3], world_size=2, log=tmp_path / "two.log").check()
    run_ranks("general_distill", [*split, 8], log=tmp_path / "one.log").check()
    losses = [[line["loss"] for line in read_metrics(tmp_path / name) if "loss" in line] for name in ("whole", "split")]
    assert losses[1] == pytest.approx(losses[0], rel=2e-5)


def test_a_zero_stage_that_cannot_be_reached_is_refused_with_both(general, tmp_path):
    arguments = [*general, "--output_dir", tmp_path / "out", "--lr_schedule", "constant", "--deepspeed_config"]
    first = zero_config(tmp_path / "ds2.json", stage=2)
    run_ranks("general_distill", [*arguments, first, "--max_steps", 1], log=tmp_path / "first").check()
    second = zero_config(tmp_path / "ds0.json", stage=0)
    refused = run_ranks("general_distill", [*arguments, second, "--max_steps", 2], log=tmp_path / "second")
    assert refused.returncode == 2
    assert "with 1 rank(s), ZeRO stage 2, float32; this launch has 1 rank(s), ZeRO stage 0, float32" in refused.output
