"""The check for GPUs, run dry: each of its parts does something, and what fails is counted."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.gpu import check
from tests.gpu.commands import part_stages
from tests.gpu.step import Check
from tests.gpu.sweep import SWEEPS
from tests.support.runs import ROOT


def test_parts_that_need_no_engine_pass_dry(capsys):
    assert check.main(["--dry", "attention", "kernels", "layers", "ranks"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len([line for line in lines if line.startswith("PASS")]) >= 18
    assert not [line for line in lines if line.startswith("FAIL")]


def test_a_part_that_raises_fails_and_the_others_run(monkeypatch, capsys):
    monkeypatch.setitem(check.PARTS, "env", lambda checked: 1 / 0)
    assert check.main(["--dry", "env", "ranks"]) == 1
    out = capsys.readouterr().out
    assert "FAIL env: Traceback" in out
    assert "ZeroDivisionError" in out
    assert "PASS two ranks" in out


def test_unknown_parts_are_named_and_all_limits_are_within_eight_minutes(capsys):
    with pytest.raises(SystemExit):
        check.main(["--dry", "nothing"])
    assert "unknown part nothing; there are env, losses" in capsys.readouterr().err
    assert sum(check.LIMITS.values()) <= 480


def test_a_sweep_runs_every_kernel_dry_as_it_is_chosen_and_otherwise():
    command = [sys.executable, "tests/gpu/sweep.py", "--dry"]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert finished.returncode == 0, finished.stderr[-2000:]
    lines = [line for line in finished.stdout.splitlines() if " ms, " in line]
    assert [line.partition(":")[0] for line in lines] == [name for name in SWEEPS for _ in range(2)]
    assert sum(line.endswith("chosen") for line in lines) == len(SWEEPS)


@pytest.mark.exhaustive
def test_the_commands_of_every_stage_run_as_they_are_written(monkeypatch):
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    checked = Check(dry=False)
    part_stages(checked)
    assert not checked.failed


@pytest.mark.slow
def test_every_part_passes_dry():
    command = [sys.executable, "tests/gpu/check.py", "--dry"]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=600)
    assert finished.returncode == 0, finished.stdout[-4000:] + finished.stderr[-2000:]
    for name in check.PARTS:
        assert f"== {name}:" in finished.stdout
