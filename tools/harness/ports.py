"""Ports for servers of our own."""

from __future__ import annotations

import socket


def free_port(wanted: int = 0) -> int:
    """A loopback port that is free now: the wanted one, if it is not 0 and nobody has it. OSError when none is."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", wanted))
        except OSError:
            probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
