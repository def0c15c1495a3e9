"""Any number of ranks and micro-batches gives the losses of one."""

from __future__ import annotations

import itertools
import os
from functools import partial

import pytest
from safetensors.torch import load_file

from tests.support.configs import zero_config
from tests.support.runs import free_port, read_metrics, run_command_line, run_ranks, start_ranks, wait_ranks
from tests.support.sabotage import change_environment
from tinybert_ds.engine.ds_config import CONFIG_DIRECTORY

LOSSES = ("loss", "attention_loss", "hidden_loss", "grad_norm", "eval_loss")


def assert_same_losses(metrics, reference, *, rel):
    assert [line["step"] for line in metrics] == [line["step"] for line in reference]
    for line, expected in zip(metrics, reference, strict=True):
        for name in LOSSES:
            if name in expected:
                assert line[name] == pytest.approx(expected[name], rel=rel), (name, line["step"])
        if "samples" in expected:
            assert (line["samples"], line["epoch"]) == (expected["samples"], expected["epoch"])


@pytest.mark.parametrize(("stage", "accumulation"), [(0, 1), (1, 3), (2, 2)])
def test_two_ranks_give_the_losses_of_one_rank_step_by_step(general, one_rank, tmp_path, stage, accumulation):
    arguments = [*general, "--output_dir", tmp_path / "out", "--gradient_accumulation_steps", accumulation]
    arguments += ["--deepspeed_config", zero_config(tmp_path / "ds.json", stage=stage)]
    run_ranks("general_distill", arguments, world_size=2, log=tmp_path / "log").check()
    assert_same_losses(read_metrics(tmp_path / "out"), one_rank, rel=2e-5)


def test_ranks_that_nobody_has_told_their_place_on_the_host_join_all_the_same(general, one_rank, tmp_path):
    arguments = [*general, "--output_dir", tmp_path / "out"]
    unset = partial(change_environment, {"LOCAL_RANK": None})
    processes = start_ranks("general_distill", arguments, 2, tmp_path / "log", {0: unset, 1: unset})
    wait_ranks(processes, tmp_path / "log").check()
    assert_same_losses(read_metrics(tmp_path / "out"), one_rank, rel=2e-5)


def test_tasks_of_srun_join_without_a_script_of_ours(general, one_rank, tmp_path):
    unset = dict.fromkeys(("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"))
    step = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2"}
    step |= {"SLURM_STEP_NUM_NODES": "1", "SLURM_STEP_NODELIST": "elsewhere", "PMIX_RANK": "0"}
    tasks = [
        partial(change_environment, {**unset, **step, "SLURM_PROCID": str(task), "SLURM_LOCALID": str(task)})
        for task in (0, 1)
    ]
    arguments = [*general, "--output_dir", tmp_path / "out"]
    processes = start_ranks("general_distill", arguments, 2, tmp_path / "log", dict(enumerate(tasks)))
    wait_ranks(processes, tmp_path / "log").check()
    assert_same_losses(read_metrics(tmp_path / "out"), one_rank, rel=2e-5)


def test_the_deepspeed_launchers_two_ranks_give_the_losses_of_one_rank(general, one_rank, tmp_path):
    config = CONFIG_DIRECTORY / "zero0_fp32.json"  # the default depends on the machine
    words = [*general, "--output_dir", tmp_path / "out", "--deepspeed_config", config]
    launcher = ["deepspeed", "--num_gpus", 2, "--master_port", free_port(), "launchers/general_distill.py"]
    run_command_line([*launcher, *words]).check()
    assert_same_losses(read_metrics(tmp_path / "out"), one_rank, rel=2e-5)


def test_the_reference_run_goes_through_uneven_rows_and_a_short_step(one_rank):
    steps = [line for line in one_rank if "samples" in line]
    sizes = {after["samples"] - before["samples"] for before, after in itertools.pairwise(steps)}
    assert 12 in sizes
    assert min(sizes) < 12, "no short step: the test above would prove less"
    assert len({round(line["padding_share"], 6) for line in steps}) > 5
    assert steps[-1]["epoch"] > 0
    assert steps[-1]["loss"] < 0.95 * steps[0]["loss"]


@pytest.mark.parametrize("bf16", [False, True])
def test_zero_on_one_rank_gives_the_losses_of_none(general, one_rank, tmp_path, bf16):
    arguments = [*general, "--output_dir", tmp_path / "out"]
    arguments += ["--deepspeed_config", zero_config(tmp_path / "ds.json", stage=2, bf16=bf16)]
    run_ranks("general_distill", arguments, log=tmp_path / "log").check()
    assert_same_losses(read_metrics(tmp_path / "out"), one_rank, rel=2e-2 if bf16 else 2e-5)


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_bf16_students_train_on_two_ranks_close_to_fp32(general, one_rank, tmp_path, stage):
    arguments = [*general, "--output_dir", tmp_path / "out"]
    arguments += ["--deepspeed_config", zero_config(tmp_path / "ds.json", stage=stage, bf16=True)]
    run_ranks("general_distill", arguments, world_size=2, log=tmp_path / "log").check()
    metrics = read_metrics(tmp_path / "out")
    assert metrics[0]["loss"] != one_rank[0]["loss"], "this was not bf16"
    assert_same_losses(metrics, one_rank, rel=2e-2)
    weights = load_file(tmp_path / "out" / "model.safetensors")
    rounded = [name for name, value in weights.items() if value.ndim > 1 and value.equal(value.bfloat16().float())]
    assert rounded == [], "rounded weights were saved, those of the untrained pooler among them perhaps"
