"""The processes of this machine and their sockets.

A process that ends while it is read is left out; a value that may not be read is null.
"""

from __future__ import annotations

import math
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from guestd.agent.parts import Parts, describe
from guestd.agent.payload import Port, Process, clean
from guestd.wire.limits import NAME_CHARS

# The command line of a process whose memory is locked, by a fault on a mount that does not answer, is not readable.
PROCESS_SECONDS = 2.0
# The start of a process is known to a hundredth of a second, and the time of boot, from which it counts, to a second.
CLOCK_SECONDS = 2.0
# What psutil raises for a file of /proc in a form that it does not expect.
PARSE_ERRORS = (ValueError, LookupError, RuntimeError, TypeError, AssertionError, NotImplementedError)

# Which fields psutil can read depends on the system: not every kernel counts I/O.
_FIELDS = tuple(
    name
    for name in (
        *("create_time", "ppid", "name", "cmdline", "cpu_times", "memory_info"),
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


@dataclass(frozen=True, slots=True)
class _Facts:
    """What was read of one process: values by field, None where it cannot be read, and errors that are no denial."""

    values: dict[str, Any]
    errors: dict[str, Exception]


@dataclass(frozen=True, slots=True)
class _Program:
    """A program's path as it is sent; `is_there` None: only the command line names it."""

    path: str
    is_there: bool | None


class ProcessWatch:
    """All processes, with their CPU use since the last sample (none on the first)."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        # psutil compares processes by pid and the time since boot of their start: a clock that is set changes neither.
        self._cpu_seconds: dict[psutil.Process, float] = {}
        self._observed_at: float | None = None
        self._observed_at_s = 0.0
        # The programs of the last sample that the kernel named, and whether their file was still there. The others are
        # what a command line names.
        self.programs: dict[str, bool] = {}

    def observe(self) -> list[Process] | None:
        """Every process that can be read, the busiest first; None when they cannot be read."""
        pids = self._parts.read("processes", psutil.pids, None)
        if pids is None:
            return None
        now, now_s = time.monotonic(), time.time()
        elapsed = None if self._observed_at is None else now - self._observed_at
        found = self._parts.read_each("processes", pids, _read, PROCESS_SECONDS)
        if not any(found.values()):  # not even this process: nothing is known of what runs
            return None
        before, self._cpu_seconds = self._cpu_seconds, {}
        processes = []
        self.programs = {}
        for facts in found.values():
            if facts is not None:
                self._name_errors(facts)
                self._note_program(facts.values["executable"])
                processes.append(self._process(facts.values, before, elapsed))
        self._observed_at, self._observed_at_s = now, now_s
        processes.sort(key=lambda process: (-(process.cpu_usage_percent or 0.0), -process.memory_usage_kb))
        return processes

    def _name_errors(self, facts: _Facts) -> None:
        for field, error in facts.errors.items():
            self._parts.fail("processes", f"{field}: {describe(error)}")

    def _note_program(self, program: _Program | None) -> None:
        if program is not None and program.is_there is not None:
            self.programs[program.path] = self.programs.get(program.path, False) or program.is_there

    def _process(self, known: dict[str, Any], before: dict[psutil.Process, float], elapsed: float | None) -> Process:
        memory, counters = known["memory_info"], known.get("io_counters")
        return Process(
            id=known["process"].pid,
            parent_id=_amount(known["ppid"]),
            name=clean(known["name"] or "")[:NAME_CHARS],
            executable_path=known["executable"].path if known["executable"] else None,
            command_line=clean(" ".join(known["cmdline"])) if known["cmdline"] else None,
            cpu_usage_percent=self._cpu_percent(known, before, elapsed),
            memory_usage_kb=max(memory.rss, 0) // 1024 if memory else 0,
            status=status_name(known["status"]),
            start_time=_whole(known["create_time"]) if known["create_time"] else None,
            disk_read_bytes=_amount(counters.read_bytes) if counters else None,
            disk_write_bytes=_amount(counters.write_bytes) if counters else None,
        )

    def _cpu_percent(
        self, known: dict[str, Any], before: dict[psutil.Process, float], elapsed: float | None
    ) -> float | None:
        times, process, started_s = known["cpu_times"], known["process"], known["create_time"]
        if times is None:
            return None
        seconds: float = times.user + times.system
        self._cpu_seconds[process] = seconds
        if not elapsed:
            return None
        if process not in before and (started_s is None or started_s < self._observed_at_s - CLOCK_SECONDS):
            return None  # it was there at the last sample, and could not be read
        # A process that is new since the last sample has used all its time since then. The kernel scales its counters,
        # which may step back.
        return round(max(100 * (seconds - before.get(process, 0.0)) / elapsed, 0.0), 1)


def _whole(seconds: float) -> int | None:
    return int(seconds) if math.isfinite(seconds) else None  # psutil takes any number as the time of boot


def _amount(value: int | None) -> int | None:
    return None if value is None or value < 0 else value


def _read(pid: int) -> _Facts | None:
    """Every field of a process; None when it is gone."""
    values: dict[str, Any] = {}
    errors: dict[str, Exception] = {}
    try:
        process = psutil.Process(pid)
        values["process"] = process
        with process.oneshot():
            for name in _FIELDS:
                values[name] = _value(name, getattr(process, name), errors)
            values["executable"] = _value("executable", partial(_executable, process, values["cmdline"]), errors)
        if errors and not process.is_running():
            return None
    except psutil.NoSuchProcess:
        return None
    return _Facts(values, errors)


def _value(name: str, read: Callable[[], Any], errors: dict[str, Exception]) -> Any:
    try:
        return read()
    except psutil.ZombieProcess:
        # psutil counts a zombie as gone, but it is there and has a name.
        return None
    except psutil.NoSuchProcess:
        raise
    except (psutil.Error, OSError):
        return None  # denied, or a file of /proc that this process does not have
    except PARSE_ERRORS as exc:
        # A file of /proc that is empty or odd, whose error psutil passes on.
        errors[name] = exc
        return None


def _executable(process: psutil.Process, command_line: list[str] | None) -> _Program | None:
    """The file that a process runs; of another user's process, if that is denied, what its command line names.

    psutil's `exe` examines the file that a command line names: any process could thereby make this one wait for a mount
    that does not answer.
    """
    if sys.platform != "linux":
        return _Program(clean(path), is_there=True) if (path := process.exe()) else None
    try:
        link = str(Path(psutil.PROCFS_PATH, str(process.pid), "exe").readlink())
    except PermissionError:
        named = command_line[0] if command_line and command_line[0].startswith("/") else None
        return _Program(clean(named), is_there=None) if named else None
    link = link.partition("\0")[0]
    path = link.removesuffix(" (deleted)")
    return _Program(clean(path), is_there=path == link) if path else None


def list_ports(processes: list[Process], fail: Callable[[str], None]) -> list[Port]:
    """Every TCP and UDP socket with a local port, listening ones first; none where the system denies the list.

    `fail` is called with a reason for what cannot be read. Raises what psutil raises when nothing can.
    """
    owners = {process.id: process for process in processes}
    ports = [_port(connection, owners) for connection in _read_connections(fail) if connection.laddr]
    ports.sort(key=lambda port: (not port.is_listening, port.port))
    return ports


def _read_connections(fail: Callable[[str], None]) -> list[Any]:
    try:
        return list(psutil.net_connections(kind="inet"))
    except psutil.AccessDenied:
        return []
    except PARSE_ERRORS as exc:
        fail(describe(exc))
    # One line that psutil does not understand, in one of the files of /proc/net.
    connections: list[Any] = []
    for kind in ("tcp4", "tcp6", "udp4", "udp6"):
        with suppress(*PARSE_ERRORS):
            connections += psutil.net_connections(kind=kind)
    return connections


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
