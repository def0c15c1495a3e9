"""A run that was killed goes on as if it had not been."""

from __future__ import annotations

import json
import shutil
import signal
from functools import partial

import pytest

from tests.support.configs import zero_config
from tests.support.fixtures import with_student
from tests.support.runs import (
    exit_codes,
    kill_ranks,
    read_metrics,
    run_ranks,
    start_ranks,
    wait_for_step,
    wait_ranks,
)
from tests.support.sabotage import die_writing_checkpoint
from tinybert_ds.errors import EXIT_FAULT


def steps_of(directory):
    return sorted(path.name for path in (directory / "checkpoints").glob("step-*"))


def test_a_run_killed_on_two_ranks_goes_on_bit_for_bit_dropout_included(inputs, general, tmp_path):
    config = zero_config(tmp_path / "ds.json", stage=2)
    student = inputs / "student_with_dropout"
    arguments = [*with_student(general, student), "--deepspeed_config", config, "--output_dir"]
    stage_name = "general_distill"
    run_ranks(stage_name, [*arguments, tmp_path / "whole"], world_size=2, log=tmp_path / "whole.log").check()
    for attempt, step in enumerate((3, 18)):  # before the first checkpoint, and between two
        log = tmp_path / f"killed{attempt}.log"
        processes = start_ranks(stage_name, [*arguments, tmp_path / "killed"], 2, log)
        wait_for_step(tmp_path / "killed", step, processes, log)
        kill_ranks(processes)
        wait_ranks(processes, log)
        assert json.loads((tmp_path / "killed" / "run.json").read_text())["finished"] is None
    log = tmp_path / "resumed.log"
    output = run_ranks(stage_name, [*arguments, tmp_path / "killed"], world_size=2, log=log).check().output
    assert "resumed from" in output
    assert read_metrics(tmp_path / "killed") == read_metrics(tmp_path / "whole")
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "killed")]
    assert weights[0] == weights[1]
    assert steps_of(tmp_path / "killed") == ["step-00000035", "step-00000040"]  # --save_total_limit 2


@pytest.mark.parametrize(
    ("world_size", "stage", "bf16", "killed"),
    [(2, 2, False, 0), pytest.param(2, 3, False, 1, marks=pytest.mark.exhaustive), (1, 1, True, 0)],
)
def test_a_rank_killed_while_it_saves_costs_the_steps_since_the_checkpoint_before(
    general, tmp_path, world_size, stage, bf16, killed
):
    config = zero_config(tmp_path / "ds.json", stage=stage, bf16=bf16)
    arguments = [*general, "--max_steps", 16, "--deepspeed_config", config, "--output_dir"]
    stage_name = "general_distill"
    run_ranks(stage_name, [*arguments, tmp_path / "whole"], world_size=world_size, log=tmp_path / "whole.log").check()
    log = tmp_path / "killed.log"
    sabotage = {killed: partial(die_writing_checkpoint, "step-00000014")}
    processes = start_ranks(stage_name, [*arguments, tmp_path / "killed"], world_size, log, sabotage)
    codes = exit_codes(processes)
    assert codes[killed] == -signal.SIGKILL
    if world_size > 1:
        assert codes[1 - killed] == EXIT_FAULT
        told = log.with_suffix(f".rank{1 - killed}").read_text()
        assert "contact with another rank is lost" in told
        assert "checkpoints/step-00000007: start the same command again" in told
    log = tmp_path / "resumed.log"
    words = [*arguments, tmp_path / "killed"]
    output = run_ranks(stage_name, words, world_size=world_size, log=log).check().output
    assert "step-00000014 is incomplete; falling back to step-00000007" in output
    assert read_metrics(tmp_path / "killed") == read_metrics(tmp_path / "whole")
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "killed")]
    assert weights[0] == weights[1]


def test_a_torn_checkpoint_is_passed_over_and_said_so_and_a_finished_run_does_nothing(general, one_rank, tmp_path):
    arguments = [*general, "--output_dir", tmp_path / "out"]
    stage_name = "general_distill"
    run_ranks(stage_name, arguments, log=tmp_path / "first").check()
    weights = (tmp_path / "out" / "model.safetensors").read_bytes()

    again = run_ranks(stage_name, arguments, log=tmp_path / "again").check()
    assert "is finished (40 steps); nothing to do" in again.output

    record = json.loads((tmp_path / "out" / "run.json").read_text())
    record["finished"] = None  # as if the run had been killed while it wrote its last checkpoint
    (tmp_path / "out" / "run.json").write_text(json.dumps(record))
    torn = next((tmp_path / "out" / "checkpoints" / "step-00000040").glob("*.pt"))
    torn.write_bytes(torn.read_bytes()[:-1])
    output = run_ranks(stage_name, arguments, log=tmp_path / "third").check().output
    assert "step-00000040 is incomplete; falling back to step-00000035" in output
    assert read_metrics(tmp_path / "out") == one_rank
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == weights


def test_a_run_goes_on_from_a_stated_checkpoint_and_gives_up_the_newer_ones(general, one_rank, tmp_path):
    arguments = [*general, "--output_dir", tmp_path / "out", "--save_total_limit", 9]
    run_ranks("general_distill", [*arguments, "--max_steps", 21], log=tmp_path / "first").check()
    older = tmp_path / "out" / "checkpoints" / "step-00000007"
    words = [*arguments, "--max_steps", 10, "--resume", older]
    run_ranks("general_distill", words, log=tmp_path / "second").check()
    assert steps_of(tmp_path / "out") == ["step-00000007", "step-00000010"]
    assert (tmp_path / "out" / "checkpoints" / "latest").read_text() == "step-00000010"
    steps = [line["step"] for line in read_metrics(tmp_path / "out") if "samples" in line]
    assert steps == list(range(1, 11))

    shutil.rmtree(older)
    words = [*arguments, "--max_steps", 12, "--resume", older]
    run_ranks("general_distill", words, log=tmp_path / "again").check()
    assert steps_of(tmp_path / "out") == ["step-00000010", "step-00000012"]

    beyond = run_ranks("general_distill", [*arguments, "--max_steps", 5], log=tmp_path / "third")
    assert beyond.returncode == 2
    assert "is at step 12, beyond the 5" in beyond.output
