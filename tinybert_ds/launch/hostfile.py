"""Hostfiles: one host a line, `NAME slots=COUNT`, as DeepSpeed and Open MPI read them."""

from __future__ import annotations

import codecs
import ipaddress
import re
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tinybert_ds.errors import ConfigError, raise_all
from tinybert_ds.foreign_text import quoted

MOST_SLOTS = 1024
_LINE = re.compile(r"(\S+)\s+slots=([0-9]{1,9})\s*(?:#.*)?")
_NAME = re.compile(r"(?:[A-Za-z0-9_][\w.-]*@)?[A-Za-z0-9_](?:[\w.-]{0,251}\w)?\.?", re.ASCII)
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_EXAMPLE = "a line is NAME slots=COUNT, such as: node1 slots=8"
_MARKS = {
    codecs.BOM_UTF8: "UTF-8 with a byte-order mark",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


class Host(NamedTuple):
    """A machine and how many ranks it takes."""

    name: str
    slots: int


def read_hostfile(path: Path) -> tuple[Host, ...]:
    """Read a hostfile.

    Raises:
        ConfigError: No such file, no UTF-8, no host in it, or lines that are no `NAME slots=COUNT`; all bad lines are
            named.
    """
    hosts: list[Host] = []
    problems = []
    for number, line in enumerate(_text(path).splitlines(), start=1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        where = f"{path}, line {number}"
        match = _LINE.fullmatch(text)
        if match is None:
            problems.append(f"{where}: {quoted(text)}; {_EXAMPLE}")
        elif problem := name_problem(match[1]):
            problems.append(f"{where}: {problem}")
        elif not 1 <= int(match[2]) <= MOST_SLOTS:
            problems.append(f"{where}: slots={int(match[2])}; a host takes from 1 to {MOST_SLOTS} ranks; {_EXAMPLE}")
        elif match[1].lower() in (host.name.lower() for host in hosts):
            problems.append(f"{where}: {match[1]} is there twice; give each host one line")
        else:
            hosts.append(Host(match[1], int(match[2])))
    if not hosts and not problems:
        problems.append(f"{path} names no host; write one host a line, such as: node1 slots=8")
    raise_all(problems)
    return tuple(hosts)


def name_problem(name: str) -> str:
    """Return what keeps a word from being the name or address of a host, "" for nothing.

    Names go into the command lines of ssh, pdsh and mpirun, which take some for options, lists or patterns.
    """
    if name.startswith("-"):
        return f"{quoted(name)} begins with '-', which ssh takes for an option; write the host's name"
    if _NAME.fullmatch(name):
        return ""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return (
            f"{quoted(name)} is no name of a host: letters, digits, '.', '-' and '_', or an address. Give each host a "
            "line with its name, names beyond ASCII as ssh knows them (xn--...)"
        )
    return ""


def hostfile_text(hosts: Sequence[Host]) -> str:
    """Return a hostfile in the form that every launcher reads alike."""
    return "".join(f"{host.name} slots={host.slots}\n" for host in hosts)


def is_local(name: str) -> bool:
    """Whether a host's name means this machine, so that no ssh is needed."""
    own = socket.gethostname()
    return name in (*_LOOPBACK, own, own.partition(".")[0])


def _text(path: Path) -> str:
    if not path.is_file():
        raise ConfigError(f"--hostfile {path} is not a file; write one host a line, such as: node1 slots=8")
    content = path.read_bytes()
    for mark, encoding in _MARKS.items():
        if content.startswith(mark):
            raise ConfigError(
                f"--hostfile {path} is written as {encoding}, which the launchers would take for part of the first "
                "host's name; save it as plain UTF-8, without a byte-order mark"
            )
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        number = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"--hostfile {path}, line {number}, is not UTF-8 (byte 0x{content[error.start]:02x}); save it as UTF-8"
        ) from error
