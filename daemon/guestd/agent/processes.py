"""The processes of this machine and their sockets.

A process that ends while it is read is left out; a value that may not be read is null.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import Any

import psutil

from guestd.agent.payload import Port, Process

# A longer command line adds nothing, and one process must not push the others out of the line.
LONGEST_TEXT = 8192

# Which fields psutil can read depends on the system: not every kernel counts I/O.
_FIELDS = tuple(
    name
    for name in (
        *("create_time", "ppid", "name", "exe", "cmdline", "cpu_times", "memory_info"),
        *("io_counters", "status"),
    )
    if hasattr(psutil.Process, name)
)

_STATUS = {
    psutil.STATUS_RUNNING: "Running",
    psutil.STATUS_WAKING: "Running",
    psutil.STATUS_SLEEPING: "Sleeping",
    # Idle and parked are how kernel threads sleep; D1 has no states of their own for them.
    psutil.STATUS_IDLE: "Sleeping",
    psutil.STATUS_PARKED: "Sleeping",
    psutil.STATUS_DISK_SLEEP: "Disk Sleep",
    psutil.STATUS_ZOMBIE: "Zombie",
    psutil.STATUS_STOPPED: "Stopped",
    psutil.STATUS_TRACING_STOP: "Tracing Stop",
    psutil.STATUS_DEAD: "Dead",
}

_TCP_STATE = {
    psutil.CONN_ESTABLISHED: "Established",
    psutil.CONN_SYN_SENT: "SynSent",
    psutil.CONN_SYN_RECV: "SynReceived",
    psutil.CONN_FIN_WAIT1: "FinWait1",
    psutil.CONN_FIN_WAIT2: "FinWait2",
    psutil.CONN_TIME_WAIT: "TimeWait",
    psutil.CONN_CLOSE: "Closed",
    psutil.CONN_CLOSE_WAIT: "CloseWait",
    psutil.CONN_LAST_ACK: "LastAck",
    psutil.CONN_LISTEN: "Listen",
    psutil.CONN_CLOSING: "Closing",
    "DELETE_TCB": "DeleteTcb",
}


def status_name(status: str) -> str:
    """D1's name for a status of psutil."""
    return _STATUS.get(status, "Unknown")


class ProcessWatch:
    """All processes, with their CPU use since the last sample (none on the first)."""

    def __init__(self) -> None:
        self._cpu_seconds: dict[tuple[int, float], float] = {}
        self._observed_at: float | None = None

    def observe(self) -> list[Process]:
        """Every process, the busiest first."""
        now = time.monotonic()
        elapsed = None if self._observed_at is None else now - self._observed_at
        before, self._cpu_seconds, self._observed_at = self._cpu_seconds, {}, now
        processes = []
        for process in psutil.process_iter():
            try:
                known = _read(process)
            except psutil.NoSuchProcess:
                continue
            processes.append(self._process(known, before, elapsed))
        processes.sort(key=lambda process: (-(process.cpu_usage_percent or 0.0), -process.memory_usage_kb))
        return processes

    def _process(self, known: dict[str, Any], before: dict[tuple[int, float], float], elapsed: float | None) -> Process:
        memory, counters = known["memory_info"], known.get("io_counters")
        return Process(
            id=known["pid"],
            parent_id=known["ppid"],
            name=clean(known["name"] or ""),
            executable_path=clean(known["exe"]) if known["exe"] else None,
            command_line=clean(" ".join(known["cmdline"])) if known["cmdline"] else None,
            cpu_usage_percent=self._cpu_percent(known, before, elapsed),
            memory_usage_kb=memory.rss // 1024 if memory else 0,
            status=status_name(known["status"]),
            start_time=int(known["create_time"]) if known["create_time"] else None,
            disk_read_bytes=counters.read_bytes if counters else None,
            disk_write_bytes=counters.write_bytes if counters else None,
        )

    def _cpu_percent(
        self, known: dict[str, Any], before: dict[tuple[int, float], float], elapsed: float | None
    ) -> float | None:
        times = known["cpu_times"]
        if times is None:
            return None
        key = (known["pid"], known["create_time"])
        seconds = self._cpu_seconds[key] = times.user + times.system
        # A process that is new since the last sample has used all its time since then. The kernel scales its counters,
        # which may step back.
        return round(100 * max(0.0, seconds - before.get(key, 0.0)) / elapsed, 1) if elapsed else None


def _read(process: psutil.Process) -> dict[str, Any]:
    """Every field of a process, None for what cannot be read. Raises psutil.NoSuchProcess when it is gone."""
    with process.oneshot():
        return {"pid": process.pid, **{name: _value(getattr(process, name)) for name in _FIELDS}}


def _value(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except psutil.ZombieProcess:
        # psutil counts a zombie as gone, but it is there and has a name.
        return None
    except psutil.NoSuchProcess:
        raise
    except (psutil.Error, OSError, RuntimeError):
        # Denied; or a file of /proc that is missing or empty, whose error psutil passes on.
        return None


def list_ports(processes: list[Process]) -> list[Port]:
    """Every TCP and UDP socket with a local port, listening ones first; none where the system denies the list."""
    owners = {process.id: process for process in processes}
    try:
        connections = psutil.net_connections(kind="inet")
    except psutil.AccessDenied:
        return []
    ports = [_port(connection, owners) for connection in connections if connection.laddr]
    ports.sort(key=lambda port: (not port.is_listening, port.port))
    return ports


def _port(connection: Any, owners: dict[int, Process]) -> Port:
    udp = connection.type == socket.SOCK_DGRAM
    owner = owners.get(connection.pid)
    return Port(
        port=connection.laddr.port,
        protocol="UDP" if udp else "TCP",
        state="UDP" if udp else _TCP_STATE.get(connection.status, "Unknown"),
        process_id=connection.pid,
        process_name=owner.name if owner else None,
        exe_path=owner.executable_path if owner else None,
        # D1 has no better state for a UDP socket.
        is_listening=udp or connection.status == psutil.CONN_LISTEN,
    )


def clean(text: str) -> str:
    """A text of bounded length that JSON can hold: what was not UTF-8 on this machine becomes a question mark."""
    return text[:LONGEST_TEXT].encode(errors="replace").decode()
