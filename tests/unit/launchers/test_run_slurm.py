"""run_slurm.sbatch with stand-ins for srun and scontrol: Slurm itself is on no machine that runs these tests."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.support.runs import ROOT

SRUN = """#!/usr/bin/env bash
# Two tasks on this machine; SIGUSR1 goes to all of them, SIGTERM kills them, as with the real one.
echo "srun $*" >>"$FAKE_LOG"
while [[ "$1" == --* ]]; do
    [ "$1" = --ntasks=1 ] && alone=1
    shift
done
[ -n "${alone:-}" ] && exec "$@"
tasks=()
for task in 0 1; do
    SLURM_PROCID=$task SLURM_LOCALID=$task SLURM_NTASKS=2 "$@" &
    tasks+=($!)
done
trap 'kill -s USR1 "${tasks[@]}"' USR1
trap 'kill -s KILL "${tasks[@]}"' TERM # "srun: forcing job termination"
worst=0
for task in "${tasks[@]}"; do
    code=0
    while true; do
        code=0
        wait "$task" || code=$?
        kill -0 "$task" 2>/dev/null || break
    done
    [ "$code" -gt "$worst" ] && worst=$code
done
exit "$worst"
"""
SCONTROL = """#!/usr/bin/env bash
echo "scontrol $*" >>"$FAKE_LOG"
[ "$1" = show ] && printf 'first\\nsecond\\n'
exit 0
"""
STAGE = """
import os, signal, sys, time
names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_SIZE", "MASTER_ADDR")
line = " ".join(f"{name}={os.environ[name]}" for name in names)
def save(number, frame):
    sys.exit(75)
if "--prepares" not in sys.argv:
    signal.signal(signal.SIGUSR1, save)
assert int(os.environ["MASTER_PORT"]) > 1023
with open(os.environ["FAKE_LOG"], "a") as log:
    log.write(f"rank {line} {sys.argv[1:]}\\n")
with open(os.environ["FAKE_LOG"] + ".secrets", "a") as log:
    log.write(f"{sorted(name for name in os.environ if name.startswith('MY_'))}\\n")
time.sleep(0 if "--quick" in sys.argv else 60)
sys.exit(3 if "--fails" in sys.argv else 0)
"""


@pytest.fixture
def job(tmp_path):
    """Return a function that starts a job, and its log."""
    (tmp_path / "bin").mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "launchers").mkdir()
    (tmp_path / "launchers" / "stage.py").write_text(STAGE)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "python").symlink_to(sys.executable)
    log = tmp_path / "log"
    log.touch()
    environment = {
        **os.environ,
        "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "FAKE_LOG": str(log),
        "PYTHONPATH": str(ROOT),
        "SLURM_JOB_ID": "17",
        "SLURM_JOB_NODELIST": "some[1-2]",
        "SLURM_NTASKS_PER_NODE": "2",
        "SLURM_SUBMIT_DIR": str(tmp_path),
    }
    processes = []

    def start(*words, **changes):
        command = ["bash", str(ROOT / "launchers" / "run_slurm.sbatch"), *words]
        process = subprocess.Popen(
            command, env={**environment, **changes}, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        processes.append(process)
        return process

    yield start, log
    for process in processes:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def test_every_rank_knows_its_place_and_the_first_node(job):
    start, log = job
    assert start("stage", "--quick", "--x", "1 2").wait(timeout=30) == 0
    ranks = sorted(line for line in log.read_text().splitlines() if line.startswith("rank"))
    where = "WORLD_SIZE=2 LOCAL_SIZE=2 MASTER_ADDR=first"
    assert ranks == [f"rank RANK={n} LOCAL_RANK={n} {where} ['--quick', '--x', '1 2']" for n in (0, 1)]
    assert "requeue" not in log.read_text()


@pytest.mark.parametrize("words", [("stage",), ("stage", "--prepares")])
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_preempted_job_saves_what_there_is_on_all_ranks_and_is_queued_again(job, number, words):
    start, log = job
    process = start(*words)
    deadline = time.monotonic() + 30
    while log.read_text().count("\nrank ") < 2:
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.02)
    process.send_signal(number)
    assert process.wait(timeout=30) == 75
    assert "scontrol requeue 17" in log.read_text()


SECRETS = {"MY_TOKEN": "s3cret", "MY_api_key": "s3cret", "MY_PLACE": "here"}


@pytest.mark.parametrize(
    ("words", "changes", "there"),
    [
        ((), {}, ["MY_PLACE"]),
        (("--forward", "MY_TOKEN"), {}, ["MY_PLACE", "MY_TOKEN"]),
        ((), {"SLURM_JOB_NUM_NODES": "1"}, ["MY_PLACE", "MY_TOKEN", "MY_api_key"]),
    ],
)
def test_ranks_of_other_nodes_get_secrets_only_where_they_are_named(job, words, changes, there):
    start, log = job
    process = start(*words, "stage", "--quick", **SECRETS, **changes)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
    assert log.with_name("log.secrets").read_text() == f"{there}\n" * 2
    assert "s3cret" not in errors
    assert ("launcher: not handed on to the nodes:" in errors) == (not changes)
    assert ("warning: MY_TOKEN (--forward)" in errors) == bool(words)


def test_a_job_that_fails_is_not_queued_again(job):
    start, log = job
    assert start("stage", "--quick", "--fails").wait(timeout=30) == 3
    assert "requeue" not in log.read_text()


def test_help_shows_how_to_submit_also_where_there_is_no_slurm():
    words = ["bash", str(ROOT / "launchers" / "run_slurm.sbatch"), "--help"]
    told = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert "sbatch --nodes 4" in told
    assert "\nSTAGE: general_distill" in told
    assert told.endswith("\n#SBATCH --signal=B:USR1@120\n")


@pytest.mark.parametrize(
    ("words", "changes", "message"),
    [
        ((), {}, "give a stage"),
        (("stages",), {}, "stages.py is not there"),
        (("stage",), {"SLURM_JOB_ID": ""}, "no Slurm job"),
        (("--forward",), {}, "--forward needs the name"),
        (("--forward", "GONE", "stage"), {}, "--forward GONE: the variable is not set here"),
    ],
)
def test_what_is_missing_is_said(job, words, changes, message):
    start, _ = job
    process = start(*words, **changes)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 2
    assert message in errors
