"""A free port on this host: `python -m tinybert_ds.launch.port`."""

from __future__ import annotations

import socket


def free_port() -> int:
    """Return a TCP port that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    print(free_port())
