"""The environment of the ranks: what is handed on to other hosts, what stays here, what DeepSpeed's launcher gets."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from tinybert_ds.errors import ConfigError
from tinybert_ds.launch import rank
from tinybert_ds.launch.processes import VARIABLE
from tinybert_ds.launch.remote import CHECKOUT

FORWARDED = re.compile(
    r"(DS|CUDA|NCCL|GLOO|TORCH|TRITON|HF|TOKENIZERS|OMP|MKL|KMP|TINYBERT_DS)_\w+|LD_LIBRARY_PATH|DS_ACCELERATOR|TZ"
    r"|(PYTHON|MV2|UCX|MLFLOW)\w*"
)
"""What is handed on when it is set here."""
SECRET = re.compile(r"TOKEN(?!IZERS_)|KEY|SECRET|PASSWORD|CREDENTIAL", re.IGNORECASE)
"""Names of what only `--forward` hands on; the settings of the library tokenizers (TOKENIZERS_PARALLELISM) are none."""

_NOT_FORWARDED = ("DS_ENV_FILE", rank.VARIABLE, "CUDA_VISIBLE_DEVICES")  # the launcher's, and each host's own affair
_PLACE = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", VARIABLE)
_EXPORTED_BY_DEEPSPEED = ("PYTHON", "MV2", "UCX", "MLFLOW", "NCCL")  # with quoting of its own
_UNCHANGED = re.compile(r"[\w@+=:,./-]*", re.ASCII)
"""Words that remote shells, pdsh and DeepSpeed leave as they are."""


class RankVariables(NamedTuple):
    """The variables of the ranks.

    Args:
        withheld: Names that would have been handed on if they did not look like secrets.
        exposed: Names of secrets that are handed on to other hosts, because the user has named them.
    """

    values: dict[str, str]
    withheld: list[str]
    exposed: list[str]


def rank_variables(
    environment: Mapping[str, str],
    own_file: Mapping[str, str],
    *,
    launch: str,
    master_port: int,
    forward: Sequence[str] = (),
    all_here: bool = False,
) -> RankVariables:
    """Choose the variables for the ranks.

    Args:
        master_port: Where rank 0 will listen, for ranks that find each other through MPI.
        forward: Names that the user wants handed on (`--forward`).
        all_here: Whether the launcher starts ranks on this host only; those keep its secrets.

    Raises:
        ConfigError: A name of `forward` is not set, or is a variable that the launcher itself sets.
    """
    known = {**own_file, **environment}
    for name in forward:
        if name not in known:
            raise ConfigError(f"--forward {name}: the variable is not set here; export it first")
    for name in (*forward, *own_file):
        if name in _PLACE:
            raise ConfigError(f"{name} cannot be handed on: the launcher gives every rank its own; leave it out")
    usual = {name for name in environment if FORWARDED.fullmatch(name) and name not in _NOT_FORWARDED}
    wanted = usual | set(own_file)
    secret = {name for name in wanted if SECRET.search(name)} - set(forward)
    if all_here:
        wanted |= {name for name in environment if SECRET.search(name)}
        secret = set()
    values = {name: known[name] for name in sorted((wanted - secret) | set(forward))}
    values |= {name: own_file[name] for name in own_file if name in values and name not in usual | set(forward)}
    values["PATH"] = with_own_bin(environment.get("PATH", os.defpath))
    values["PYTHONPATH"] = os.pathsep.join(part for part in (str(CHECKOUT), values.get("PYTHONPATH")) if part)
    values["MASTER_PORT"] = str(master_port)
    values[VARIABLE] = launch
    exposed = [] if all_here else sorted(name for name in values if SECRET.search(name))
    return RankVariables(values, sorted(secret), exposed)


def launcher_environment(environment: Mapping[str, str], ours: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of DeepSpeed's launcher, which hands on, and writes to its log, more than is good.

    Secrets are not in it, nor what it would quote wrongly: the ranks get all that by `rank_variables`.
    """
    kept = {
        name: value
        for name, value in environment.items()
        if not SECRET.search(name) and (_UNCHANGED.fullmatch(value) or not name.startswith(_EXPORTED_BY_DEEPSPEED))
    }
    return {**kept, "PATH": with_own_bin(environment.get("PATH", os.defpath)), **ours}


def unchanged_by_shells(text: str) -> bool:
    """Whether a remote shell reads an unquoted word as it is written."""
    return _UNCHANGED.fullmatch(text) is not None


def with_own_bin(path: str) -> str:
    """Return a PATH that starts with the virtual environment's `bin` (mpirun, ninja)."""
    own = str(Path(sys.executable).parent)
    return os.pathsep.join([own, *(part for part in path.split(os.pathsep) if part and part != own)])


def read_own_environment_file(path: Path) -> dict[str, str]:
    """Return the variables of a user's DS_ENV_FILE, values as they are written, the last of a name.

    Raises:
        ConfigError: It cannot be read, or has a line that is no NAME=VALUE.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="surrogateescape").split("\n")
    except OSError as error:
        raise ConfigError(f"{path} (DS_ENV_FILE) cannot be read: {error.strerror}; mend it or move it away") from error
    values = {}
    for number, line in enumerate(lines, start=1):
        text = line.strip()
        if not text:
            continue
        name, equals, value = text.partition("=")
        if not equals or not re.fullmatch(r"\w+", name):
            raise ConfigError(
                f"{path}, line {number}, is no NAME=VALUE; mend it (DS_ENV_FILE names this file)"  # it may be a secret
            )
        values[name] = value
    return values
