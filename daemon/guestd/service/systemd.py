"""sd_notify(3): datagrams to the socket that systemd names in NOTIFY_SOCKET; without one, nothing is sent."""

from __future__ import annotations

import asyncio
import functools
import os
import re
import socket
from collections.abc import Callable
from contextlib import suppress

from guestd.core.text import escape_controls

STATUS_SECONDS = 5.0
REPEATED = ("STATUS=", "WATCHDOG=")


@functools.cache
def _open_socket() -> socket.socket:
    """The socket to send from, open for good: a guestd that has no descriptor left must still feed the watchdog."""
    return socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)


def notify(*states: str) -> None:
    """Send states such as `READY=1` or `STATUS=...` to systemd; a failure to send is ignored."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    # What is sent again within seconds does not wait for a systemd that does not read: the event loop would wait too.
    flags = socket.MSG_DONTWAIT if states[0].startswith(REPEATED) else 0
    with suppress(OSError):
        _open_socket().sendto("\n".join(map(escape_controls, states)).encode(), flags, address)


def get_watchdog_seconds() -> float | None:
    """Get the time after which systemd kills guestd without a WATCHDOG=1; None: never. sd_watchdog_enabled(3)."""
    microseconds, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID")
    if not re.fullmatch("[1-9][0-9]{0,18}", microseconds) or pid not in (None, str(os.getpid())):
        return None
    return int(microseconds) / 1e6


async def report_status(get_status: Callable[[], str]) -> None:
    """Send the status line, which `systemctl status` shows, at an interval; never returns."""
    while True:
        notify(f"STATUS={get_status()}")
        await asyncio.sleep(STATUS_SECONDS)
