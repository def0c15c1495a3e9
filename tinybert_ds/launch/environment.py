"""The environment that the ranks of other hosts need: DeepSpeed's launchers hand on little of it by themselves."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tinybert_ds.errors import ConfigError
from tinybert_ds.launch.processes import VARIABLE

FORWARDED = re.compile(
    r"(DS|CUDA|NCCL|GLOO|TORCH|TRITON|HF|TOKENIZERS|OMP|MKL|KMP|TINYBERT_DS)_\w+|LD_LIBRARY_PATH|DS_ACCELERATOR|TZ"
)
"""What is handed on when it is set here. PYTHON*, MV2*, UCX* are DeepSpeed's own choice."""

_NOT_FORWARDED = ("DS_ENV_FILE", "CUDA_VISIBLE_DEVICES")  # the launcher's, and each host's own affair
_UNSAFE = re.compile(r"[\"'$`\\\n]")


def forwarded_environment(
    environment: Mapping[str, str], *, launch: str, master_port: int, more: Sequence[str] = ()
) -> dict[str, str]:
    """Choose the variables for the ranks.

    Args:
        master_port: Where rank 0 will listen, for ranks that find each other through MPI.
        more: Names that the user wants forwarded (`--forward`).

    Raises:
        ConfigError: A name of `more` is not set, or its value cannot go through a remote shell.
    """
    chosen = {
        name: value
        for name, value in sorted(environment.items())
        if FORWARDED.fullmatch(name) and name not in _NOT_FORWARDED and not _UNSAFE.search(value)
    }
    for name in more:
        if name not in environment:
            raise ConfigError(f"--forward {name}: the variable is not set here; export it first")
        if _UNSAFE.search(environment[name]):
            raise ConfigError(f"--forward {name}: its value holds quotes, $, ` or \\, which remote shells would change")
        chosen[name] = environment[name]
    chosen["PATH"] = with_own_bin(environment.get("PATH", os.defpath))
    chosen["MASTER_PORT"] = str(master_port)
    chosen[VARIABLE] = launch
    return chosen


def with_own_bin(path: str) -> str:
    """Return a PATH that starts with the virtual environment's `bin` (mpirun, ninja)."""
    own = str(Path(sys.executable).parent)
    return os.pathsep.join([own, *(part for part in path.split(os.pathsep) if part and part != own)])


def environment_file(variables: Mapping[str, str], own_file: Path | None) -> str:
    """Return the text of a DS_ENV_FILE: the user's own lines, then ours; no blank lines: DeepSpeed fails on them.

    Raises:
        ConfigError: The user's file has a line that is no NAME=VALUE.
    """
    lines = []
    if own_file is not None:
        for line in own_file.read_text(encoding="utf-8").splitlines():
            if not line.strip():
                continue
            if not re.match(r"\s*\w+=", line):
                raise ConfigError(f"{own_file}: {line!r} is no NAME=VALUE; mend it (DS_ENV_FILE names this file)")
            lines.append(line.strip())
    lines += [f"{name}={value}" for name, value in variables.items()]
    return "\n".join(lines) + "\n"
