"""A run over two hosts is killed on one of them, started again and finished, under pdsh and under mpirun."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.runs import ROOT, TIMEOUT_SECONDS, read_metrics, run_ranks
from tests.support.two_hosts import require_programs, two_hosts
from tinybert_ds.engine.ds_config import CONFIG_DIRECTORY

STEPS = 20


@pytest.fixture
def hosts(tmp_path):
    """Return the two hosts."""
    require_programs("pdsh")
    folder = tmp_path / "hosts"
    folder.mkdir()
    with two_hosts(folder) as both:
        yield both


@pytest.fixture(scope="module")
def short(general):
    """Return the arguments of the run, without the output directory."""
    config = CONFIG_DIRECTORY / "zero0_fp32.json"  # the default depends on the machine
    return [*general, "--max_steps", STEPS, "--eval_fraction", 0, "--save_steps", 4, "--deepspeed_config", config]


@pytest.fixture(scope="module")
def expected(short, tmp_path_factory):
    """Return the metrics of two ranks on one host that nobody disturbs."""
    folder = tmp_path_factory.mktemp("undisturbed")
    run_ranks("general_distill", [*short, "--output_dir", folder / "out"], world_size=2, log=folder / "log").check()
    return read_metrics(folder / "out")


def start(host, words, log: Path) -> subprocess.Popen[bytes]:
    """Start a command on a host, with its output in a file."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    with log.open("wb") as handle:
        return subprocess.Popen(
            host.enter(words), cwd=ROOT, env=environment, stdout=handle, stderr=handle, start_new_session=True
        )


def wait_for_step(directory: Path, step: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + TIMEOUT_SECONDS
    metrics = directory / "metrics.jsonl"
    while not metrics.is_file() or len(metrics.read_text().splitlines()) < step:
        assert process.poll() is None, log.read_text(errors="replace")
        assert time.monotonic() < deadline, log.read_text(errors="replace")
        time.sleep(0.02)


def leftovers(hosts) -> list[str]:
    """Return the command lines of everything on the hosts but their sshd."""
    found = []
    for process in [process for host in hosts for process in host.processes()]:
        with contextlib.suppress(OSError):  # it has ended meanwhile
            command = Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode()
            if "sshd" not in command:
                found.append(command)
    return found


def open_mpi_is_installed() -> bool:
    """Whether the environment's mpirun is that of Open MPI; there is room for one."""
    return (Path(sys.executable).parent / "ompi_info").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "victim"), [("pdsh", 1), pytest.param("mpich", 0, marks=pytest.mark.exhaustive), ("openmpi", 0)]
)
def test_a_run_over_two_hosts_that_is_killed_on_one_goes_on_where_it_was(
    hosts, short, expected, tmp_path, launcher, victim
):
    if launcher != "pdsh" and open_mpi_is_installed() != (launcher == "openmpi"):
        pytest.skip(f"the mpirun that is installed is not that of {launcher}")
    script = "run_hostfile.sh" if launcher == "pdsh" else "run_mpi.sh"
    hostfile = tmp_path / "hostfile"
    hostfile.write_text("".join(f"{host.name} slots=1\n" for host in hosts))
    command = ["bash", ROOT / "launchers" / script, "--launcher", launcher, "--hostfile", hostfile, "general_distill"]
    command += [*short, "--output_dir", tmp_path / "out"]

    log = tmp_path / "killed.log"
    launcher = start(hosts[0], command, log)
    wait_for_step(tmp_path / "out", 6, launcher, log)
    places = [len(host.ranks()) for host in hosts]
    assert places == [1, 1], log.read_text(errors="replace")
    os.kill(hosts[victim].ranks()[0], signal.SIGKILL)
    assert launcher.wait(timeout=60) != 0, "a run that lost a rank ended well"
    assert leftovers(hosts) == []
    assert len(read_metrics(tmp_path / "out")) < STEPS

    log = tmp_path / "resumed.log"
    launcher = start(hosts[0], command, log)
    assert launcher.wait(timeout=TIMEOUT_SECONDS) == 0, log.read_text(errors="replace")
    assert "resumed from" in log.read_text(errors="replace")
    assert leftovers(hosts) == []
    assert read_metrics(tmp_path / "out") == expected


@pytest.mark.slow
def test_hosts_that_start_their_own_ranks_without_ssh_train_together(hosts, short, expected, tmp_path):
    hostfile = tmp_path / "hostfile"
    hostfile.write_text("".join(f"{host.name} slots=1\n" for host in hosts))
    launchers = []
    for place, host in enumerate(hosts):
        command = ["bash", ROOT / "launchers" / "run_hostfile.sh", "--hostfile", hostfile, "--no_ssh"]
        command += ["--node_rank", place, "--master_addr", hosts[0].address, "general_distill"]
        command += [*short, "--output_dir", tmp_path / "out"]
        launchers.append(start(host, command, tmp_path / f"{host.name}.log"))
    logs = "".join((tmp_path / f"{host.name}.log").read_text() for host in hosts)
    assert [launcher.wait(timeout=TIMEOUT_SECONDS) for launcher in launchers] == [0, 0], logs
    assert read_metrics(tmp_path / "out") == expected


def test_a_host_that_does_not_answer_is_named_before_anything_starts(hosts, tmp_path):
    hostfile = tmp_path / "hostfile"
    hostfile.write_text("nodeC slots=1\nnodeA slots=1\n")
    words = [sys.executable, "-m", "tinybert_ds.launch", "--hostfile", hostfile, "general_distill"]
    log = tmp_path / "log"
    assert start(hosts[0], words, log).wait(timeout=60) == 2
    assert "host nodeC" in log.read_text()
    assert "password-less ssh" in log.read_text()


def test_the_doctor_looks_at_both_hosts_and_at_what_lies_between_them(hosts, inputs, tmp_path):
    hostfile = tmp_path / "hostfile"
    hostfile.write_text("".join(f"{host.name} slots=1\n" for host in hosts))
    words = [sys.executable, "-m", "tinybert_ds.doctor", "--hostfile", hostfile, "--output_dir", tmp_path / "out"]
    words += ["--teacher_model", inputs / "teacher", "--student_model", inputs / "student"]
    log = tmp_path / "log"
    code = start(hosts[0], words, log).wait(timeout=120)
    output = log.read_text()
    assert code == 0, output
    assert "nodeA, 1 rank(s)" in output
    assert "nodeB, 1 rank(s)" in output
    assert "the same on 2 hosts" in output
    assert "32 over 2 rank(s)" in output
