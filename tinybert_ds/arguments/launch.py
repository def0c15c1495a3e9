"""The arguments of what starts other commands: on the hosts of a hostfile, or as a stage of a chain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tinybert_ds.arguments.groups import HOSTFILE, SSH_PORT, STAGES_FILE
from tinybert_ds.arguments.option import MISSING, Command, like, machine, pace, place

DEFAULT_PORT = 29500


@dataclass(frozen=True, kw_only=True)
class LaunchArguments(Command):
    """Run a training command on the hosts of a hostfile.

    SIGTERM, SIGUSR1, SIGHUP and Ctrl-C are passed on to the ranks, which save and leave. Flags of this command come
    before the stage, those of the stage behind it.
    """

    prog = "run_hostfile.sh or run_mpi.sh"

    hostfile: str = like(HOSTFILE, MISSING)
    ssh_port: int | None = like(SSH_PORT)
    launcher: Literal["pdsh", "mpich", "openmpi"] = machine("What starts the ranks on the hosts.", "pdsh")
    no_ssh: bool = machine("Start the ranks of this host only; run it on every host.", False)
    node_rank: int | None = machine("With --no_ssh: this host's place in the hostfile, from 0.", None)
    master_addr: str | None = machine(
        "Address of the first host. Default: asked of it by ssh.", None, metavar="ADDRESS"
    )
    master_port: int | None = machine(
        f"Port of the first host. Default: a free one; with --no_ssh {DEFAULT_PORT}.", None, least=1, most=65535
    )
    forward: list[str] = machine(
        "An environment variable that the ranks need; may be repeated.", [], repeat=True, metavar="NAME"
    )
    launcher_args: str = machine("More arguments of pdsh or mpirun, as one word.", "")
    grace_seconds: float = pace("How long the ranks may take to leave after a signal.", 120.0, above=0)
    stage_name: str = place("The training command, such as general_distill.", positional=True, metavar="STAGE")
    flags: list[str] = place("The flags of the stage.", [], positional=True, repeat=True)


@dataclass(frozen=True, kw_only=True)
class RunStageArguments(Command):
    """Run one stage of a longer chain, once."""

    prog = "run_stage.py"

    stages_file: str = like(STAGES_FILE, MISSING, help="JSON list of the stages and their seconds.")
    name: str = place("What the stage is called.", metavar="NAME")
    command: list[str] = place("After --: the command; FREE_PORT becomes an unused port.", positional=True)
