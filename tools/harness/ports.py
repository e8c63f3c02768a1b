"""Ports for servers of our own."""

from __future__ import annotations

import socket


def free_port(preferred: int = 0) -> int:
    """Return a loopback port that is free now: the preferred one, if it is not 0 and free. OSError if none is free."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", preferred))
        except OSError:
            probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
