"""Faults in the data and the numbers: a message on rank 0, every rank ends, the last good checkpoint stands."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import time
from functools import partial

import pytest

from tests.support.configs import zero_config
from tests.support.runs import exit_codes, free_port, kill_ranks, start_ranks, wait_for_step
from tests.support.sabotage import change_environment, die_preparing, leave_at_once
from tinybert_ds.errors import EXIT_FAULT, EXIT_USER_ERROR

RANKS = 2
QUICK = {1: leave_at_once}


@pytest.fixture
def run(general, tmp_path):
    """Return a function that starts a run of ten thousand steps on two ranks and waits for the fourth."""

    def start(*more):
        words = [*general, "--max_steps", 10_000, "--save_steps", 3, *more]
        words += ["--output_dir", tmp_path / "out", "--deepspeed_config", zero_config(tmp_path / "ds.json", stage=2)]
        processes = start_ranks("general_distill", words, RANKS, tmp_path / "log", QUICK)
        wait_for_step(tmp_path / "out", 4, processes, tmp_path / "log")
        return processes

    return start


def said(tmp_path):
    return (tmp_path / "log.rank0").read_text()


def checkpoints(tmp_path):
    directory = tmp_path / "out" / "checkpoints"
    return sorted(path.parent.name for path in directory.glob("step-*/complete.json"))


def test_a_shard_that_is_cut_while_it_is_read_stops_all_ranks_with_its_name(inputs, run, tmp_path):
    shutil.copytree(inputs / "shards", tmp_path / "shards")
    processes = run("--pregenerated_data", tmp_path / "shards")
    shard = next((tmp_path / "shards").glob("*.bin"))
    os.truncate(shard, 1000)
    assert exit_codes(processes) == [EXIT_USER_ERROR] * RANKS, said(tmp_path)
    assert f"the shard file '{shard}' was changed while it was read" in said(tmp_path)
    assert "Traceback" not in said(tmp_path)
    assert checkpoints(tmp_path)


def test_a_disk_that_is_full_for_one_rank_stops_all_ranks_and_the_last_checkpoint_stands(run, tmp_path):
    processes = run()
    before = checkpoints(tmp_path)
    resource.prlimit(processes[1].pid, resource.RLIMIT_FSIZE, (30_000, 30_000))
    assert exit_codes(processes) == [EXIT_USER_ERROR] * RANKS, said(tmp_path)
    assert f"a checkpoint could not be written ({tmp_path}/out/checkpoints/step-" in said(tmp_path)
    assert "/zero_pp_rank_1_" in said(tmp_path)
    last = checkpoints(tmp_path)[-1]
    assert last >= before[-1]
    assert f"The last good checkpoint is {tmp_path}/out/checkpoints/{last}: make room" in said(tmp_path)


def test_numbers_that_are_none_are_noticed_before_they_are_saved_though_nothing_is_logged(general, tmp_path):
    words = [*general, "--output_dir", tmp_path / "out", "--logging_steps", 1000, "--save_steps", 1]
    words += ["--learning_rate", 1e25, "--max_grad_norm", 0, "--lr_schedule", "constant", "--eval_fraction", 0]
    processes = start_ranks("general_distill", words, RANKS, tmp_path / "log", QUICK)
    assert exit_codes(processes) == [EXIT_USER_ERROR] * RANKS, said(tmp_path)
    assert "at step 2 is nan" in said(tmp_path)
    assert "The last good checkpoint is" in said(tmp_path)
    assert checkpoints(tmp_path) == ["step-00000001"]


def test_a_rank_that_looks_for_the_others_at_a_port_where_nobody_is_and_the_others_leave_in_time(general, tmp_path):
    shortly = {"TINYBERT_DS_START_SECONDS": "3"}
    places = {
        0: partial(change_environment, shortly),
        1: partial(change_environment, {**shortly, "MASTER_PORT": str(free_port())}),
    }
    begin = time.monotonic()
    words = [*general, "--output_dir", tmp_path / "out"]
    processes = start_ranks("general_distill", words, RANKS, tmp_path / "log", places)
    assert exit_codes(processes, timeout=60) == [EXIT_FAULT] * RANKS, said(tmp_path)
    assert time.monotonic() - begin < 45
    assert "not all of the 2 ranks came within 3 s; missing: 1" in said(tmp_path)
    other = (tmp_path / "log.rank1").read_text()
    assert "rank 0 does not answer at 127.0.0.1:" in other
    assert "Traceback" not in other


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"WORLD_SIZE": None}, "WORLD_SIZE is not set"),
        ({"WORLD_SIZE": "x"}, "WORLD_SIZE is 'x'"),
        ({"RANK": "2", "LOCAL_RANK": "2"}, "RANK is 2 and WORLD_SIZE is 2"),  # not local rank 0, and yet told
        ({"MASTER_PORT": None}, "MASTER_PORT is not set"),
    ],
)
def test_a_rank_whose_place_is_no_place_is_told_which_variable_is_wrong(general, tmp_path, changes, message):
    words = [*general, "--output_dir", tmp_path / "out"]
    sabotage = {0: partial(change_environment, changes)}
    processes = start_ranks("general_distill", words, RANKS, tmp_path / "log", sabotage)
    deadline = time.monotonic() + 60
    while processes[0].is_alive() and time.monotonic() < deadline:
        time.sleep(0.05)
    kill_ranks(processes[1:])
    assert exit_codes(processes[:1]) == [EXIT_USER_ERROR], said(tmp_path)
    assert message in said(tmp_path)
    assert "Traceback" not in said(tmp_path)


def test_a_rank_that_dies_before_training_is_told_of_in_a_sentence(general, tmp_path):
    words = [*general, "--output_dir", tmp_path / "out"]
    processes = start_ranks("general_distill", words, RANKS, tmp_path / "log", {1: die_preparing})
    assert exit_codes(processes) == [EXIT_FAULT, -signal.SIGKILL], said(tmp_path)
    assert "contact with another rank is lost" in said(tmp_path)
    assert "Traceback" not in said(tmp_path)


def test_a_rank_that_stands_still_ends_the_run_with_the_stacks_of_every_rank(run, tmp_path):
    processes = run("--stall_timeout_seconds", 2)
    os.kill(processes[1].pid, signal.SIGSTOP)
    deadline = time.monotonic() + 60
    while processes[0].is_alive() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(processes[1].pid, signal.SIGCONT)
    assert exit_codes(processes) == [EXIT_FAULT] * RANKS, said(tmp_path)
    assert "nothing has moved for 2 s (--stall_timeout_seconds) since step " in said(tmp_path)
    stacks = [path.read_text() for path in sorted((tmp_path / "out" / "stalls").iterdir())]
    assert len(stacks) == RANKS
    assert all("loop.py" in stack for stack in stacks)
    assert checkpoints(tmp_path)
