"""Hostfiles: one host a line, `NAME slots=COUNT`, as DeepSpeed and Open MPI read them."""

from __future__ import annotations

import re
import socket
from pathlib import Path
from typing import NamedTuple

from tinybert_ds.errors import ConfigError, raise_all

_LINE = re.compile(r"(\S+)\s+slots=(\d+)\s*(?:#.*)?")
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


class Host(NamedTuple):
    """A machine and how many ranks it takes."""

    name: str
    slots: int


def read_hostfile(path: Path) -> tuple[Host, ...]:
    """Read a hostfile.

    Raises:
        ConfigError: No such file, no host in it, or lines that are no `NAME slots=COUNT`; all bad lines are named.
    """
    if not path.is_file():
        raise ConfigError(f"--hostfile {path} is not a file; write one host a line, such as: node1 slots=8")
    hosts: list[Host] = []
    problems = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        match = _LINE.fullmatch(text)
        if match is None or not int(match[2]):
            problems.append(f"{path}, line {number}: {text!r}; a line is NAME slots=COUNT, such as: node1 slots=8")
        elif match[1] in (host.name for host in hosts):
            problems.append(f"{path}, line {number}: {match[1]} is there twice; give each host one line")
        else:
            hosts.append(Host(match[1], int(match[2])))
    if not hosts and not problems:
        problems.append(f"{path} names no host; write one host a line, such as: node1 slots=8")
    raise_all(problems)
    return tuple(hosts)


def is_local(name: str) -> bool:
    """Whether a host's name means this machine, so that no ssh is needed."""
    own = socket.gethostname()
    return name in (*_LOOPBACK, own, own.partition(".")[0])
