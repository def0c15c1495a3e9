"""Two hosts out of network namespaces on one machine, each with its own name, address and sshd.

Linux, root, iproute2, openssh-server, openssh-client. Nothing outside the two namespaces is reachable from them,
nothing listens outside them, and only processes inside them are ever signalled.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tinybert_ds.launch.processes import is_rank

NAMES = ("nodeA", "nodeB")
PORT = 2222
_PROGRAMS = ("ip", "sshd", "ssh", "ssh-keygen", "unshare")


@dataclass(frozen=True)
class Host:
    """One of the two."""

    name: str
    namespace: str
    address: str

    def enter(self, words: Sequence[object]) -> list[str]:
        """Return the command that runs `words` on this host."""
        renamed = ["unshare", "--uts", "sh", "-c", f'hostname {self.name}; exec "$@"', "sh"]
        return ["ip", "netns", "exec", self.namespace, *renamed, *(str(word) for word in words)]

    def processes(self) -> list[int]:
        """Return the ids of all processes that live here."""
        listed = subprocess.run(["ip", "netns", "pids", self.namespace], capture_output=True, text=True, check=False)
        return [int(word) for word in listed.stdout.split()]

    def ranks(self) -> list[int]:
        """Return the ids of the ranks that run here."""
        found = []
        for process in self.processes():
            with contextlib.suppress(OSError):  # it has ended meanwhile
                if is_rank(Path(f"/proc/{process}/cmdline").read_bytes().decode().split("\0")):
                    found.append(process)
        return found


def require_programs(*more: str) -> None:
    """Skip the test where the machine cannot have two hosts."""
    if os.uname().sysname != "Linux" or os.getuid() != 0:
        pytest.skip("network namespaces need Linux and root")
    path = f"{os.environ['PATH']}{os.pathsep}/usr/sbin{os.pathsep}/sbin"
    missing = [name for name in (*_PROGRAMS, *more) if shutil.which(name, path=path) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)} (apt-get install iproute2 openssh-server pdsh)")


@contextlib.contextmanager
def two_hosts(folder: Path) -> Iterator[tuple[Host, Host]]:
    """Make the two hosts and take them down again, with everything that runs in them.

    Args:
        folder: For keys, configs and logs.
    """
    mark = f"tb{os.getpid()}"
    hosts = [Host(name, f"{mark}{name[-1]}", f"10.77.0.{number}") for number, name in enumerate(NAMES, start=1)]
    bridge = f"{mark}br"
    try:
        _write_keys(folder)
        made = _run("ip", "link", "add", bridge, "type", "bridge", check=False)
        if made.returncode:
            pytest.skip(f"network namespaces are not allowed here: {made.stderr.strip()}")
        _run("ip", "link", "set", bridge, "up")  # without an address: this machine itself stays outside
        for host in hosts:
            _bring_up(host, hosts, bridge, folder)
        yield hosts[0], hosts[1]
    finally:
        for host in hosts:
            _take_down(host)
        _run("ip", "link", "del", bridge, check=False)


def _bring_up(host: Host, hosts: Sequence[Host], bridge: str, folder: Path) -> None:
    _run("ip", "netns", "add", host.namespace)
    outside = f"v{host.namespace}"
    _run("ip", "link", "add", outside, "type", "veth", "peer", "name", "eth0", "netns", host.namespace)
    _run("ip", "link", "set", outside, "master", bridge, "up")
    _run("ip", "-n", host.namespace, "link", "set", "lo", "up")
    _run("ip", "-n", host.namespace, "addr", "add", f"{host.address}/24", "dev", "eth0")
    _run("ip", "-n", host.namespace, "link", "set", "eth0", "up")
    etc = Path("/etc/netns") / host.namespace  # `ip netns exec` shows these files in /etc, inside the namespace only
    (etc / "ssh").mkdir(parents=True)
    (etc / "ssh" / "ssh_config").write_text(
        f"Host *\n  User root\n  Port {PORT}\n  IdentityFile {folder}/id\n  IdentitiesOnly yes\n"
        "  StrictHostKeyChecking no\n  UserKnownHostsFile /dev/null\n  LogLevel ERROR\n"
    )
    names = [f"{other.address} {other.name}" for other in hosts]
    (etc / "hosts").write_text("\n".join(["127.0.0.1 localhost", *names]) + "\n")
    config = folder / f"sshd_{host.name}"
    config.write_text(
        f"Port {PORT}\nListenAddress {host.address}\nHostKey {folder}/host\nPidFile none\n"
        f"AuthorizedKeysFile {folder}/authorized_keys\nStrictModes no\nPasswordAuthentication no\nUsePAM no\n"
        "PermitRootLogin prohibit-password\nMaxStartups 100\n"
    )
    sshd = shutil.which("sshd") or "/usr/sbin/sshd"
    _run(*host.enter([sshd, "-f", config, "-E", f"{config}.log"]))


def _take_down(host: Host) -> None:
    deadline = time.monotonic() + 10
    while (left := host.processes()) and time.monotonic() < deadline:
        for process in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        time.sleep(0.05)
    _run("ip", "netns", "del", host.namespace, check=False)
    shutil.rmtree(Path("/etc/netns") / host.namespace, ignore_errors=True)


def _write_keys(folder: Path) -> None:
    Path("/run/sshd").mkdir(exist_ok=True)  # sshd insists on it
    folder.chmod(0o700)
    for name in ("id", "host"):
        _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name))
    shutil.copy(folder / "id.pub", folder / "authorized_keys")


def _run(*words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    # Standard streams that a daemon would keep open must not be pipes of ours.
    result = subprocess.run(
        words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False
    )
    assert not check or result.returncode == 0, f"{' '.join(words)}: {result.stderr}"
    return result
