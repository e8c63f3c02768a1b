"""sd_notify: a datagram to the socket that systemd names; nothing at all when it names none. Source: sd_notify(3)."""

from __future__ import annotations

import os
import socket

from guestd.core.text import escape_controls


def notify(*states: str) -> None:
    """Tell systemd `READY=1`, `STATUS=...`, `STOPPING=1`; a supervisor that is gone is no reason to fail."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
        try:
            channel.sendto("\n".join(map(escape_controls, states)).encode(), address)
        except OSError:
            return


def watchdog_seconds() -> float | None:
    """How long systemd waits for a WATCHDOG=1 before it kills us; None where it does not. sd_watchdog_enabled(3)."""
    microseconds, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID")
    if not microseconds.isdigit() or pid not in (None, str(os.getpid())):
        return None
    return int(microseconds) / 1e6
